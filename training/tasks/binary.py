"""Yes/no outcomes as they are learned: cross entropy of a 0/1 label.

`positive_weight` p of a task counts the loss of its positive rows p times. That alone would inflate the learned odds by
p. So the loss is taken at `logit + log p`: weighted cross entropy there is smallest where the logit itself has the
log's own odds. Everything behind the logit (metrics, answers, value models) needs no correction.

Shapes: B rows, O outputs and T tasks, one output a task, N rows where the task is observed,
U parts of them, M moments of a label.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional

from model.tasks import BinaryTask
from model.tasks.task import BaseTask
from training.metrics.metrics import (
    ONE_CLASS,
    auc,
    auc_on_draws,
    calibration_ratio,
    cross_entropy,
    entropy_on_draws,
    evaluate_binary,
    gauc,
    gauc_on_draws,
    normalized_entropy,
)
from training.metrics.multiclass import losses_of_shares
from training.tasks.focal import FocalLosses
from training.tasks.learned import Bootstrap, Floats, LearnedTask, Mask, Sample
from training.tasks.metric import Metric, mean_on_draws
from training.tasks.probability_maps import CalibrationKind, ProbabilityMap, fit_isotonic, fit_platt


def is_right(labels_B: Floats, outputs_BO: Floats) -> Mask:
    """Mask of the rows whose logit is on the side of their label."""
    is_right_B: Mask = (outputs_BO[:, 0] > 0) == (labels_B > 0.5)
    return is_right_B


class LearnedBinary(LearnedTask):
    """A yes/no outcome."""

    metrics: ClassVar[dict[str, Metric]] = {
        "auc": Metric(
            "AUC", "higher", lambda y, x, _: auc(y, x[:, 0]), lambda y, x, g, _: auc_on_draws(y, x[:, 0], g), ONE_CLASS
        ),
        "normalized_entropy": Metric(
            "NE",
            "lower",
            lambda y, x, _: normalized_entropy(y, expit(x[:, 0])),
            lambda y, x, g, n: entropy_on_draws(y, expit(x[:, 0]), g, n),
            ONE_CLASS,
        ),
        "gauc": Metric(
            "GAUC",
            "higher",
            lambda y, x, g: gauc(y, x[:, 0], g),
            lambda y, x, g, n: gauc_on_draws(y, x[:, 0], g, n),
            "no group has labels of both classes",
        ),
        # Right at the threshold of probability 1/2: says little of a rare class, and is in the papers' tables.
        "accuracy": Metric(
            "accuracy", "higher", lambda y, x, _: float(np.mean(is_right(y, x))), mean_on_draws(is_right), "no rows"
        ),
        "calibration_ratio": Metric(
            "calibration", None, lambda y, x, _: calibration_ratio(y, expit(x[:, 0])), None, "no positive label"
        ),
    }
    table_columns = ("positives", "NE", "AUC", "GAUC", "calibration")
    has_right_answers = True
    label_rule = "must be 0 or 1"

    @property
    def num_classes(self) -> int:
        """Two."""
        return 2

    def label_report(self, rates: Sequence[float | None]) -> dict[str, Any]:
        """The share of positives."""
        return {"label_rate": rates[0]}

    @classmethod
    def losses(cls, tasks: Sequence[BaseTask], offsets: Sequence[float]) -> nn.Module:
        """Cross entropy, by positive weight, and focal losses beside it."""
        binary = [task for task in tasks if isinstance(task, BinaryTask)]
        entropies = CrossEntropies([task.positive_weight for task in binary], offsets)
        terms = [task.focal for task in binary]
        return FocalLosses(entropies, terms, offsets) if any(terms) else entropies

    @staticmethod
    def label_counts(labels_N: Floats) -> dict[str, int]:
        """Positives."""
        return {"positives": int(labels_N.sum())}

    def measure(
        self, sample: Sample, picked_N: Mask, validation: Sample | None, bootstrap: Bootstrap
    ) -> dict[str, Any]:
        """Metrics of `evaluate_binary`."""
        labels_N, probabilities_N = sample.labels_N[picked_N], expit(sample.logits_NO[picked_N, 0])
        return asdict(evaluate_binary(labels_N, probabilities_N, sample.groups_N[picked_N], **asdict(bootstrap)))

    @staticmethod
    def table_rows(measured: dict[str, Any]) -> list[list[Any]]:
        """One row."""
        metrics = ("normalized_entropy", "auc", "gauc", "calibration_ratio")
        return [[f"{measured['positives']:,}", *(measured[metric] for metric in metrics)]]

    def fit_map(
        self, kind: CalibrationKind, labels_N: Floats, answers_NO: Floats, weights_N: Floats | None = None
    ) -> ProbabilityMap:
        """By the kind that was chosen."""
        fit = fit_isotonic if kind == "isotonic" else fit_platt
        return fit(labels_N, answers_NO[:, 0], self._impressions(labels_N, weights_N))

    def calibration_of(self, labels_N: Floats, answers_NO: Floats, weights_N: Floats | None = None) -> dict[str, Any]:
        """Of all impressions, those of dropped negatives too."""
        found = (labels_N, answers_NO[:, 0], self._impressions(labels_N, weights_N))
        return {"normalized_entropy": normalized_entropy(*found), "calibration_ratio": calibration_ratio(*found)}

    def impressions(self, labels_N: Floats) -> Floats:
        """More than 1 of a negative, where a log has a share of them."""
        assert isinstance(self.task, BinaryTask)
        return np.where(labels_N == 0, 1 / self.task.negative_sampling_rate, 1.0)

    def _impressions(self, labels_N: Floats, weights_N: Floats | None) -> Floats:
        impressions_N = self.impressions(labels_N)
        return impressions_N if weights_N is None else impressions_N * weights_N

    @property
    def tree_objective(self) -> dict[str, str | int]:
        """Of the same loss."""
        return {"objective": "binary", "metric": "binary_logloss"}

    def constant_outputs(self, labels_N: Floats) -> list[float]:
        """The logit with half a row of each class more: that of 0 or 1 is not finite."""
        return [float(np.log((labels_N.sum() + 0.5) / (len(labels_N) - labels_N.sum() + 0.5)))]

    def log_likelihood(self, logits_BO: Tensor, targets_B: Tensor) -> Tensor:
        """Negative cross entropy, without weights."""
        return -functional.binary_cross_entropy_with_logits(logits_BO[:, 0], targets_B, reduction="none")

    def is_right(self, logits_BO: Tensor, targets_B: Tensor) -> Tensor:
        """Right at the threshold of probability 1/2."""
        return (logits_BO[:, 0] > 0) == (targets_B > 0.5)

    def relative_error(self, logits_BO: Floats, targets_B: Floats) -> float:
        """Normalized entropy."""
        entropy = normalized_entropy(targets_B, expit(logits_BO[:, 0]))
        assert entropy is not None, "both labels are there"
        return entropy

    def losses_of_answers(self, labels_N: Floats, answers_NO: Floats) -> Floats:
        """Cross entropy, in nats."""
        return cross_entropy(labels_N, answers_NO[:, 0])

    def losses_of_constant(self, moments_UM: Floats, rows_U: Floats) -> Floats:
        """Cross entropy of the base rate."""
        positives_U = moments_UM[:, 0]
        return losses_of_shares(np.stack([positives_U, rows_U - positives_U], axis=1))


class CrossEntropies(nn.Module):
    """logits_BO, targets_BT -> losses_BT."""

    positive_weights_T: Tensor
    offsets_T: Tensor

    def __init__(self, positive_weights: Sequence[float], offsets: Sequence[float]) -> None:
        super().__init__()
        positive_weights_T = torch.tensor(positive_weights)
        self.register_buffer("positive_weights_T", positive_weights_T, persistent=False)
        self.register_buffer("offsets_T", positive_weights_T.log() + torch.tensor(offsets), persistent=False)
        self._is_plain = bool((self.offsets_T == 0).all() and (positive_weights_T == 1.0).all())

    def forward(self, logits_BO: Tensor, targets_BT: Tensor) -> Tensor:
        """losses_BT."""
        if self._is_plain:
            return functional.binary_cross_entropy_with_logits(logits_BO, targets_BT, reduction="none")
        return functional.binary_cross_entropy_with_logits(
            logits_BO + self.offsets_T, targets_BT, reduction="none", pos_weight=self.positive_weights_T
        )
