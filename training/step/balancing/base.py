"""Balancing of the tasks of a training step: the interface, and `none`, the plain weighted sum of the losses.

In: losses_T of a batch, still attached to the graph, and the dense row they came from. Out: gradients in the network's
parameters, and one backward pass through the embeddings, inside which fused tables update. A balancing is a module:
what it learns is stepped by `Optimizers`, and all its state is in the checkpoint.

With several processes losses_T are those of the global batch, equal on all. What else a method measures it sums over
them (`losses.across`). So its weights are equal too, and no learned one needs its gradient exchanged.

Shapes: B rows, T tasks, D columns of the dense row, N = B * D.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from model.ranker import Network
from model.strict_yaml import StrictModel
from training.step.balancing.losses import TaskLosses


class Balancing(nn.Module):
    """`kind: none`: the sum of the losses by loss weight. Other kinds derive from it."""

    learning_rate = 0.0  # of its own parameters, where it has any

    def __init__(self, losses: TaskLosses) -> None:
        super().__init__()
        self.losses = losses

    def total(self, losses_T: Tensor) -> Tensor:
        """Total that is minimised, or, for a method on gradients, shown and checked: the sum of the losses by loss
        weight."""
        return self.losses.total(losses_T)

    def backward(self, losses_T: Tensor, total: Tensor, rows_BD: Tensor, network: Network, step: int) -> None:
        """Leaves gradients in the network and the embeddings. `total` is `total(losses_T)`. `step` counts from 0 and
        seeds what is random. Raises FloatingPointError where a method needs finite task gradients and has none."""
        total.backward()  # type: ignore[no-untyped-call]

    def after_step(self) -> None:
        """Called when the optimizers have stepped."""

    def learned_weights(self) -> Tensor | None:
        """The factors, beside the loss weights, that the tasks' losses have now. None where none are learned."""
        return None


class NoBalancingConfig(StrictModel):
    """`kind: none`: loss weights alone."""

    kind: Literal["none"] = "none"

    def build(self, losses: TaskLosses, seed: int) -> Balancing:
        """The plain weighted sum."""
        return Balancing(losses)


def flat_gradients(gradients: list[Tensor], across: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """J_TN: the gradients of T tasks at rows_BD, a row each. Raises FloatingPointError where they are not finite, on
    any process."""
    jacobian_TN = torch.stack([gradient.flatten() for gradient in gradients])
    is_broken = (~torch.isfinite(jacobian_TN).all()).float()
    if is_broken if across is None else across(is_broken):
        raise FloatingPointError("the gradients of the tasks at the embedding row are not finite")
    return jacobian_TN
