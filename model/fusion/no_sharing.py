"""No sharing: a whole MLP per task over the same rows. Scripted by TorchScript.

In: rows_BD. Out: fused_BTH. Above the embeddings no parameter serves two tasks: no gradient of one task reaches
another's layers.

Shapes: B rows, T tasks, D input, H width of the last layer.
"""

from typing import Literal

from torch import Tensor, nn

from model.fusion.experts import UnitExperts
from model.fusion.levels import Levels, all_widths
from model.strict_yaml import StrictModel


class NoSharingConfig(StrictModel):
    """Sizes of each task's MLP; the embeddings below are the feed's, for all tasks."""

    kind: Literal["no_sharing"]
    levels: Levels

    def build(self, input_width: int, num_tasks: int) -> "NoSharing":
        """The network for rows of `input_width` columns."""
        return NoSharing(input_width, all_widths(self.levels), num_tasks)


class NoSharing(nn.Module):
    """One MLP per task, all in one batched product per layer: rows_BD -> fused_BTH."""

    def __init__(self, input_width: int, widths: list[int], num_tasks: int) -> None:
        super().__init__()
        self.experts = UnitExperts(input_width, widths, [1] * num_tasks, has_one_input=True)
        self.output_width: int = widths[-1]

    def forward(self, rows_BD: Tensor) -> Tensor:
        """fused_BTH of rows_BD."""
        fused_BTH: Tensor = self.experts(rows_BD.unsqueeze(1))
        return fused_BTH
