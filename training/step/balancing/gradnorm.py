"""GradNorm: task weights that are learned so that the tasks' gradients train at similar rates.

Z. Chen, V. Badrinarayanan, C.-Y. Lee, A. Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in
Deep Multitask Networks", ICML 2018, equations 1 and 2, algorithm 1. The gradient norms are taken at the embedding row,
the one representation that all networks share and whose gradient feeds the fused tables. Losses are those after loss
weights, each relative to its value at the first step in which one of its labels counted.

Shapes: B rows, T tasks, D columns of the dense row, N = B * D.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from model.ranker import Network
from model.strict_yaml import StrictModel
from training.step.balancing.base import Balancing, flat_gradients
from training.step.balancing.losses import TaskLosses

# The paper's rule does not keep a weight above 0, where a task would be trained to do badly.
_SMALLEST_WEIGHT = 1e-3


class GradNorm(Balancing):
    """Minimises sum w_t * L_t in the network, and |norm_t(w_t) - target_t| in w_T, whose mean stays 1."""

    first_losses_T: Tensor

    def __init__(self, losses: TaskLosses, alpha: float, learning_rate: float) -> None:
        super().__init__(losses)
        self.learning_rate = learning_rate
        self._alpha = alpha
        self.task_weights_T = nn.Parameter(torch.ones(len(losses.weights_T)))
        self.register_buffer("first_losses_T", torch.zeros(len(losses.weights_T)))

    def total(self, losses_T: Tensor) -> Tensor:
        """The weighted sum, by task weight and loss weight, constant in the task weights."""
        return self.losses.total(losses_T * self.task_weights_T.detach())

    def backward(self, losses_T: Tensor, total: Tensor, rows_BD: Tensor, network: Network, step: int) -> None:
        """Gradients of the network by the weights of this step, and of the weights for the next."""
        weighted_T = losses_T * self.losses.weights_T
        gradients = [torch.autograd.grad(loss, rows_BD, retain_graph=True)[0] for loss in weighted_T]
        norms_T = flat_gradients(gradients, self.losses.across).norm(dim=1)
        if self.losses.across is not None:
            norms_T = self.losses.across(norms_T.square()).sqrt()
        values_T = weighted_T.detach()
        # Tasks without a counting label in this batch (or with loss weight 0) say nothing about rates of training.
        is_heard_T = (norms_T > 0) & (values_T > 0)
        self.first_losses_T.copy_(torch.where((self.first_losses_T == 0) & is_heard_T, values_T, self.first_losses_T))
        self.task_weights_T.grad = torch.zeros_like(norms_T)
        if is_heard_T.any():
            weighted_norms = self.task_weights_T.detach()[is_heard_T] * norms_T[is_heard_T]
            ratios = values_T[is_heard_T] / self.first_losses_T[is_heard_T]
            targets = weighted_norms.mean() * (ratios / ratios.mean()) ** self._alpha  # constants in equation 2
            self.task_weights_T.grad[is_heard_T] = torch.sign(weighted_norms - targets) * norms_T[is_heard_T]
        total.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the weights above 0 and the mean weight of the tasks that are trained at 1 (algorithm 1, last line)."""
        is_trained_T = self.losses.weights_T > 0
        self.task_weights_T.clamp_(min=_SMALLEST_WEIGHT)
        self.task_weights_T[is_trained_T] /= self.task_weights_T[is_trained_T].mean()

    def learned_weights(self) -> Tensor:
        """task_weights_T."""
        return self.task_weights_T.detach()


class GradNormConfig(StrictModel):
    """`kind: gradnorm`. `alpha` says how strongly slow tasks are helped. `learning_rate` is that of the weights."""

    kind: Literal["gradnorm"]
    alpha: Annotated[float, Field(ge=0, le=10)] = 1.5
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.025

    def build(self, losses: TaskLosses, seed: int) -> GradNorm:
        """The module with all task weights at 1."""
        return GradNorm(losses, self.alpha, self.learning_rate)
