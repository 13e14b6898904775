"""Uncertainty weighting: a learned log variance per task, in place of loss weights chosen by hand.

A. Kendall, Y. Gal, R. Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, equations 5 to 10.
With s = log sigma^2 a regression task contributes exp(-s) * L / 2 + s / 2, one with classes exp(-s) * L + s / 2. Loss
weights multiply whole contributions, so a loss weight of 0 still switches a task off.

Shapes: T tasks.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from model.strict_yaml import StrictModel
from training.step.balancing.base import Balancing
from training.step.balancing.losses import TaskLosses


class UncertaintyWeighting(Balancing):
    """Minimises the losses and log_variances_T together. The variances start at 1."""

    def __init__(self, losses: TaskLosses, learning_rate: float) -> None:
        super().__init__(losses)
        self.learning_rate = learning_rate
        self.log_variances_T = nn.Parameter(torch.zeros(len(losses.weights_T)))

    def total(self, losses_T: Tensor) -> Tensor:
        """The sum of the tasks' contributions, those without a counting label in this batch left out."""
        parts_T = self._factors_T() * losses_T + 0.5 * self.log_variances_T
        # A loss of exactly 0 says that no label counted. Its s / 2 alone would pull the variance down without end.
        return self.losses.total(torch.where(losses_T > 0, parts_T, 0.0))

    def _factors_T(self) -> Tensor:
        return self.losses.precisions_T * torch.exp(-self.log_variances_T)

    def learned_weights(self) -> Tensor:
        """The factors of the losses, 1 / (2 sigma^2) for a regression task and 1 / sigma^2 for one with classes."""
        return self._factors_T().detach()


class UncertaintyConfig(StrictModel):
    """`kind: uncertainty`. `learning_rate` is that of the log variances, on the schedule of the others."""

    kind: Literal["uncertainty"]
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01

    def build(self, losses: TaskLosses, seed: int) -> UncertaintyWeighting:
        """The module with its log variances at 0."""
        return UncertaintyWeighting(losses, self.learning_rate)
