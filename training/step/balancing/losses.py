"""Losses: one a task, the mean of its rows' (training/tasks has those of each kind).

With several processes (`across`) a mean is that over the global batch, the same to the bit on all of them. Its gradient
on a process is that of the process's own rows: gradients are added up, not averaged.

Shapes: B rows, T tasks, J tasks with a base logit, O outputs.
"""

from collections.abc import Callable, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from model.fusion.experts import side_by_side
from model.schema import FeedSchema
from training.tasks import KINDS
from training.tasks.joint_ranking import JointTerms


class Compared(NamedTuple):
    """Base logits of the tasks that have one, and the groups of rows, for losses that compare rows (`jrc`)."""

    bases_BJ: Tensor
    groups_B: Tensor


class TaskLosses(nn.Module):
    """losses_T: per task, the mean over the rows whose label counts (0 where none does), by row weight where given."""

    weights_T: Tensor
    precisions_T: Tensor

    def __init__(
        self,
        schema: FeedSchema,
        across: Callable[[Tensor], Tensor] | None = None,
        offsets: Sequence[float] | None = None,
    ) -> None:
        """`across` sums a tensor over all processes, in place, where there are several. `offsets` are added to tasks'
        logits (training/fit/negative_sampling.py)."""
        super().__init__()
        self.across = across
        self.register_buffer("weights_T", torch.tensor([task.loss_weight for task in schema.tasks]), persistent=False)
        precisions = [KINDS[task.kind].precision for task in schema.tasks]
        self.register_buffer("precisions_T", torch.tensor(precisions), persistent=False)
        left = iter(offsets or [0.0] * len(schema.tasks))
        # Neighbouring tasks of one kind are one part.
        runs = [list(run) for _, run in groupby(schema.tasks, key=lambda task: task.kind)]
        self._tasks = [len(run) for run in runs]
        self._outputs = [sum(len(task.outputs) for task in run) for run in runs]
        self._parts = nn.ModuleList([KINDS[run[0].kind].losses(run, list(islice(left, len(run)))) for run in runs])
        self._joint = JointTerms(schema.tasks) if any(schema.base_logits) else None

    def forward(
        self,
        logits_BO: Tensor,
        targets_BT: Tensor,
        observed_BT: Tensor,
        row_weights_B: Tensor | None = None,
        compared: Compared | None = None,
    ) -> Tensor:
        """losses_T, before loss weights. row_weights_B >= 0 makes each mean a weighted one. Without `compared` the
        terms that compare rows are left out, as where batches do not have whole groups."""
        logits, targets = torch.split(logits_BO, self._outputs, dim=1), torch.split(targets_BT, self._tasks, dim=1)
        losses_BT = side_by_side([part(*pair) for part, *pair in zip(self._parts, logits, targets, strict=True)])
        if self._joint is not None and compared is not None:
            losses_BT = losses_BT + self._joint(
                logits_BO, compared.bases_BJ, targets_BT, observed_BT, compared.groups_B
            )
        counts_BT = observed_BT if row_weights_B is None else observed_BT * row_weights_B.unsqueeze(1)
        counts_T = counts_BT.sum(dim=0)
        if self.across is not None:
            counts_T = self.across(counts_T)
        # A sum of weights may lie anywhere above 0, so only 0 itself is replaced.
        losses_T = (losses_BT * counts_BT).sum(dim=0) / torch.where(counts_T > 0, counts_T, 1.0)
        if self.across is not None:
            losses_T = cast(Tensor, _SummedAcross.apply(losses_T, self.across))  # type: ignore[no-untyped-call]
        return losses_T

    def total(self, losses_T: Tensor) -> Tensor:
        """The weighted sum that is minimised where no method balances the tasks."""
        return (losses_T * self.weights_T).sum()


class _SummedAcross(torch.autograd.Function):
    """The sum over all processes, with the gradient of this one's part."""

    @staticmethod
    def forward(ctx: FunctionCtx, part_T: Tensor, across: Callable[[Tensor], Tensor]) -> Tensor:
        return across(part_T.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
