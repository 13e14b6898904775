"""Gradient methods: the tasks' gradients at the embedding row are combined into one that resolves their conflicts.

PCGrad (Yu et al., NeurIPS 2020), CAGrad (Liu et al., NeurIPS 2021), MGDA (Sener and Koltun, NeurIPS 2018), Nash-MTL
(Navon et al., ICML 2022), UPGrad (Quinton and Rey, "Jacobian Descent", 2024), GradDrop (Chen et al., NeurIPS 2020).
PCGrad and GradDrop are TorchJD's. solvers.py has the others, and says why.

Where the methods act, and why there. The embedding row is what all networks share, and the cut that leaves fused
tables alone: one gradient at rows_BD is backpropagated once, and the tables see no difference to a plain step.

- Embeddings get J^T w, J_TN being the gradients of the tasks' losses (after loss weights) at rows_BD and w_T the
method's weights for the Gramian J J^T. GradDrop, which has no weights, gives its masked sum.
- The fusion network gets sum_t w_t dL_t/dtheta, with the same w_T. Its parameters are between the row and the towers:
  nearly all of them serve several tasks, and which do depends on gates that are learned, so they count as shared
  (a task's own experts included). Weights found at the representation instead of at every shared parameter are
  Sener and Koltun's choice (MGDA-UB) and Nash-MTL's. For the tables they bound the exact problem. For the network they
  are the same compromise applied further up. The alternative, a Jacobian over the fusion parameters, would cost a whole
  backward pass a task, and its norm (a sum over the batch) would drown the row's. GradDrop's network gets the plain
  sum: in the paper layers above the masked one do too.
- A task tower gets the gradient of its own task alone, unweighted, as in TorchJD's mtl_backward: a task that the method
  silences for a step keeps learning its own part. The tower of a task that others are given is part of their logits
  too, and gets the sum of all their gradients.

Where no two gradients conflict PCGrad and UPGrad are the plain sum. A task whose gradient is 0 (no label counts in
this batch, loss weight 0) is left out: MGDA would otherwise choose it, and no task would learn.

Shapes: B rows, T tasks, D columns of the dense row, N = B * D.
"""

from collections.abc import Callable
from typing import Annotated, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from model.ranker import Network
from model.strict_yaml import StrictModel
from training.step.balancing.base import Balancing, flat_gradients
from training.step.balancing.losses import TaskLosses
from training.step.balancing.solvers import cagrad_weights, mgda_weights, nash_weights, upgrad_weights

# Gramian_TT (float64) -> w_T, or jacobian_TN -> the combined gradient_N.
Weighting = Callable[[Tensor], Tensor]
Aggregation = Callable[[Tensor], Tensor]


class GradientBalancing(Balancing):
    """Combines the tasks' gradients by a weighting or, where there are no weights, by an aggregation."""

    def __init__(
        self,
        losses: TaskLosses,
        seed: int,
        *,
        weighting: Weighting | None = None,
        aggregation: Aggregation | None = None,
    ) -> None:
        assert (weighting is None) != (aggregation is None)
        super().__init__(losses)
        self._seed = seed
        self._weighting = weighting
        self._aggregation = aggregation

    def combine(self, jacobian_TN: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The combined gradient_N and w_T (ones for an aggregation). Random numbers come from seed and step alone."""
        across = self.losses.across
        weights_T = torch.ones(len(jacobian_TN), device=jacobian_TN.device)
        is_heard_T = (jacobian_TN != 0).any(dim=1)
        if across is not None:
            is_heard_T = across(is_heard_T.float()) > 0
        if not is_heard_T.any():
            return torch.zeros_like(jacobian_TN[0]), weights_T
        heard_TN = jacobian_TN[is_heard_T]
        # TorchJD draws from torch's global generator: nothing to save, and a resumed step draws what it would have.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([self._seed, step]).generate_state(1, np.uint64)[0] >> 1))
            if self._weighting is None:
                assert self._aggregation is not None
                assert across is None, "refused before training"
                return self._aggregation(heard_TN), weights_T
            gramian_TT = (heard_TN @ heard_TN.T).double()
            if across is not None:
                gramian_TT = across(gramian_TT)
            # A method sees directions and relative lengths: its tolerances are then the same for all feeds.
            found_T = self._weighting((gramian_TT / gramian_TT.diagonal().mean()).cpu()).to(heard_TN)
        weights_T[is_heard_T] = found_T
        return found_T @ heard_TN, weights_T

    def backward(self, losses_T: Tensor, total: Tensor, rows_BD: Tensor, network: Network, step: int) -> None:
        """One pass a task down to rows_BD and through its tower, one for the fusion network, one for the tables."""
        weighted_T = losses_T * self.losses.weights_T
        gradients = []
        network.towers.zero_grad()
        for task, loss in enumerate(weighted_T):
            # The base logit of a task along the chain is no part of this one's loss.
            own = [weight for tower in network.towers_of(task) for weight in tower.parameters() if weight.requires_grad]
            at_rows, *at_towers = torch.autograd.grad(
                loss, [rows_BD, *own], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            gradients.append(at_rows)
            for weight, gradient in zip(own, at_towers, strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
        combined_N, weights_T = self.combine(flat_gradients(gradients, self.losses.across), step)
        # Units of lists stand before the row, with the tables: they learn from its gradient.
        apart = {id(one) for part in (network.towers, network.activation_units) for one in part.parameters()}
        shared = [p for p in network.parameters() if p.requires_grad and id(p) not in apart]
        if shared:
            of_network = torch.autograd.grad((weighted_T * weights_T).sum(), shared, allow_unused=True)
            for weight, gradient in zip(shared, of_network, strict=True):
                weight.grad = gradient
        rows_BD.backward(combined_N.view_as(rows_BD))  # type: ignore[no-untyped-call]


class GradientConfig(StrictModel):
    """A gradient method without settings."""

    kind: Literal["pcgrad", "mgda", "nash_mtl", "upgrad", "graddrop"]

    def build(self, losses: TaskLosses, seed: int) -> GradientBalancing:
        """The method. It has no state."""
        if self.kind == "nash_mtl":
            return GradientBalancing(losses, seed, weighting=nash_weights)
        if self.kind == "upgrad":
            return GradientBalancing(losses, seed, weighting=upgrad_weights)
        if self.kind == "mgda":
            return GradientBalancing(losses, seed, weighting=mgda_weights)
        # Here, not above: the import takes half a second, and only these kinds need it.
        from torchjd.aggregation import GradDrop, PCGradWeighting

        if self.kind == "graddrop":
            return GradientBalancing(losses, seed, aggregation=GradDrop())
        return GradientBalancing(losses, seed, weighting=cast(Weighting, PCGradWeighting()))


class CAGradConfig(StrictModel):
    """CAGrad. The combined gradient stays within `c` times the mean gradient's length of it (the paper: 0.4)."""

    kind: Literal["cagrad"]
    c: Annotated[float, Field(ge=0, lt=1)] = 0.4

    def build(self, losses: TaskLosses, seed: int) -> GradientBalancing:
        """The method. It has no state."""
        return GradientBalancing(losses, seed, weighting=lambda gramian_TT: cagrad_weights(gramian_TT, self.c))
