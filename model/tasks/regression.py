"""Quantities: one logit, the standardised prediction, answered in the label's own unit.

Shapes: N candidates, O outputs, one of each task.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.tasks.task import BaseTask, Scales, TargetScale

Transform = Literal["none", "log1p"]


class RegressionTask(BaseTask):
    """A quantity >= 0: learned on the transformed, standardised scale, answered in the label's own unit."""

    is_probability: ClassVar[bool] = False
    calibrated_by: ClassVar[tuple[str, ...]] = ("label_mean",)

    kind: Literal["regression"]
    transform: Transform = "none"

    @property
    def scaling(self) -> str:
        """The transform."""
        return self.transform

    def transformed(self, labels: NDArray[np.float64]) -> NDArray[np.float64]:
        """log1p of labels, where the schema says so."""
        return np.log1p(labels) if self.transform == "log1p" else labels

    def inverse(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Labels in their own unit."""
        return np.expm1(values) if self.transform == "log1p" else values

    def upper(self, scales: Scales) -> float:
        """The largest label of the training split, about."""
        return scales[self.name].upper

    @classmethod
    def answers(cls, tasks: Sequence[Self], scales: Scales) -> nn.Module:
        """Standardised predictions -> quantities."""
        return Quantities([scales[task.name] for task in tasks], [task.transform == "log1p" for task in tasks])


class Quantities(nn.Module):
    """logits_NO -> quantities_NO, from 0 to each task's bound."""

    mean_O: Tensor
    scale_O: Tensor
    upper_O: Tensor
    is_log_O: Tensor

    def __init__(self, scales: Sequence[TargetScale], is_log: Sequence[bool]) -> None:
        super().__init__()
        self.register_buffer("mean_O", torch.tensor([scale.mean for scale in scales]))
        self.register_buffer("scale_O", torch.tensor([scale.scale for scale in scales]))
        self.register_buffer("upper_O", torch.tensor([scale.upper for scale in scales]))
        self.register_buffer("is_log_O", torch.tensor(is_log))

    def forward(self, logits_NO: Tensor) -> Tensor:
        """quantities_NO."""
        values_NO = logits_NO * self.scale_O + self.mean_O
        quantities_NO = torch.where(self.is_log_O, torch.expm1(values_NO), values_NO)
        # The bound comes last: it makes even an infinite logit a finite answer, and leaves NaN what it is.
        return torch.minimum(quantities_NO.clamp(min=0.0), self.upper_O)
