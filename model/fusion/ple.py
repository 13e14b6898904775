"""PLE: progressive layered extraction (Tang et al., RecSys 2020). With one level it is CGC. Scripted by TorchScript.

In: rows_BD. Out: fused_BTH. A task's gate mixes the task's own and the shared experts. The shared unit's gate, on all
levels but the last, mixes all of them. Each gate reads the input of its own unit.

Shapes: B rows, U units (tasks, then the shared one if there are shared experts), G units that are fused (all, but at
the last level the tasks alone), E experts of a level (task 0's, task 1's, ..., shared), D input, H expert width, S
weights of all gates.
"""

from typing import Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from model.fusion.experts import GatedExperts, UnitExperts
from model.fusion.frozen import Expert, FrozenLevel, gates_of, units_of
from model.fusion.layers import RowLinear, softmax_over_experts
from model.fusion.levels import ExpertsPerTask, Levels, experts_by_task, widths_by_level
from model.fusion.slots import Slots, expert_names, gate_slots, typed, unit_names
from model.fusion.stack import FusionStack
from model.strict_yaml import StrictModel


class PLEConfig(StrictModel):
    """Sizes of a PLE. Zero shared experts leave every task alone with its own."""

    kind: Literal["ple"]
    levels: Levels
    experts_per_task: ExpertsPerTask = 1
    shared_experts: NonNegativeInt = 1

    def build(self, input_width: int, num_tasks: int) -> "PLE":
        """The network for rows of `input_width` columns. Raises ValueError where the sizes do not fit the tasks."""
        per_task = experts_by_task(self.experts_per_task, num_tasks)
        return PLE(input_width, widths_by_level(self.levels), per_task, self.shared_experts)


class PLE(FusionStack):
    """Levels of extraction: rows_BD -> fused_BTH. `expert_weights` are 0 where a gate does not see an expert."""

    def __init__(
        self, input_width: int, levels: list[list[int]], experts_per_task: list[int], shared_experts: int
    ) -> None:
        stack: list[nn.Module] = []
        width = input_width
        for position, widths in enumerate(levels):
            stack.append(
                ExtractionLevel(
                    width,
                    widths,
                    experts_per_task,
                    shared_experts,
                    is_first=position == 0,
                    is_last=position == len(levels) - 1,
                )
            )
            width = widths[-1]
        super().__init__(stack, width)


class ExtractionLevel(GatedExperts):
    """One level of PLE: experts of every unit, a gate for every fused unit over the experts that it sees."""

    seen: Tensor

    def __init__(
        self,
        input_width: int,
        widths: list[int],
        experts_per_task: list[int],
        shared_experts: int,
        *,
        is_first: bool,
        is_last: bool,
    ) -> None:
        experts_per_unit = [*experts_per_task, *([shared_experts] if shared_experts else [])]
        num_experts = sum(experts_per_unit)
        shared = list(range(sum(experts_per_task), num_experts))
        seen_by_unit: list[list[int]] = []
        start = 0
        for count in experts_per_task:
            seen_by_unit.append([*range(start, start + count), *shared])
            start += count
        if shared and not is_last:
            seen_by_unit.append(list(range(num_experts)))
        super().__init__(
            UnitExperts(input_width, widths, experts_per_unit, has_one_input=is_first),
            [RowLinear(input_width, len(seen)) for seen in seen_by_unit],
        )
        self.experts_per_unit: list[int] = experts_per_unit
        self.num_experts: int = num_experts
        self.is_first: bool = is_first
        self.num_fused: int = len(seen_by_unit)
        self.seen_by_unit: list[list[int]] = seen_by_unit
        # Where each gate's weights stand in the [G, E] matrix of all weights.
        positions = [unit * self.num_experts + expert for unit, seen in enumerate(seen_by_unit) for expert in seen]
        self.register_buffer("seen", torch.tensor(positions, dtype=torch.int64), persistent=False)

    def forward(self, units_BUD: Tensor) -> tuple[Tensor, Tensor]:
        """(fused_BGH, weights_BGE) from the level's inputs: [B, 1, D] at the first level, [B, U, D] above it."""
        experts_BEH, logits = self.experts_and_logits(units_BUD)
        seen_BS = torch.cat([softmax_over_experts(logits_BS) for logits_BS in logits], dim=1)
        weights_BGE = (
            seen_BS.new_zeros(seen_BS.shape[0], self.num_fused * self.num_experts)
            .index_copy(1, self.seen, seen_BS)
            .view(-1, self.num_fused, self.num_experts)
        )
        return torch.bmm(weights_BGE, experts_BEH), weights_BGE

    def frozen(self) -> FrozenLevel:
        """The level as data (model/fusion/frozen.py)."""
        sources = units_of(self.experts_per_unit, is_first=self.is_first)
        experts = [Expert(*pair) for pair in zip(sources, self.experts.layers(), strict=True)]
        gates = typed(self.gates, nn.Linear)
        return FrozenLevel(experts, gates_of(gates, self.seen_by_unit, self.num_experts, reads_row=self.is_first))

    def slots(self, prefix: str, tasks: list[str]) -> Slots:
        """The level's layers by name (model/fusion/slots.py)."""
        units = unit_names(tasks, len(self.experts_per_unit))
        fused = units[: self.num_fused]
        gates = typed(self.gates, nn.Linear)
        slots = self.experts.slots(f"{prefix}.expert", expert_names(units, self.experts_per_unit))
        return slots | gate_slots(prefix, gates, fused, [gate.out_features for gate in gates])
