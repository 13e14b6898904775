"""Losses: cross entropy for binary tasks, squared error on the standardised scale for regression tasks.

Shapes: B rows, T tasks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.schema import BinaryTask, FeedSchema


class TaskLosses(nn.Module):
    """losses_T: per task, the mean over the rows whose label counts (0 where none does)."""

    is_binary_T: Tensor
    weights_T: Tensor

    def __init__(self, schema: FeedSchema) -> None:
        super().__init__()
        self.register_buffer("is_binary_T", torch.tensor([isinstance(task, BinaryTask) for task in schema.tasks]))
        self.register_buffer("weights_T", torch.tensor([task.loss_weight for task in schema.tasks]))

    def forward(self, logits_BT: Tensor, targets_BT: Tensor, observed_BT: Tensor) -> Tensor:
        """losses_T, before loss weights."""
        squared_BT = functional.mse_loss(logits_BT, targets_BT, reduction="none")
        # A regression target may lie outside [0, 1]: its cross entropy is finite, and not chosen.
        entropy_BT = functional.binary_cross_entropy_with_logits(logits_BT, targets_BT, reduction="none")
        losses_BT = torch.where(self.is_binary_T, entropy_BT, squared_BT) * observed_BT
        return losses_BT.sum(dim=0) / observed_BT.sum(dim=0).clamp(min=1.0)

    def total(self, losses_T: Tensor) -> Tensor:
        """The weighted sum that is minimised."""
        return (losses_T * self.weights_T).sum()
