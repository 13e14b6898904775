"""The metrics of a comparison: which task kind each is for, which direction is better, its value on a split.

In: a task's labels and outputs [B], and the users of the rows. Binary tasks have labels 0 or 1 and logits. Regression
tasks have both on the scale that is learned, log1p where the task says so. Out: a value, or None with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator
from scipy.special import expit

from model.schema import FeedSchema
from model.strict_yaml import unknown_key
from training.metrics.metrics import ONE_CLASS, auc, calibration_ratio, gauc, mse, normalized_entropy

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name, its measure, and when it is undefined."""

    title: str
    kind: Literal["binary", "regression"]
    better: Literal["higher", "lower"] | None
    value: Callable[[Floats, Floats, NDArray[Any]], float | None]
    undefined: str


METRICS: dict[str, Metric] = {
    "auc": Metric("AUC", "binary", "higher", lambda y, x, _: auc(y, x), ONE_CLASS),
    "normalized_entropy": Metric("NE", "binary", "lower", lambda y, x, _: normalized_entropy(y, expit(x)), ONE_CLASS),
    "gauc": Metric(
        "GAUC", "binary", "higher", lambda y, x, g: gauc(y, x, g).value, "no group has labels of both classes"
    ),
    # Right at the threshold of probability 1/2: says little of a rare class, and stands in the papers' tables.
    "accuracy": Metric("accuracy", "binary", "higher", lambda y, x, _: float(np.mean((x > 0) == (y > 0.5))), "no rows"),
    "calibration_ratio": Metric(
        "calibration", "binary", None, lambda y, x, _: calibration_ratio(y, expit(x)), "no positive label"
    ),
    "mse": Metric("MSE", "regression", "lower", lambda y, x, _: mse(y, x), "no rows"),
}


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(unknown_key(name, list(METRICS), "metric"))
    return name


MetricName = Annotated[str, AfterValidator(_known_metric)]
TaskNames = Literal["all"] | tuple[str, ...]


def measured_tasks(place: str, metric: str, wanted: TaskNames, schema: FeedSchema) -> list[str]:
    """The tasks named. `all` are those that the metric measures. Raises ValueError for any other, naming the place."""
    kind = METRICS[metric].kind
    measured = [task.name for task in schema.tasks if task.kind == kind]
    if not measured:
        raise ValueError(f"{place}.metric: '{metric}' is for {kind} tasks, and the feed has none")
    if wanted == "all":
        return measured
    for name in wanted:
        if name not in [task.name for task in schema.tasks]:
            raise ValueError(f"{place}.tasks: " + unknown_key(name, measured, "task"))
        if name not in measured:
            raise ValueError(f"{place}.tasks: '{name}' is no {kind} task, so it has no {metric}")
    return list(wanted)


@dataclass(frozen=True, slots=True)
class TaskTruth:
    """A task's observed rows of a split: which they are, their labels and their users."""

    name: str
    kind: str
    rows_B: NDArray[np.int64]
    labels_B: Floats
    groups_B: NDArray[np.int64]

    def measure(self, metric: str, outputs_BO: NDArray[np.float32], position: int) -> tuple[float | None, str | None]:
        """The metric of a network's outputs on this task, or None and why."""
        if not len(self.rows_B):
            return None, "no rows"
        outputs_B = outputs_BO[self.rows_B, position].astype(np.float64)
        value = METRICS[metric].value(self.labels_B, outputs_B, self.groups_B)
        return value, METRICS[metric].undefined if value is None else None
