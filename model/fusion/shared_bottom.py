"""Shared-bottom: one MLP that all tasks share (Caruana, 1997). Scripted by TorchScript.

In: rows_BD. Out: fused_BTH, T views of one representation.

Shapes: B rows, T tasks, D input, H width of the last layer.
"""

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

from model.fusion.frozen import Expert, FrozenLevel, FrozenNetwork
from model.fusion.layers import RowLinear
from model.fusion.levels import Levels, all_widths
from model.fusion.slots import Slots, layer_slots, linears
from model.strict_yaml import StrictModel


class SharedBottomConfig(StrictModel):
    """Sizes of a shared-bottom. The widths of all levels are those of its MLP."""

    kind: Literal["shared_bottom"]
    levels: Levels

    def build(self, input_width: int, num_tasks: int) -> "SharedBottom":
        """The network for rows of `input_width` columns."""
        return SharedBottom(input_width, all_widths(self.levels), num_tasks)


class SharedBottom(nn.Module):
    """One MLP, ReLU after every layer: rows_BD -> fused_BTH."""

    def __init__(self, input_width: int, widths: list[int], num_tasks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [RowLinear(input_width, widths[0])]
            + [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]
        )
        self.num_tasks: int = num_tasks
        self.output_width: int = widths[-1]

    def forward(self, rows_BD: Tensor) -> Tensor:
        """fused_BTH: the same representation for every task, not copied."""
        hidden_BH = rows_BD
        for layer in self.layers:
            hidden_BH = torch.relu(layer(hidden_BH))
        return hidden_BH.unsqueeze(1).expand(-1, self.num_tasks, -1)

    def frozen(self, num_tasks: int) -> FrozenNetwork:
        """The network as data (model/fusion/frozen.py)."""
        return FrozenNetwork(1, [FrozenLevel([Expert(0, linears(list(self.layers)))], None)], [0] * num_tasks)

    def slots(self, tasks: list[str]) -> Slots:
        """All layers by name (model/fusion/slots.py). None belongs to a task."""
        return layer_slots("layer", linears(list(self.layers)))
