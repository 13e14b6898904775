"""Reading the tables of a results document: a network's values, seed by seed, in the mean over tasks.

In: tables[task or MEAN][network] = {"values": {seed: value}, ...} of one metric. Out: values by seed.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from training.compare.measures import TaskNames
from training.compare.resampling import MEAN


def used_tasks(table: Mapping[str, Any], wanted: TaskNames) -> list[str]:
    """The tasks of the table that are wanted. One on which the metric is undefined is not in it."""
    return [task for task in table if task != MEAN and (wanted == "all" or task in wanted)]


def mean_over_tasks(table: Mapping[str, Any], tasks: Sequence[str], network: str) -> dict[str, float]:
    """seed -> the mean over tasks of a network's values, empty where it has none."""
    of_tasks = [table[task][network]["values"] for task in tasks if network in table[task]]
    return {seed: statistics.fmean(values[seed] for values in of_tasks) for seed in of_tasks[0]} if of_tasks else {}
