"""A stack of fusion levels whose units each read their own unit of the level below. Scripted by TorchScript.

Shapes: B rows, U units = inputs of a level, G its fused units, T tasks, E experts, D input, H width of an output.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from model.fusion.frozen import FrozenLevel, FrozenNetwork
from model.fusion.slots import Slots


class FusionStack(nn.Module):
    """Levels of `(fused_BGH, weights_BGE) = level(units_BUD)`: rows_BD -> fused_BTH."""

    def __init__(self, levels: list[nn.Module], output_width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.output_width: int = output_width

    def forward(self, rows_BD: Tensor) -> Tensor:
        """fused_BTH of rows_BD."""
        # The first level has one input for all units: a unit axis of size 1, never copied.
        units_BUD = rows_BD.unsqueeze(1)
        for level in self.levels:
            units_BUD = level(units_BUD)[0]
        return units_BUD

    def slots(self, tasks: list[str]) -> Slots:
        """All layers by name (model/fusion/slots.py)."""
        slots: Slots = {}
        for position, level in enumerate(self.levels):
            slots |= cast(Callable[[str, list[str]], Slots], level.slots)(f"level.{position}", tasks)
        return slots

    def frozen(self, num_tasks: int) -> FrozenNetwork:
        """The network as data (model/fusion/frozen.py)."""
        levels = [cast(Callable[[], FrozenLevel], level.frozen)() for level in self.levels]
        return FrozenNetwork(1, levels, list(range(num_tasks)))

    @torch.jit.export
    def expert_weights(self, rows_BD: Tensor) -> list[Tensor]:
        """Per level, the weight of every expert in every fused unit: [B, G, E]."""
        units_BUD = rows_BD.unsqueeze(1)
        weights: list[Tensor] = []
        for level in self.levels:
            units_BUD, weights_BGE = level(units_BUD)
            weights.append(weights_BGE)
        return weights
