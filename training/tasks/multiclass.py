"""One of several classes as it is learned: softmax cross entropy. A label is the index of its class.

Shapes: B rows, C classes of a task, O outputs of several tasks, T tasks, N rows where the task is observed,
U parts of them, M moments of a label.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.tasks import MulticlassTask
from model.tasks.task import BaseTask, TargetScale
from training.columns import floats, plain
from training.metrics.metrics import calibration_ratio
from training.metrics.multiclass import (
    A_CLASS_IS_ABSENT,
    ONE_CLASS,
    class_entropies,
    entropy_on_draws,
    evaluate_multiclass,
    is_right,
    losses_of_shares,
    macro_auc,
    macro_auc_on_draws,
    normalized_class_entropy,
    softmax,
)
from training.tasks.learned import Bootstrap, Floats, LearnedTask, Mask, Sample
from training.tasks.metric import Metric, mean_on_draws
from training.tasks.probability_maps import CalibrationKind, ProbabilityMap, fit_bias_corrected_temperature

# Of a label that is none of the classes.
UNKNOWN = -1.0
SHOWN = 8


class LearnedMulticlass(LearnedTask):
    """One of several classes."""

    table_columns = ("class", "rows", "NE", "log loss", "accuracy", "AUC", "calibration")
    has_right_answers = True
    metrics: ClassVar[dict[str, Metric]] = {
        "normalized_entropy": Metric(
            "NE",
            "lower",
            lambda y, x, _: normalized_class_entropy(y, softmax(x)),
            lambda y, x, codes_B, groups: entropy_on_draws(y, softmax(x), codes_B, groups),
            ONE_CLASS,
        ),
        "accuracy": Metric(
            "accuracy", "higher", lambda y, x, _: float(np.mean(is_right(y, x))), mean_on_draws(is_right), "no rows"
        ),
        "log_loss": Metric(
            "log loss",
            "lower",
            lambda y, x, _: float(class_entropies(y, softmax(x)).mean()),
            mean_on_draws(lambda y, x: class_entropies(y, softmax(x))),
            "no rows",
        ),
        "macro_auc": Metric(
            "macro AUC",
            "higher",
            lambda y, x, _: macro_auc(y, softmax(x)),
            lambda y, x, codes_B, _: macro_auc_on_draws(y, softmax(x), codes_B),
            A_CLASS_IS_ABSENT,
        ),
    }

    def __init__(self, task: BaseTask, scale: TargetScale | None) -> None:
        super().__init__(task, scale)
        assert isinstance(task, MulticlassTask)
        self.classes = task.class_names
        self._values = list(task.classes)

    def labels(self, column: pa.ChunkedArray) -> Floats:
        """Indices of the classes, `UNKNOWN` where a value is none of them, NaN where there is none."""
        values = plain(column)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            known = pa.array(map(str, self._values), values.type)
            indices = pc.fill_null(pc.index_in(values, value_set=known), int(UNKNOWN))
            return np.where(values.is_null().to_numpy(), np.nan, indices.to_numpy())
        if not pa.types.is_null(values.type) and not all(isinstance(value, int) for value in self._values):
            raise ValueError(
                f"is {values.type}, and classes has texts, which are values of a string column. For an integer column "
                "give a mapping from its values to names"
            )
        numbers_B = floats(values)
        indices_B = np.full(len(numbers_B), UNKNOWN)
        for index, value in enumerate(self._values):
            indices_B[numbers_B == value] = index
        return np.where(np.isnan(numbers_B), np.nan, indices_B)

    @property
    def label_rule(self) -> str:
        """The classes' values."""
        values = list(map(str, self._values))
        return f"must be one of {', '.join(values[:SHOWN])}" + (", ..." if len(values) > SHOWN else "")

    def are_labels(self, labels_B: Floats) -> Mask:
        """Mask of indices."""
        return labels_B >= 0

    @property
    def num_classes(self) -> int:
        """Number of the classes of the schema."""
        return len(self.classes)

    def label_words(self, label: float) -> str:
        """The name of the class."""
        return self.classes[int(label)]

    def label_report(self, rates: Sequence[float | None]) -> dict[str, Any]:
        """The share of each class."""
        return {"class_shares": dict(zip(self.classes, rates, strict=True))}

    @classmethod
    def losses(cls, tasks: Sequence[BaseTask], offsets: Sequence[float]) -> nn.Module:
        """Softmax cross entropy."""
        return ClassEntropies([len(task.outputs) for task in tasks])

    def encoded_labels(self, labels_B: Floats) -> dict[str, Floats]:
        """The share of each class."""
        return {name: (labels_B == index).astype(np.float64) for index, name in enumerate(self.classes)}

    @staticmethod
    def label_counts(labels_N: Floats) -> dict[str, int]:
        """Rows of the rarest class that has any."""
        return {"rarest_class": int(np.unique(labels_N, return_counts=True)[1].min())} if len(labels_N) else {}

    def measure(
        self, sample: Sample, picked_N: Mask, validation: Sample | None, bootstrap: Bootstrap
    ) -> dict[str, Any]:
        """Metrics of `evaluate_multiclass`."""
        labels_N, probabilities_NC = sample.labels_N[picked_N], softmax(sample.logits_NO[picked_N])
        groups_N = sample.groups_N[picked_N]
        return asdict(evaluate_multiclass(labels_N, probabilities_NC, groups_N, self.classes, **asdict(bootstrap)))

    @staticmethod
    def table_rows(measured: dict[str, Any]) -> list[list[Any]]:
        """One row for the task, whose AUC is the mean of its classes', and one for each class."""
        metrics = ("normalized_entropy", "log_loss", "accuracy", "macro_auc")
        whole = ["all", f"{measured['rows']:,}", *(measured[metric] for metric in metrics), ""]
        of_classes = [
            [name, f"{one['rows']:,}", "", "", "", one["auc"], one["calibration_ratio"]]
            for name, one in measured["classes"].items()
        ]
        return [whole, *of_classes]

    def fit_map(
        self, kind: CalibrationKind, labels_N: Floats, answers_NO: Floats, weights_N: Floats | None = None
    ) -> ProbabilityMap:
        """One slope and an intercept a class, whichever kind was chosen for binary tasks."""
        return fit_bias_corrected_temperature(labels_N, answers_NO, weights_N)

    def calibration_of(self, labels_N: Floats, answers_NO: Floats, weights_N: Floats | None = None) -> dict[str, Any]:
        """Normalized entropy, and each class's calibration ratio."""
        ratios = {
            name: calibration_ratio(labels_N == index, answers_NO[:, index], weights_N)
            for index, name in enumerate(self.classes)
        }
        entropy = normalized_class_entropy(labels_N, answers_NO, weights_N) if len(labels_N) else None
        return {"normalized_entropy": entropy, "calibration_ratio": ratios}

    @property
    def tree_objective(self) -> dict[str, str | int]:
        """Of the same loss: a tree a class."""
        return {"objective": "multiclass", "metric": "multi_logloss", "num_class": len(self.classes)}

    def constant_outputs(self, labels_N: Floats) -> list[float]:
        """The logits with half a row of each class more: that of 0 is not finite."""
        counts_C = np.bincount(labels_N.astype(np.int64), minlength=len(self.classes))
        logits: list[float] = np.log((counts_C + 0.5) / (counts_C + 0.5).sum()).tolist()
        return logits

    def log_likelihood(self, logits_BO: Tensor, targets_B: Tensor) -> Tensor:
        """Negative cross entropy."""
        return -functional.cross_entropy(logits_BO, targets_B.long(), reduction="none")

    def is_right(self, logits_BO: Tensor, targets_B: Tensor) -> Tensor:
        """Right where the label's class is the likeliest."""
        return logits_BO.argmax(dim=1) == targets_B.long()

    def relative_error(self, logits_BO: Floats, targets_B: Floats) -> float:
        """Normalized entropy."""
        entropy = normalized_class_entropy(targets_B, softmax(logits_BO))
        assert entropy is not None, "two labels are there"
        return entropy

    def losses_of_answers(self, labels_N: Floats, answers_NO: Floats) -> Floats:
        """Cross entropy, in nats."""
        return class_entropies(labels_N, answers_NO)

    def losses_of_constant(self, moments_UM: Floats, rows_U: Floats) -> Floats:
        """Cross entropy of the classes' shares."""
        return losses_of_shares(moments_UM)


class ClassEntropies(nn.Module):
    """logits_BO, targets_BT -> losses_BT of tasks with so many classes each."""

    def __init__(self, classes: Sequence[int]) -> None:
        super().__init__()
        self._classes = list(classes)

    def forward(self, logits_BO: Tensor, targets_BT: Tensor) -> Tensor:
        """losses_BT."""
        logits = torch.split(logits_BO, self._classes, dim=1)
        pairs = zip(logits, targets_BT.long().unbind(1), strict=True)
        return torch.stack([functional.cross_entropy(*pair, reduction="none") for pair in pairs], dim=1)
