"""Modules that make answers of logits, one for each kind of task. TorchScript reads them.

They are apart from the kinds, which a schema needs: a job that reads a schema alone starts without torch.

Shapes: N candidates, O outputs of the tasks of one kind, C classes of a task.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.tasks.task import TargetScale


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


class ClassProbabilities(nn.Module):
    """logits_NO -> probabilities_NO, of tasks with so many classes each."""

    def __init__(self, classes: Sequence[int]) -> None:
        super().__init__()
        self.classes = list(classes)

    def forward(self, logits_NO: Tensor) -> Tensor:
        """probabilities_NO."""
        probabilities: list[Tensor] = []
        for logits_NC in torch.split(logits_NO, self.classes, dim=1):
            probabilities.append(torch.softmax(logits_NC, dim=1))  # noqa: PERF401 - TorchScript reads it
        return torch.cat(probabilities, dim=1)


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
