"""AdaTT: adaptive task-to-task fusion (Li et al., KDD 2023, arXiv 2304.04959). Scripted by TorchScript.

In: rows_BD. Out: fused_BTH, one representation per task. AdaTT-sp has task units alone. General AdaTT adds a shared
unit whose experts every task may use. Equation numbers are the paper's. Where it leaves a choice open, this follows
the authors' published semantics: gates have biases, native weights are added after the softmax and not normalised,
the shared unit of the last level yields experts and has no output.

Shapes: B rows, U units of a level (tasks, then the shared one), G units that are fused (all but the last level's
shared one), E experts of a level (task 0's, task 1's, ..., shared), M experts of one unit, D input, H expert width.
"""

import math
from typing import Literal, Self

import torch
from pydantic import NonNegativeInt, model_validator
from torch import Tensor, nn

from model.fusion.experts import GatedExperts, UnitExperts, side_by_side
from model.fusion.frozen import Expert, FrozenLevel, gates_of, units_of
from model.fusion.layers import RowLinear, softmax_over_experts
from model.fusion.levels import ExpertsPerTask, Levels, experts_by_task, widths_by_level
from model.fusion.slots import Slots, expert_names, gate_slots, typed, unit_names
from model.fusion.stack import FusionStack
from model.strict_yaml import StrictModel


class AdaTTConfig(StrictModel):
    """Sizes of an AdaTT. `native_experts: false` is the paper's ablation."""

    kind: Literal["adatt_sp", "adatt"]
    levels: Levels
    experts_per_task: ExpertsPerTask = 2
    shared_experts: NonNegativeInt | None = None
    native_experts: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "adatt_sp" and self.shared_experts:
            raise ValueError("adatt_sp has no shared experts; use kind: adatt or remove shared_experts")
        return self

    def build(self, input_width: int, num_tasks: int) -> "AdaTT":
        """The network for rows of `input_width` columns. Raises ValueError where the sizes do not fit the tasks."""
        shared = self.shared_experts if self.shared_experts is not None else int(self.kind == "adatt")
        return AdaTT(
            input_width,
            widths_by_level(self.levels),
            experts_by_task(self.experts_per_task, num_tasks),
            shared_experts=shared,
            native_experts=self.native_experts,
        )


class AdaTT(FusionStack):
    """Fusion levels, one upon the other (Equations 2 and 3): rows_BD -> fused_BTH.

    `expert_weights` are the gate's and the native weights together (Equation 11)."""

    def __init__(
        self,
        input_width: int,
        levels: list[list[int]],
        experts_per_task: list[int],
        *,
        shared_experts: int = 0,
        native_experts: bool = True,
    ) -> None:
        num_tasks = len(experts_per_task)
        experts_per_unit = [*experts_per_task, *([shared_experts] if shared_experts else [])]
        stack: list[nn.Module] = []
        width = input_width
        for position, widths in enumerate(levels):
            is_last = position == len(levels) - 1
            stack.append(
                FusionLevel(
                    width,
                    widths,
                    experts_per_unit,
                    num_fused=num_tasks if is_last else len(experts_per_unit),
                    is_first=position == 0,
                    native_experts=native_experts,
                )
            )
            width = widths[-1]
        super().__init__(stack, width)


class FusionLevel(GatedExperts):
    """One level of fusion units (Equations 4 to 11)."""

    native_position: Tensor
    native_weights: Tensor

    def __init__(
        self,
        input_width: int,
        widths: list[int],
        experts_per_unit: list[int],
        *,
        num_fused: int,
        is_first: bool,
        native_experts: bool,
    ) -> None:
        num_gates = 1 if is_first else num_fused
        # At the first level all units read the same row, so their gates are one Linear.
        gate_width = sum(experts_per_unit) * (num_fused if is_first else 1)
        super().__init__(
            UnitExperts(input_width, widths, experts_per_unit, has_one_input=is_first),
            [RowLinear(input_width, gate_width) for _ in range(num_gates)],
        )
        self.experts_per_unit: list[int] = list(experts_per_unit)
        self.num_experts: int = sum(experts_per_unit)
        self.num_fused: int = num_fused
        self.is_first: bool = is_first
        native, is_learned = _native_weights(experts_per_unit, num_fused)
        self.has_native: bool = native_experts
        # One entry per native expert of a fused unit, at [unit, expert] = native_position of the padded matrix.
        self.register_buffer("native_position", _native_positions(experts_per_unit, num_fused), persistent=False)
        if native_experts and is_learned:
            self.native_weights = nn.Parameter(native)
        else:
            self.register_buffer("native_weights", native, persistent=False)

    def forward(self, units_BUD: Tensor) -> tuple[Tensor, Tensor]:
        """(fused_BGH, weights_BGE) from the level's inputs: [B, 1, D] at the first level, [B, U, D] above it."""
        experts_BEH, logits = self.experts_and_logits(units_BUD)
        logits_BGE = side_by_side(logits).view(-1, self.num_fused, self.num_experts)
        weights_BGE = softmax_over_experts(logits_BGE)
        if self.has_native:
            weights_BGE = weights_BGE + self.padded_native_weights()
        return torch.bmm(weights_BGE, experts_BEH), weights_BGE

    def slots(self, prefix: str, tasks: list[str]) -> Slots:
        """The level's layers by name (model/fusion/slots.py). Fixed native weights have none."""
        units = unit_names(tasks, len(self.experts_per_unit))
        fused = units[: self.num_fused]
        slots = self.experts.slots(f"{prefix}.expert", expert_names(units, self.experts_per_unit))
        slots |= gate_slots(prefix, typed(self.gates, nn.Linear), fused, [self.num_experts] * self.num_fused)
        if isinstance(self.native_weights, nn.Parameter):
            parts = torch.split(self.native_weights.detach(), self.experts_per_unit[: self.num_fused])
            slots |= {f"{prefix}.native.{unit}": part for unit, part in zip(fused, parts, strict=True)}
        return slots

    def frozen(self) -> FrozenLevel:
        """The level as data (model/fusion/frozen.py)."""
        sources = units_of(self.experts_per_unit, is_first=self.is_first)
        experts = [Expert(*pair) for pair in zip(sources, self.experts.layers(), strict=True)]
        seen = [range(self.num_experts)] * self.num_fused
        gates = gates_of(typed(self.gates, nn.Linear), seen, self.num_experts, reads_row=self.is_first)
        native_GE = self.padded_native_weights().detach() if self.has_native else None
        return FrozenLevel(experts, gates._replace(native_GE=native_GE))

    def padded_native_weights(self) -> Tensor:
        """The native weights padded with zeros to [G, E] (Equation 11)."""
        padded = torch.zeros(
            self.num_fused * self.num_experts, dtype=self.native_weights.dtype, device=self.native_weights.device
        )
        return padded.index_copy(0, self.native_position, self.native_weights).view(self.num_fused, self.num_experts)


def _native_weights(experts_per_unit: list[int], num_fused: int) -> tuple[Tensor, bool]:
    """Initial native weights, unit after unit, and whether they are learned. They are fixed at 1 only where every unit,
    the shared one included, has a single expert. Otherwise they are U(-1/sqrt(m), 1/sqrt(m)) for a unit of m
    experts."""
    if all(count == 1 for count in experts_per_unit):
        return torch.ones(num_fused), False
    weights = [torch.empty(count).uniform_(-1 / math.sqrt(count), 1 / math.sqrt(count)) for count in experts_per_unit]
    return torch.cat(weights[:num_fused]), True


def _native_positions(experts_per_unit: list[int], num_fused: int) -> Tensor:
    num_experts = sum(experts_per_unit)
    starts = [sum(experts_per_unit[:unit]) for unit in range(num_fused)]
    return torch.tensor(
        [unit * num_experts + starts[unit] + m for unit in range(num_fused) for m in range(experts_per_unit[unit])],
        dtype=torch.int64,
    )
