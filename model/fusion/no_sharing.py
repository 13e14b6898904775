"""No sharing: a whole MLP per task over the same rows. Scripted by TorchScript.

In: rows_BD, or with embeddings of each task's own the T rows of the tasks side by side, [B, T * D]. Out: fused_BTH.
Above the embeddings no parameter serves two tasks: no gradient of one task reaches another's layers. With own
embeddings none serves two anywhere.

Shapes: B rows, T tasks, D columns that a task reads, H width of the last layer.
"""

from typing import Literal

from torch import Tensor, nn

from model.fusion.experts import UnitExperts
from model.fusion.frozen import Expert, FrozenLevel, FrozenNetwork, units_of
from model.fusion.levels import Levels, all_widths
from model.fusion.slots import Slots
from model.strict_yaml import StrictModel


class NoSharingConfig(StrictModel):
    """Sizes of each task's MLP. The embeddings below are for all tasks, or (`own_embeddings`) each task's own."""

    kind: Literal["no_sharing"]
    levels: Levels
    own_embeddings: bool = False

    def build(self, input_width: int, num_tasks: int) -> "NoSharing":
        """The network for rows of `input_width` columns, with own embeddings those of all tasks together."""
        return NoSharing(input_width, all_widths(self.levels), num_tasks, has_own_rows=self.own_embeddings)


class NoSharing(nn.Module):
    """One MLP per task, over one row for all or over the task's part of it: rows_BD -> fused_BTH."""

    def __init__(self, input_width: int, widths: list[int], num_tasks: int, *, has_own_rows: bool = False) -> None:
        super().__init__()
        self.num_rows: int = num_tasks if has_own_rows else 1
        assert input_width % self.num_rows == 0, "every task's part of the row has the same columns"
        self.row_width: int = input_width // self.num_rows
        self.experts = UnitExperts(
            self.row_width, widths, [1] * num_tasks, has_one_input=not has_own_rows, has_own_rows=has_own_rows
        )
        self.output_width: int = widths[-1]

    def forward(self, rows_BD: Tensor) -> Tensor:
        """fused_BTH of rows_BD."""
        fused_BTH: Tensor = self.experts(rows_BD.view(-1, self.num_rows, self.row_width))
        return fused_BTH

    def frozen(self, num_tasks: int) -> FrozenNetwork:
        """The network as data (model/fusion/frozen.py)."""
        sources = units_of([1] * num_tasks, is_first=self.num_rows == 1)
        experts = [Expert(*pair) for pair in zip(sources, self.experts.layers(), strict=True)]
        return FrozenNetwork(self.num_rows, [FrozenLevel(experts, None)], list(range(num_tasks)))

    def slots(self, tasks: list[str]) -> Slots:
        """All layers by name (model/fusion/slots.py)."""
        return self.experts.slots("expert", tasks)
