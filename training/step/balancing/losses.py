"""Losses: cross entropy for binary tasks, squared error on the standardised scale for regression tasks.

`positive_weight` p of a binary task counts the loss of its positive rows p times. That alone would inflate the learned
odds by p, so the loss is taken at `logit + log p`: weighted cross entropy there is smallest where the logit itself
has the log's own odds, and everything behind the logit (metrics, answers, value models) needs no correction.

With several processes (`across`) a mean is that over the global batch, the same to the bit on all of them, while its
gradient on a process is that of the process's own rows: gradients are added up, not averaged.

Shapes: B rows, T tasks, O outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from model.schema import FeedSchema
from model.tasks import BinaryTask


class TaskLosses(nn.Module):
    """losses_T: per task, the mean over the rows whose label counts (0 where none does), by row weight where given."""

    is_binary_T: Tensor
    weights_T: Tensor
    positive_weights_T: Tensor
    offsets_T: Tensor

    def __init__(
        self,
        schema: FeedSchema,
        across: Callable[[Tensor], Tensor] | None = None,
        offsets: Sequence[float] | None = None,
    ) -> None:
        """`across` sums a tensor over all processes, in place, where there are several. `offsets` are added to binary
        tasks' logits (training/fit/negative_sampling.py)."""
        super().__init__()
        self.across = across
        binary = [isinstance(task, BinaryTask) for task in schema.tasks]
        positive = [task.positive_weight if isinstance(task, BinaryTask) else 1.0 for task in schema.tasks]
        self.register_buffer("is_binary_T", torch.tensor(binary), persistent=False)
        self.register_buffer("weights_T", torch.tensor([task.loss_weight for task in schema.tasks]), persistent=False)
        self.register_buffer("positive_weights_T", torch.tensor(positive), persistent=False)
        offsets_T = torch.tensor(positive).log() + torch.tensor(offsets or [0.0] * len(schema.tasks))
        self.register_buffer("offsets_T", offsets_T, persistent=False)
        self._is_plain = bool((offsets_T == 0).all()) and all(weight == 1.0 for weight in positive)

    def forward(
        self, logits_BO: Tensor, targets_BT: Tensor, observed_BT: Tensor, row_weights_B: Tensor | None = None
    ) -> Tensor:
        """losses_T, before loss weights. row_weights_B >= 0 makes each mean a weighted one."""
        squared_BT = functional.mse_loss(logits_BO, targets_BT, reduction="none")
        # A regression target may be outside [0, 1]: its cross entropy is finite, and not chosen.
        losses_BT = torch.where(self.is_binary_T, self._entropy(logits_BO, targets_BT), squared_BT)
        counts_BT = observed_BT if row_weights_B is None else observed_BT * row_weights_B.unsqueeze(1)
        counts_T = counts_BT.sum(dim=0)
        if self.across is not None:
            counts_T = self.across(counts_T)
        # A sum of weights may be anywhere above 0, so only 0 itself is replaced.
        losses_T = (losses_BT * counts_BT).sum(dim=0) / torch.where(counts_T > 0, counts_T, 1.0)
        if self.across is not None:
            losses_T = cast(Tensor, _SummedAcross.apply(losses_T, self.across))  # type: ignore[no-untyped-call]
        return losses_T

    def total(self, losses_T: Tensor) -> Tensor:
        """The weighted sum that is minimised where nothing else balances the tasks."""
        return (losses_T * self.weights_T).sum()

    def _entropy(self, logits_BO: Tensor, targets_BT: Tensor) -> Tensor:
        if self._is_plain:
            return functional.binary_cross_entropy_with_logits(logits_BO, targets_BT, reduction="none")
        return functional.binary_cross_entropy_with_logits(
            logits_BO + self.offsets_T, targets_BT, reduction="none", pos_weight=self.positive_weights_T
        )


class _SummedAcross(torch.autograd.Function):
    """The sum over all processes, with the gradient of this one's part."""

    @staticmethod
    def forward(ctx: FunctionCtx, part_T: Tensor, across: Callable[[Tensor], Tensor]) -> Tensor:
        return across(part_T.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
