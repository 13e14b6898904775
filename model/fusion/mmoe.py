"""MMoE (Ma et al., KDD 2018) and ML-MMoE, its extension to several levels (AdaTT paper, section 4.1).

In: rows_BD. Out: fused_BTH. Scripted by TorchScript. MMoE is one level of experts, mixed for each task by a gate.
In ML-MMoE the experts of a level above the first each read a mix of their own of the level below. Every gate, at every
level, reads the raw row.

Shapes: B rows, T tasks, E experts of a level, G gates of a level (one per expert of the next level, at the last level
one per task), U units = inputs of a level, D raw width, H expert width.
"""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from model.fusion.experts import UnitExperts
from model.fusion.frozen import Expert, FrozenLevel, FrozenNetwork, gates_of, units_of
from model.fusion.layers import RowLinear, softmax_over_experts
from model.fusion.levels import Levels, all_widths, widths_by_level
from model.fusion.slots import Slots, gate_slots, typed
from model.strict_yaml import StrictModel


class MMoEConfig(StrictModel):
    """Sizes of an MMoE (`levels`: the widths of its experts' MLP) or an ML-MMoE (`levels`: its fusion levels)."""

    kind: Literal["mmoe", "ml_mmoe"]
    levels: Levels
    num_experts: PositiveInt

    def build(self, input_width: int, num_tasks: int) -> "MMoE":
        """The network for rows of `input_width` columns."""
        levels = [all_widths(self.levels)] if self.kind == "mmoe" else widths_by_level(self.levels)
        return MMoE(input_width, levels, self.num_experts, num_tasks)


class MMoE(nn.Module):
    """Levels of gated experts: rows_BD -> fused_BTH."""

    def __init__(self, input_width: int, levels: list[list[int]], num_experts: int, num_tasks: int) -> None:
        super().__init__()
        stack: list[nn.Module] = []
        width = input_width
        for position, widths in enumerate(levels):
            num_gates = num_tasks if position == len(levels) - 1 else num_experts
            is_first = position == 0
            stack.append(MixtureLevel(input_width, width, widths, num_experts, num_gates, is_first=is_first))
            width = widths[-1]
        self.levels = nn.ModuleList(stack)
        self.output_width: int = width

    def forward(self, rows_BD: Tensor) -> Tensor:
        """fused_BTH of rows_BD."""
        units_BUH = rows_BD.unsqueeze(1)
        for level in self.levels:
            units_BUH = level(rows_BD, units_BUH)[0]
        return units_BUH

    def slots(self, tasks: list[str]) -> Slots:
        """All layers by name (model/fusion/slots.py)."""
        slots: Slots = {}
        for position, level in enumerate(typed(self.levels, MixtureLevel)):
            prefix, numbers = f"level.{position}", [str(expert) for expert in range(level.num_experts)]
            units = tasks if position == len(self.levels) - 1 else numbers
            slots |= level.experts.slots(f"{prefix}.expert", numbers)
            slots |= gate_slots(prefix, [level.gates], units, [level.num_experts] * level.num_gates)
        return slots

    def frozen(self, num_tasks: int) -> FrozenNetwork:
        """The network as data (model/fusion/frozen.py)."""
        levels: list[FrozenLevel] = []
        for level in typed(self.levels, MixtureLevel):
            sources = units_of([1] * level.num_experts, is_first=not levels)
            experts = [Expert(*pair) for pair in zip(sources, level.experts.layers(), strict=True)]
            seen = [range(level.num_experts)] * level.num_gates
            levels.append(FrozenLevel(experts, gates_of([level.gates], seen, level.num_experts, reads_row=True)))
        return FrozenNetwork(1, levels, list(range(num_tasks)))

    @torch.jit.export
    def expert_weights(self, rows_BD: Tensor) -> list[Tensor]:
        """Per level, the gates' weights of every expert: [B, G, E]."""
        units_BUH = rows_BD.unsqueeze(1)
        weights: list[Tensor] = []
        for level in self.levels:
            units_BUH, weights_BGE = level(rows_BD, units_BUH)
            weights.append(weights_BGE)
        return weights


class MixtureLevel(nn.Module):
    """One level: each expert reads its own unit (the first level: all read the row), gates read the raw row."""

    def __init__(
        self,
        raw_width: int,
        input_width: int,
        widths: list[int],
        num_experts: int,
        num_gates: int,
        *,
        is_first: bool,
    ) -> None:
        super().__init__()
        self.num_experts: int = num_experts
        self.num_gates: int = num_gates
        self.experts = UnitExperts(input_width, widths, [1] * num_experts, has_one_input=is_first)
        # All gates read the raw row, so they are one Linear.
        self.gates = RowLinear(raw_width, num_gates * num_experts)

    def forward(self, rows_BD: Tensor, units_BUH: Tensor) -> tuple[Tensor, Tensor]:
        """(fused_BGH, weights_BGE)."""
        weights_BGE = softmax_over_experts(self.gates(rows_BD).view(-1, self.num_gates, self.num_experts))
        return torch.bmm(weights_BGE, self.experts(units_BUH)), weights_BGE
