"""Quantities as they are learned: squared error on the transformed, standardised scale.

Shapes: B rows, O outputs and T tasks, one output a task, N rows where the task is observed,
U parts of them, M moments of a label.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from scipy.special import kl_div, xlogy
from torch import Tensor, nn
from torch.nn import functional

from model.tasks.task import BaseTask
from training.metrics.metrics import ONE_VALUE, evaluate_regression, mse, xauc
from training.metrics.pair_order import xauc_on_draws
from training.tasks.label_mean_map import NoLabelMeanError, cross_fitted, fit_label_mean
from training.tasks.learned import Bootstrap, Floats, LearnedTask, Mask, Outputs, Sample
from training.tasks.metric import Metric, mean_on_draws

log = logging.getLogger(__name__)


class LearnedRegression(LearnedTask):
    """A quantity."""

    metrics: ClassVar[dict[str, Metric]] = {
        "mse": Metric(
            "MSE",
            "lower",
            lambda y, x, _: mse(y, x[:, 0]),
            mean_on_draws(lambda y, x: (x[:, 0] - y) ** 2),
            "no rows",
        ),
        "xauc": Metric(
            "XAUC",
            "higher",
            lambda y, x, _: xauc(y, x[:, 0]),
            lambda y, x, g, n: xauc_on_draws(y, x[:, 0], g, n),
            ONE_VALUE,
        ),
    }
    table_columns = ("scale", "calibration", "MSE", "RMSE", "MAE", "Spearman", "XAUC")
    precision = 0.5
    label_rule = "must be a finite number >= 0"
    one_label = "has labels that are equal in float32"

    def label_report(self, rates: Sequence[float | None]) -> dict[str, Any]:
        """The mean label."""
        return {"label_mean": rates[0]}

    def targets(self, labels_B: Floats) -> Floats:
        """Labels transformed and standardised."""
        return (self.task.transformed(labels_B) - self.scale.mean) / self.scale.scale

    def learned_outputs(self, logits_BO: Outputs) -> Outputs:
        """Predictions on the transformed scale, where no quantity is below 0."""
        outputs_BO: Outputs = np.maximum(logits_BO * self.scale.scale + self.scale.mean, 0.0)
        return outputs_BO

    @classmethod
    def losses(cls, tasks: Sequence[BaseTask], offsets: Sequence[float]) -> nn.Module:
        """Squared error."""
        return SquaredErrors()

    @property
    def is_mapped(self) -> bool:
        """True of a transformed scale, whose bare inverse is no mean."""
        return self.task.scaling != "none"

    def measure(
        self, sample: Sample, picked_N: Mask, validation: Sample | None, bootstrap: Bootstrap
    ) -> dict[str, Any]:
        """Metrics of `evaluate_regression` in the label's unit, and on the scale that is learned where it is
        another."""
        labels_N, groups_N = sample.labels_N[picked_N], sample.groups_N[picked_N]
        means_N, how = self._means(sample, validation)
        found = asdict(evaluate_regression(labels_N, means_N[picked_N], groups_N, **asdict(bootstrap)))
        if self.is_mapped:
            learned_N = np.maximum(sample.logits_NO[picked_N, 0] * self.scale.scale + self.scale.mean, 0.0)
            on_scale = evaluate_regression(self.task.transformed(labels_N), learned_N, groups_N, **asdict(bootstrap))
            found |= {"label_mean": how, str(self.task.scaling): asdict(on_scale)}
        return found

    def _means(self, sample: Sample, validation: Sample | None) -> tuple[Floats, str | None]:
        """means_N in the label's unit, and on what their map was fitted."""
        bare_N = self.bare_answers(sample.logits_NO)
        if not self.is_mapped:
            return bare_N, None
        try:
            if validation is None:
                means_N = cross_fitted(sample.labels_N, bare_N, sample.groups_N, self.scale.upper)
                return means_N, "cross-fitted on the validation split"
            mapping = fit_label_mean(validation.labels_N, self.bare_answers(validation.logits_NO), self.scale.upper)
        except NoLabelMeanError as error:
            log.warning("task %s is measured without a correction to its label's mean: %s", self.task.name, error)
            return bare_N, f"none: {error}"
        return mapping(bare_N), "fitted on the validation split"

    def bare_answers(self, logits_NO: Floats) -> Floats:
        """The inverse of what is learned, from 0 to the bound, before any map (model.tasks.answers.Quantities)."""
        transformed_N = np.maximum(logits_NO[:, 0] * self.scale.scale + self.scale.mean, 0.0)
        return np.minimum(self.task.inverse(transformed_N), self.scale.upper)

    @staticmethod
    def table_rows(measured: dict[str, Any]) -> list[list[Any]]:
        """One row, and one for the scale that is learned where it is another."""
        metrics = ("calibration_ratio", "mse", "rmse", "mae", "spearman", "xauc")
        scales = {"label's unit": measured, "log1p": measured.get("log1p")}
        return [[scale, *(one[metric] for metric in metrics)] for scale, one in scales.items() if one is not None]

    @property
    def tree_objective(self) -> dict[str, str | int]:
        """Of the same loss."""
        return {"objective": "regression", "metric": "l2"}

    def outputs_of_trees(self, scores_BO: Floats) -> Floats:
        """Trees' values, none below 0."""
        return np.maximum(scores_BO, 0.0)

    def constant_outputs(self, labels_N: Floats) -> list[float]:
        """The one label. Without any, the fit of the label's scale has refused the data."""
        return [float(labels_N[0])]

    def log_likelihood(self, logits_BO: Tensor, targets_B: Tensor) -> Tensor:
        """The term of a normal distribution of unit spread around the standardised prediction."""
        return -0.5 * (logits_BO[:, 0] - targets_B).square()

    def relative_error(self, logits_BO: Floats, targets_B: Floats) -> float:
        """Mean squared error over the targets' variance."""
        return float(np.mean((logits_BO[:, 0] - targets_B) ** 2) / np.var(targets_B))

    def losses_of_answers(self, labels_N: Floats, answers_NO: Floats) -> Floats:
        """Squared error, or half a Poisson law's deviance of labels and answers plus 1 each where they are learned by
        log1p.

        Both are least on average where answers are the labels' means (Savage 1971). The deviance counts an error by its
        share of the label. Squared errors of a quantity with a long tail are those of its few largest labels."""
        if self.is_mapped:
            deviances_N: Floats = kl_div(labels_N + 1, answers_NO[:, 0] + 1)
            return deviances_N
        return (answers_NO[:, 0] - labels_N) ** 2

    def label_moments(self, labels_N: Floats) -> Floats:
        """Labels, and their squares or what the deviance has of labels alone."""
        of_labels_N = xlogy(labels_N + 1, labels_N + 1) if self.is_mapped else labels_N**2
        return np.stack([labels_N, of_labels_N], axis=1)

    def losses_of_constant(self, moments_UM: Floats, rows_U: Floats) -> Floats:
        """Losses of the mean."""
        labels_U, of_labels_U = moments_UM.T
        mean = labels_U.sum() / rows_U.sum() if rows_U.any() else 0.0
        if self.is_mapped:
            losses_U: Floats = of_labels_U - (labels_U + rows_U) * np.log(mean + 1) - labels_U + mean * rows_U
        else:
            losses_U = of_labels_U - 2 * mean * labels_U + mean**2 * rows_U
        return losses_U


class SquaredErrors(nn.Module):
    """logits_BO, targets_BT -> losses_BT."""

    def forward(self, logits_BO: Tensor, targets_BT: Tensor) -> Tensor:
        """losses_BT."""
        return functional.mse_loss(logits_BO, targets_BT, reduction="none")
