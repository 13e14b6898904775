"""Cautions beside a verdict: what a reader should know before he believes it.

In: results of a dataset, as plain values. Out: sentences. Networks whose sizes are far apart differ by more than their
kind. A task that no network learned, or with a handful of positives, says little of any of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

# The larger network has this many times the dense parameters of the smaller one.
SIZE_RATIO = 1.5
MIN_POSITIVES = 100
# Counts of labels by which a task says little (training.tasks: label_counts), in words.
COUNTED = {"positives": "positives", "rarest_class": "rows of its rarest class"}
CHANCE = 0.5


def cautions(
    network: str, baseline: str, tasks: Sequence[str], costs: Mapping[str, Json], counts: Mapping[str, Json], auc: Json
) -> list[str]:
    """Sentences on `network` against `baseline` over `tasks`. `counts` and `auc` are the test split's, by task."""
    found = _sizes(network, baseline, costs)
    for task in tasks:
        for count, words in COUNTED.items():
            rows = counts[task].get(count)
            if rows is not None and rows < MIN_POSITIVES:
                found.append(f"{task} has {rows} {words} in the test split, under {MIN_POSITIVES}")
        found += _chance(task, (network, baseline), auc.get(task, {}))
    return found


def _sizes(network: str, baseline: str, costs: Mapping[str, Json]) -> list[str]:
    one, other = costs[network]["parameters"], costs[baseline]["parameters"]
    if one is None or other is None:  # boosted trees have leaves
        return []
    ratio = max(one, other) / max(min(one, other), 1)
    if ratio <= SIZE_RATIO:
        return []
    return [f"sizes differ: {one:,.0f} dense parameters against {other:,.0f} of {baseline}, {ratio:.1f} times"]


def _chance(task: str, networks: Sequence[str], entries: Json) -> list[str]:
    at_chance = [
        name
        for name in networks
        if (entry := entries.get(name))
        and any(_contains(entry[f"{of}low"], entry[f"{of}high"]) for of in ("", "users_"))
    ]
    return (
        [f"{task} is at chance: the AUC interval of {' and '.join(at_chance)} contains {CHANCE}"] if at_chance else []
    )


def _contains(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low <= CHANCE <= high
