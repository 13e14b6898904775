"""Losses: cross entropy for binary tasks, squared error on the standardised scale for regression tasks.

`positive_weight` p of a binary task counts the loss of its positive rows p times. That alone would inflate the learned
odds by p, so the loss is taken at `logit + log p`: weighted cross entropy there is smallest where the logit itself
has the log's own odds, and everything behind the logit (metrics, answers, value models) needs no correction.

Shapes: B rows, T tasks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.schema import BinaryTask, FeedSchema


class TaskLosses(nn.Module):
    """losses_T: per task, the mean over the rows whose label counts (0 where none does), by row weight where given."""

    is_binary_T: Tensor
    weights_T: Tensor
    positive_weights_T: Tensor

    def __init__(self, schema: FeedSchema) -> None:
        super().__init__()
        binary = [isinstance(task, BinaryTask) for task in schema.tasks]
        positive = [task.positive_weight if isinstance(task, BinaryTask) else 1.0 for task in schema.tasks]
        self.register_buffer("is_binary_T", torch.tensor(binary), persistent=False)
        self.register_buffer("weights_T", torch.tensor([task.loss_weight for task in schema.tasks]), persistent=False)
        self.register_buffer("positive_weights_T", torch.tensor(positive), persistent=False)
        self._weighs_positives = any(weight != 1.0 for weight in positive)

    def forward(
        self, logits_BT: Tensor, targets_BT: Tensor, observed_BT: Tensor, row_weights_B: Tensor | None = None
    ) -> Tensor:
        """losses_T, before loss weights; row_weights_B >= 0 makes each mean a weighted one."""
        squared_BT = functional.mse_loss(logits_BT, targets_BT, reduction="none")
        # A regression target may lie outside [0, 1]: its cross entropy is finite, and not chosen.
        losses_BT = torch.where(self.is_binary_T, self._entropy(logits_BT, targets_BT), squared_BT)
        if row_weights_B is None:
            return (losses_BT * observed_BT).sum(dim=0) / observed_BT.sum(dim=0).clamp(min=1.0)
        counts_BT = observed_BT * row_weights_B.unsqueeze(1)
        counts_T = counts_BT.sum(dim=0)
        # A sum of weights may lie anywhere above 0, so only 0 itself is replaced.
        return (losses_BT * counts_BT).sum(dim=0) / torch.where(counts_T > 0, counts_T, 1.0)

    def total(self, losses_T: Tensor) -> Tensor:
        """The weighted sum that is minimised where nothing else balances the tasks."""
        return (losses_T * self.weights_T).sum()

    def _entropy(self, logits_BT: Tensor, targets_BT: Tensor) -> Tensor:
        if not self._weighs_positives:
            return functional.binary_cross_entropy_with_logits(logits_BT, targets_BT, reduction="none")
        weights_T = self.positive_weights_T
        return functional.binary_cross_entropy_with_logits(
            logits_BT + weights_T.log(), targets_BT, reduction="none", pos_weight=weights_T
        )
