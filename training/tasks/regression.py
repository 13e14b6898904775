"""Quantities as they are learned: squared error on the transformed, standardised scale.

Shapes: B rows, O outputs and T tasks, one output a task.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from model.tasks import RegressionTask
from model.tasks.regression import transform_target
from model.tasks.task import BaseTask
from training.metrics.metrics import mse
from training.tasks.learned import Floats, LearnedTask, Mask, Outputs
from training.tasks.metric import Metric, mean_on_draws


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
    }
    trees: ClassVar[Mapping[str, str | int]] = {"objective": "regression", "metric": "l2"}
    precision = 0.5
    label_rule = "must be a finite number >= 0"
    one_label = "has labels that are equal in float32"

    def are_labels(self, labels_B: Floats) -> Mask:
        """Mask of finite numbers >= 0."""
        with np.errstate(invalid="ignore"):
            return (labels_B >= 0) & np.isfinite(labels_B)

    def targets(self, labels_B: Floats) -> Floats:
        """Labels transformed and standardised."""
        return (self.learned_labels(labels_B) - self.scale.mean) / self.scale.scale

    def learned_labels(self, labels_B: Floats) -> Floats:
        """Labels transformed."""
        assert isinstance(self.task, RegressionTask)
        return transform_target(labels_B, self.task.transform)

    def learned_outputs(self, logits_BO: Outputs) -> Outputs:
        """Predictions on the transformed scale, where no quantity is below 0."""
        outputs_BO: Outputs = np.maximum(logits_BO * self.scale.scale + self.scale.mean, 0.0)
        return outputs_BO

    @classmethod
    def losses(cls, tasks: Sequence[BaseTask], offsets: Sequence[float]) -> nn.Module:
        """Squared error."""
        return SquaredErrors()

    def outputs_of_trees(self, scores_BO: Floats) -> Floats:
        """Trees' values, none below 0."""
        return np.maximum(scores_BO, 0.0)

    def constant_outputs(self, labels_N: Floats) -> list[float]:
        """The one label. Without any, the fit of the label's scale has refused the data."""
        return [float(labels_N[0])]

    def log_likelihood(self, logits_BO: Tensor, targets_B: Tensor) -> Tensor:
        """That of a normal distribution of unit spread around the standardised prediction."""
        return -0.5 * (logits_BO[:, 0] - targets_B).square()

    def relative_error(self, logits_BO: Floats, targets_B: Floats) -> float:
        """Mean squared error over the targets' variance."""
        return float(np.mean((logits_BO[:, 0] - targets_B) ** 2) / np.var(targets_B))


class SquaredErrors(nn.Module):
    """logits_BO, targets_BT -> losses_BT."""

    def forward(self, logits_BO: Tensor, targets_BT: Tensor) -> Tensor:
        """losses_BT."""
        return functional.mse_loss(logits_BO, targets_BT, reduction="none")
