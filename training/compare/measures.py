"""The metrics of a comparison: which task kind each is for, which direction is better, its value on a split.

In: a task's labels and outputs [B], and the users of the rows. Binary tasks have labels 0 or 1 and logits. Regression
tasks have both on the scale that is learned, log1p where the task says so. Out: a value, or None with the reason.

Shapes: B rows, O outputs.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from model.schema import FeedSchema
from model.strict_yaml import unknown_key
from training.metrics.bootstrap import Floats, Statistic
from training.tasks import KINDS
from training.tasks.metric import Metric

# Those of every kind of task, by name. Of a name that several kinds have, title and direction are the same.
METRICS: dict[str, Metric] = {name: metric for kind in KINDS.values() for name, metric in kind.metrics.items()}


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(unknown_key(name, list(METRICS), "metric"))
    return name


MetricName = Annotated[str, AfterValidator(_known_metric)]
TaskNames = Literal["all"] | tuple[str, ...]


def measured_tasks(place: str, metric: str, wanted: TaskNames, schema: FeedSchema) -> list[str]:
    """The tasks named. `all` are those that the metric measures. Raises ValueError for any other, naming the place."""
    kinds = " and ".join(kind for kind, learned in KINDS.items() if metric in learned.metrics)
    measured = [task.name for task in schema.tasks if metric in KINDS[task.kind].metrics]
    if not measured:
        raise ValueError(f"{place}.metric: '{metric}' is for {kinds} tasks, and the feed has none")
    if wanted == "all":
        return measured
    for name in wanted:
        if name not in [task.name for task in schema.tasks]:
            raise ValueError(f"{place}.tasks: " + unknown_key(name, measured, "task"))
        if name not in measured:
            raise ValueError(f"{place}.tasks: '{name}' is no {kinds} task, so it has no {metric}")
    return list(wanted)


@dataclass(frozen=True, slots=True)
class TaskTruth:
    """A task's observed rows of a split: which they are, their labels and their users."""

    name: str
    kind: str
    columns: slice
    rows_B: NDArray[np.int64]
    labels_B: Floats
    groups_B: NDArray[np.int64]

    def measure(self, metric: str, outputs_BO: NDArray[np.float32]) -> tuple[float | None, str | None]:
        """The metric of a network's outputs, or None and why."""
        if not len(self.rows_B):
            return None, "no rows"
        measure = KINDS[self.kind].metrics[metric]
        value = measure.value(self.labels_B, self.outputs_of(outputs_BO), self.groups_B)
        return value, measure.undefined if value is None else None

    def on_draws(self, metric: str, outputs_BO: Floats, num_groups: int) -> Statistic:
        """The metric of this task's outputs on its rows, on draws of groups."""
        on_draws = KINDS[self.kind].metrics[metric].on_draws
        assert on_draws is not None, f"no bootstrap of {metric}"
        return on_draws(self.labels_B, outputs_BO, self.groups_B, num_groups)

    def outputs_of(self, outputs_BO: NDArray[np.float32]) -> Floats:
        """This task's outputs on its rows, of all tasks' on the split."""
        return outputs_BO[self.rows_B, self.columns].astype(np.float64)
