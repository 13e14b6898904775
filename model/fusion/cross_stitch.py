"""Cross-stitch networks (Misra et al., CVPR 2016). Scripted by TorchScript.

In: rows_BD. Out: fused_BTH. One expert per task and level. After every level, the last included, the tasks' outputs are
mixed by a learned T x T matrix without bias, one scalar for each pair of tasks, the same for every row.

Shapes: B rows, T tasks, U units = inputs of a level (1 at the first, T above it), D input, H expert width.
"""

from typing import Literal

from torch import Tensor, nn

from model.fusion.experts import UnitExperts
from model.fusion.frozen import Expert, FrozenLevel, FrozenNetwork, units_of
from model.fusion.levels import Levels, widths_by_level
from model.fusion.slots import Slots, expert_names, typed
from model.strict_yaml import StrictModel


class CrossStitchConfig(StrictModel):
    """Sizes of a cross-stitch network."""

    kind: Literal["cross_stitch"]
    levels: Levels

    def build(self, input_width: int, num_tasks: int) -> "CrossStitch":
        """The network for rows of `input_width` columns."""
        return CrossStitch(input_width, widths_by_level(self.levels), num_tasks)


class CrossStitch(nn.Module):
    """Levels of one expert per task with a stitch behind each: rows_BD -> fused_BTH."""

    def __init__(self, input_width: int, levels: list[list[int]], num_tasks: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            [
                UnitExperts(
                    input_width if position == 0 else levels[position - 1][-1],
                    widths,
                    [1] * num_tasks,
                    has_one_input=position == 0,
                )
                for position, widths in enumerate(levels)
            ]
        )
        self.stitches = nn.ModuleList([nn.Linear(num_tasks, num_tasks, bias=False) for _ in levels])
        self.output_width: int = levels[-1][-1]

    def forward(self, rows_BD: Tensor) -> Tensor:
        """fused_BTH of rows_BD."""
        units_BTH = rows_BD.unsqueeze(1)
        for experts, stitch in zip(self.experts, self.stitches):  # noqa: B905 - TorchScript's zip takes no strict
            units_BTH = stitch(experts(units_BTH).transpose(1, 2)).transpose(1, 2)
        return units_BTH

    def frozen(self, num_tasks: int) -> FrozenNetwork:
        """The network as data (model/fusion/frozen.py)."""
        levels: list[FrozenLevel] = []
        pairs = zip(typed(self.experts, UnitExperts), typed(self.stitches, nn.Linear), strict=True)
        for unit_experts, stitch in pairs:
            sources = units_of([1] * num_tasks, is_first=not levels)
            experts = [Expert(*pair) for pair in zip(sources, unit_experts.layers(), strict=True)]
            levels.append(FrozenLevel(experts, stitch.weight.detach()))
        return FrozenNetwork(1, levels, list(range(num_tasks)))

    def slots(self, tasks: list[str]) -> Slots:
        """All layers by name (model/fusion/slots.py)."""
        slots: Slots = {}
        for position, experts in enumerate(typed(self.experts, UnitExperts)):
            slots |= experts.slots(f"level.{position}.expert", expert_names(tasks, [1] * len(tasks)))
        for position, stitch in enumerate(typed(self.stitches, nn.Linear)):
            slots[f"level.{position}.stitch"] = stitch.weight.detach()
        return slots
