"""Yes/no outcomes: one logit, answered by its sigmoid.

Shapes: N candidates, O outputs, one of each task.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from model.tasks.task import BaseTask, Scales


class BinaryTask(BaseTask):
    """A yes/no outcome. `label` is a 0/1 column.

    `positive_weight` counts the loss of a positive row that many times. Answers stay calibrated for the log as it is.
    """

    calibrated_by: ClassVar[tuple[str, ...]] = ("platt", "isotonic")

    kind: Literal["binary"]
    negative_sampling_rate: float = Field(default=1.0, gt=0, le=1)
    positive_weight: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)

    @classmethod
    def answers(cls, tasks: Sequence[Self], scales: Scales) -> nn.Module:
        """Logits -> probabilities."""
        return Probabilities([task.negative_sampling_rate for task in tasks])


class Probabilities(nn.Module):
    """logits_NO -> probabilities_NO, of all rows where negatives were kept at `rates`."""

    offset_O: Tensor

    def __init__(self, rates: Sequence[float]) -> None:
        super().__init__()
        # Negatives kept at rate w inflate the odds by 1/w (He et al. 2014, section 6.3): undone in the logit.
        self.register_buffer("offset_O", torch.tensor([math.log(rate) for rate in rates]))

    def forward(self, logits_NO: Tensor) -> Tensor:
        """probabilities_NO."""
        return torch.sigmoid(logits_NO + self.offset_O)
