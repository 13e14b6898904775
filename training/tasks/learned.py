"""Base of every kind of task as it is learned: the operations in which kinds differ.

In: a task of the schema, with the scale of its label where it has one. Out: labels of a log's column, targets of the
loss, the loss itself, and what is measured of it. A kind is a file beside this one, and its line in training.tasks.

Shapes: B rows, O outputs of the task (or of the tasks of a run), T tasks of a run, N rows where the task is observed,
U parts of them, M moments of a label.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn

from model.tasks.task import BaseTask, TargetScale
from training.columns import floats
from training.tasks.metric import Metric
from training.tasks.probability_maps import CalibrationKind, ProbabilityMap

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Outputs = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of a split whose label counts: labels_N, the task's logits_NO, and the group (user) of each."""

    labels_N: Floats
    logits_NO: Floats
    groups_N: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Draws of groups that intervals come from."""

    replicates: int
    seed: int = 0


class LearnedTask(ABC):
    """A task as it is learned."""

    has_right_answers: ClassVar[bool] = False
    # Times that the loss over sigma^2 counts in the log likelihood (Kendall et al. 2018, equations 5 to 10).
    precision: ClassVar[float] = 1.0
    # Those by which networks are compared, by name.
    metrics: ClassVar[dict[str, Metric]]
    # Columns of an evaluation's table, behind the task.
    table_columns: ClassVar[tuple[str, ...]]
    # Words for a validation split without two labels.
    one_label: ClassVar[str] = "has one label only"

    def __init__(self, task: BaseTask, scale: TargetScale | None) -> None:
        self.task = task
        self._scale = scale

    @property
    def scale(self) -> TargetScale:
        """The scale of the label, of a kind that has one."""
        assert self._scale is not None
        return self._scale

    def labels(self, column: pa.ChunkedArray) -> Floats:
        """labels_B of the log's column, NaN where there is none. Raises ValueError for a type that has no labels."""
        return floats(column)

    @property
    @abstractmethod
    def label_rule(self) -> str:
        """The rule that labels keep, as a message says it."""

    def shown_label(self, label: object) -> str:
        """A label of the log that breaks the rule, as a message shows it."""
        return f"{label:g}" if isinstance(label, int | float) else repr(label)

    def are_labels(self, labels_B: Floats) -> Mask:
        """Mask of the rows that keep the rule."""
        return self.task.are_labels(labels_B)

    @property
    def num_classes(self) -> int | None:
        """Number of values that labels have, None of a quantity."""
        return None

    def label_words(self, label: float) -> str:
        """A label, as a message names it."""
        return f"{label:g}"

    @abstractmethod
    def label_report(self, rates: Sequence[float | None]) -> dict[str, Any]:
        """Sentence of a data report on the means of `encoded_labels`."""

    def targets(self, labels_B: Floats) -> Floats:
        """targets_B that the loss compares with."""
        return labels_B

    @classmethod
    @abstractmethod
    def losses(cls, tasks: Sequence[BaseTask], offsets: Sequence[float]) -> nn.Module:
        """The module of tasks of this kind: logits_BO, targets_BT -> losses_BT of single rows. `offsets` are added to
        logits in the loss alone (training/fit/negative_sampling.py)."""

    def learned_outputs(self, logits_BO: Outputs) -> Outputs:
        """outputs_BO that are kept of a network: its logits, on the scale of transformed labels."""
        return logits_BO

    @staticmethod
    def label_counts(labels_N: Floats) -> dict[str, int]:
        """Counts of labels in a report, beside the rows, by their name there."""
        return {}

    @property
    def is_mapped(self) -> bool:
        """True where answers are mapped, and the map is fitted on the validation split."""
        return False

    def bare_answers(self, logits_NO: Floats) -> Floats:
        """answers_N in the label's unit as the exported module gives them, of a kind that has a scale."""
        raise NotImplementedError

    @abstractmethod
    def measure(
        self, sample: Sample, picked_N: Mask, validation: Sample | None, bootstrap: Bootstrap
    ) -> dict[str, Any]:
        """Metrics of the picked rows of a sample, with intervals, as JSON. `validation` is what a map is fitted on,
        None where the sample is that itself."""

    @staticmethod
    @abstractmethod
    def table_rows(measured: dict[str, Any]) -> list[list[Any]]:
        """Rows of an evaluation's table: words and metrics with their intervals."""

    def fit_map(
        self, kind: CalibrationKind, labels_N: Floats, answers_NO: Floats, weights_N: Floats | None = None
    ) -> ProbabilityMap:
        """The map that calibrates probabilities, of a kind that answers them. Weights of rows are above 0, with mean 1.
        Raises NotCalibratedError."""
        raise NotImplementedError

    def calibration_of(self, labels_N: Floats, answers_NO: Floats, weights_N: Floats | None = None) -> dict[str, Any]:
        """Normalized entropy and calibration ratios of probabilities, of a kind that answers them."""
        raise NotImplementedError

    @property
    @abstractmethod
    def tree_objective(self) -> dict[str, str | int]:
        """LightGBM's objective, and the metric that chooses the number of trees."""

    def encoded_labels(self, labels_B: Floats) -> dict[str, Floats]:
        """The values whose means reports and trees' target encodings take, by name: one for each output."""
        return {"mean": labels_B}

    def outputs_of_trees(self, scores_BO: Floats) -> Floats:
        """outputs_BO, as `learned_outputs` of a network, of trees' raw scores."""
        return scores_BO

    @abstractmethod
    def constant_outputs(self, labels_N: Floats) -> list[float]:
        """The outputs that are kept where there are no trees: all of the training labels are the same."""

    @abstractmethod
    def log_likelihood(self, logits_BO: Tensor, targets_B: Tensor) -> Tensor:
        """Log likelihood of each row's target, up to a constant: the reward of a route. [B]"""

    def is_right(self, logits_BO: Tensor, targets_B: Tensor) -> Tensor:
        """Mask [B] of the rows whose likeliest answer is the target, of a kind that has right answers."""
        raise NotImplementedError

    @abstractmethod
    def relative_error(self, logits_BO: Floats, targets_B: Floats) -> float:
        """Error over that of a constant answer: 1 is no better, lower is better. The targets are not all the same."""

    @abstractmethod
    def losses_of_answers(self, labels_N: Floats, answers_NO: Floats) -> Floats:
        """losses_N of answers in the label's unit, as a service gives them: what NE is made of."""

    def impressions(self, labels_N: Floats) -> Floats:
        """Number of impressions that each row of a log represents. [N]"""
        return np.ones(len(labels_N))

    def label_moments(self, labels_N: Floats) -> Floats:
        """moments_NM of labels: values whose sums over rows give the loss of any constant answer."""
        return np.stack(list(self.encoded_labels(labels_N).values()), axis=1)

    @abstractmethod
    def losses_of_constant(self, moments_UM: Floats, rows_U: Floats) -> Floats:
        """losses_U of parts of the rows under the one answer that is best for all of them together. In are the sums of
        `label_moments`, and the rows, of each part."""
