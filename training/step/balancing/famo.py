"""FAMO: task factors by which all log losses fall alike, for the cost of one backward pass.

B. Liu, Y. Feng, P. Stone, Q. Liu, "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, algorithm 1. The network
descends along sum_t z_t c grad(log l_t) with z = softmax(w) and c = 1 / sum_t (z_t / l_t). So the factor of a task's
loss is c z_t / l_t. The factors' sum is 1 there and the number of tasks here, so that learning rates mean what they
mean without balancing. w then moves by J' (log l_t before - log l_t after) + decay w, J being the softmax's derivative:
a task whose log loss fell further than the others' has less weight from then on. The optimizer of the dense part steps
w, Adam as in the authors' code, or plain descent as in the algorithm.

Before and after are here the losses of two consecutive batches, where the authors answer the first batch a second time.
That would cost a second forward pass and a second look-up of tables that several processes share. The difference has
noise for it. The noise of a batch enters one difference with a plus and the next with a minus, so it does not add up.
w is one step behind for the same reason.

Loss weights multiply a task's whole part, since any factor of a loss itself would cancel in its logarithm. A task
without a counting label in a batch has factor 0 in it, and its w stays. Its next difference is from its last loss.

Shapes: B rows, T tasks, D columns of the dense row.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from model.ranker import Network
from model.strict_yaml import StrictModel
from training.step.balancing.base import Balancing
from training.step.balancing.losses import TaskLosses

# Of a loss, so that its logarithm is finite: the authors' code has the same.
_SMALLEST_LOSS = 1e-8


class FAMO(Balancing):
    """Minimises the tasks' log losses together. All w are 0 at the start: equal shares."""

    last_losses_T: Tensor
    factors_T: Tensor

    def __init__(self, losses: TaskLosses, learning_rate: float, decay: float) -> None:
        super().__init__(losses)
        self.learning_rate = learning_rate
        self._decay = decay
        self.share_logits_T = nn.Parameter(torch.zeros(len(losses.weights_T)))
        self.register_buffer("last_losses_T", torch.zeros(len(losses.weights_T)))
        self.register_buffer("factors_T", torch.ones(len(losses.weights_T)))

    def total(self, losses_T: Tensor) -> Tensor:
        """The sum of the losses by factor and loss weight, constant in the factors."""
        return self.losses.total(losses_T * self._factors(losses_T.detach()))

    def _factors(self, values_T: Tensor) -> Tensor:
        is_heard_T = self._is_heard(values_T)
        parts_T = self._shares(is_heard_T) / (values_T + _SMALLEST_LOSS)
        return is_heard_T.sum() * parts_T / torch.where(is_heard_T.any(), parts_T.sum(), 1.0)

    def _is_heard(self, values_T: Tensor) -> Tensor:
        # A loss of exactly 0 says that no label counted.
        return (values_T > 0) & (self.losses.weights_T > 0)

    def _shares(self, is_heard_T: Tensor) -> Tensor:
        """The softmax over the tasks that are heard, 0 of the others."""
        logits_T = torch.where(is_heard_T, self.share_logits_T.detach(), -torch.inf)
        return torch.where(is_heard_T, torch.softmax(logits_T, dim=0), 0.0)

    def backward(self, losses_T: Tensor, total: Tensor, rows_BD: Tensor, network: Network, step: int) -> None:
        """Gradients of the network by the factors of this step, and of w by how far losses fell since the last."""
        values_T = losses_T.detach()
        is_heard_T = self._is_heard(values_T)
        is_known_T = is_heard_T & (self.last_losses_T > 0)
        shares_T = self._shares(is_known_T)
        fall_T = torch.where(
            is_known_T, (self.last_losses_T + _SMALLEST_LOSS).log() - (values_T + _SMALLEST_LOSS).log(), 0.0
        )
        slopes_T = shares_T * (fall_T - (shares_T * fall_T).sum())
        weights_T = self.share_logits_T.detach()
        self.share_logits_T.grad = torch.where(is_known_T, slopes_T + self._decay * weights_T, 0.0)
        self.factors_T.copy_(self._factors(values_T))
        self.last_losses_T.copy_(torch.where(is_heard_T, values_T, self.last_losses_T))
        total.backward()  # type: ignore[no-untyped-call]

    def learned_weights(self) -> Tensor:
        """The factors of the step before, whose sum is the number of tasks that it heard."""
        return self.factors_T


class FAMOConfig(StrictModel):
    """`kind: famo`. `learning_rate` is that of w, `decay` its weight decay (the paper: .025 and .001)."""

    kind: Literal["famo"]
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.025
    decay: Annotated[float, Field(ge=0, le=1)] = 0.001

    def build(self, losses: TaskLosses, seed: int) -> FAMO:
        """The module with equal shares."""
        return FAMO(losses, self.learning_rate, self.decay)
