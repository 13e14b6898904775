"""A fusion network as data, for scoring: every network is levels of experts whose outputs are mixed for the next level.

`network.frozen()` gives what it is. `model/export/scoring_network.py` computes it for many candidates of one request.
Nothing here is trained: weights are views of the network's own.

Shapes: E experts of a level, G units that it puts out, D inputs, H outputs, T tasks, S transfers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.fusion.slots import Layers

# A gate's bias for an expert that it does not see: softmax gives it exactly 0.
UNSEEN = float("-inf")


class Expert(NamedTuple):
    """An MLP with ReLU after every layer. `source` is what it reads: a unit of the level below, or the raw row."""

    source: int
    layers: Layers


class Gates(NamedTuple):
    """Weights of the E experts in each of G outputs: softmax of a Linear, [E, D] each.

    The Linear reads the raw row (`reads_row`) or the output's own unit. `bias_GE` is UNSEEN where an expert is not
    mixed. `native_GE` is added after the softmax."""

    weights_ED: list[Tensor]
    bias_GE: Tensor
    native_GE: Tensor | None
    reads_row: bool


class Transfer(NamedTuple):
    """Step of an AITM: a task's result and that of the one that it is given, mixed by attention (model/fusion/aitm.py).

    `inform` is the layer over the given one's result, `attend` [3 H, H] has query, key and value of both."""

    task: int
    given: int
    inform: tuple[Tensor, Tensor]
    attend: Tensor


class FrozenLevel(NamedTuple):
    """One level. Without gates the experts' outputs are mixed by a fixed matrix [G, E], by transfers in their order, or
    are the outputs (None)."""

    experts: list[Expert]
    mix: Gates | Tensor | list[Transfer] | None

    @property
    def num_mixed(self) -> int:
        """Number of units that experts are mixed into, 0 where their outputs are the units."""
        if self.mix is None:
            return 0
        if isinstance(self.mix, list):
            return len(self.experts)
        return len(self.mix.bias_GE if isinstance(self.mix, Gates) else self.mix)


class FrozenNetwork(NamedTuple):
    """A whole network: `num_rows` raw rows, levels, and which unit of the last one each task's tower reads.

    `crosses` are the cross layers before it, one or two matrices each (model/cross_layers.py)."""

    num_rows: int
    levels: list[FrozenLevel]
    unit_of_task: list[int]
    crosses: Sequence[Layers] = ()


def gates_of(
    linears: Sequence[nn.Linear], seen: Sequence[Sequence[int]], num_experts: int, *, reads_row: bool
) -> Gates:
    """Gates made of the Linears of G units, one each or one for all. `seen` are the experts that each mixes."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    bias = torch.cat([linear.bias.detach() for linear in linears])
    weights_ED: list[Tensor] = []
    bias_GE = bias.new_full((len(seen), num_experts), UNSEEN)
    start = 0
    for unit, experts in enumerate(seen):
        end = start + len(experts)
        weight_ED = weight.new_zeros(num_experts, weight.shape[1])
        weight_ED[list(experts)] = weight[start:end]
        bias_GE[unit, list(experts)] = bias[start:end]
        weights_ED.append(weight_ED)
        start = end
    return Gates(weights_ED, bias_GE, None, reads_row)


def transfer_matrices(num_tasks: int, steps: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """base_TT and moved_STT: base + shares_S moved are the weights of the tasks' experts in each task.

    A step's share goes from the task's own to that of the one that it is given."""
    moved_STT = torch.zeros(len(steps), num_tasks, num_tasks)
    for step, (task, given) in enumerate(steps):
        moved_STT[step, task, task], moved_STT[step, task, given] = -1.0, 1.0
    return torch.eye(num_tasks), moved_STT


def units_of(experts_per_unit: Sequence[int], *, is_first: bool) -> list[int]:
    """The source of every expert where each unit's experts read that unit, or all read the raw row."""
    return [0 if is_first else unit for unit, count in enumerate(experts_per_unit) for _ in range(count)]
