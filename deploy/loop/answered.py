"""The loop's answers as its log has them, beside the town's truth of each candidate.

In: the impression log and the town's days. Out: hours of requests with the order that was answered, the model's answers
of all candidates, and so any other order that could have been made of them.

Shapes: R requests, N candidates, K places.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from deploy.child_processes import ChildError
from deploy.loop.town import HOURS, PLACES, Days, Visits
from training.datasets.feed_world import Floats, Integers

_COLUMNS = ["request_id", "model_version", "tasks", "order", "propensity"]


@dataclass(frozen=True)
class AnsweredHour:
    """Requests of an hour as they were answered. `explored_R` are those whose places were drawn."""

    visits: Visits
    versions_R: list[str]
    order_RK: Integers
    explored_R: npt.NDArray[np.bool_]
    tasks: Mapping[str, Floats]

    def order_by(self, weights: Mapping[str, float]) -> Integers:
        """Order [R, K] by descending sums of weighted answers."""
        score_RN = sum(weight * self.tasks[task] for task, weight in weights.items())
        order_RK: Integers = np.argsort(-np.asarray(score_RN), axis=1, kind="stable")[:, :PLACES]
        return order_RK


def answered_hours(log: Path, days: Days, which: Iterable[int]) -> Iterator[AnsweredHour]:
    """Answered hours of some days. Raises ChildError where the log lacks a request."""
    lines: dict[str, dict[str, Any]] = {}
    for path in sorted(log.glob("*.parquet")):
        lines |= {line["request_id"]: line for line in pq.read_table(path, columns=_COLUMNS).to_pylist()}
    for day in which:
        for hour in range(HOURS):
            visits = days.visits(day, hour)
            missing = [request_id for request_id in visits.ids if request_id not in lines]
            if missing:
                raise ChildError(f"the impression log {log} has no request {missing[0]}")
            if visits.ids:
                yield _hour(visits, [lines[request_id] for request_id in visits.ids])


def values_by_version(hours: Iterable[AnsweredHour], worth: Mapping[str, float]) -> dict[date, dict[str, list[float]]]:
    """Expected values of requests by the town's truth, of each day and version that answered."""
    found: dict[date, dict[str, list[float]]] = {}
    for hour in hours:
        of_day = found.setdefault(hour.visits.time.date(), {})
        value_R = hour.visits.expected(hour.order_RK, worth).sum(axis=1)
        for version, value in zip(hour.versions_R, value_R.tolist(), strict=True):
            of_day.setdefault(version, []).append(value)
    return found


def _hour(visits: Visits, lines: list[dict[str, Any]]) -> AnsweredHour:
    tasks = [dict(line["tasks"]) for line in lines]
    return AnsweredHour(
        visits,
        [line["model_version"] for line in lines],
        np.array([line["order"] for line in lines], np.int64),
        np.array([line["propensity"] is not None for line in lines]),
        {name: np.array([of_request[name] for of_request in tasks], np.float64) for name in tasks[0]},
    )
