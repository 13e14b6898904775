"""Cross layers of DCN-V2: products of a row's columns with each other, before the fusion network reads the row.

R. Wang, R. Shivanna, D. Cheng, S. Jain, D. Lin, L. Hong, E. Chi, "DCN V2: Improved Deep & Cross Network and Practical
Lessons for Web-scale Learning to Rank Systems", WWW 2021. Layer l gives x_(l+1) = x_0 * (W x_l + b) + x_l, of the dense
row x_0. With a rank K, W is a product of two matrices, [D, K] and [K, D]. The fusion network reads the last x, as the
publication's stacked structure does. L layers have all products of up to L + 1 columns.

Shapes: B rows, D columns of the dense row, K rank, H outputs.
"""

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from model.fusion.layers import RowLinear
from model.fusion.slots import Layers, Slots, layer_slots, linears
from model.strict_yaml import StrictModel


class CrossConfig(StrictModel):
    """Number of cross layers, and the rank of their matrices, by default the full one."""

    layers: Annotated[int, Field(ge=1, le=8)]
    rank: PositiveInt | None = None

    def build(self, width: int) -> "CrossLayers":
        """The layers for rows of `width` columns. Raises ValueError for a rank that is not below it."""
        if self.rank is not None and self.rank >= width:
            raise ValueError(
                f"network.cross.rank: {self.rank} is not below the {width} columns of a row; leave it out for full rank"
            )
        return CrossLayers(width, self.layers, self.rank)


class CrossLayers(nn.Module):
    """rows_BD -> crossed_BD."""

    def __init__(self, width: int, num_layers: int, rank: int | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Sequential(RowLinear(width, width))
                if rank is None
                else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
                for _ in range(num_layers)
            ]
        )

    def forward(self, rows_BD: Tensor) -> Tensor:
        """crossed_BD."""
        crossed_BD = rows_BD
        for layer in self.layers:
            crossed_BD = torch.addcmul(crossed_BD, rows_BD, layer(crossed_BD))
        return crossed_BD

    def frozen(self) -> list[Layers]:
        """Each layer's one matrix with its bias, or its two, the first without."""
        found: list[Layers] = []
        for layer in self.layers:
            assert isinstance(layer, nn.Sequential)
            *first, (weight_DH, bias_D) = linears(list(layer))
            zeros = [(weight_KD, weight_KD.new_zeros(len(weight_KD))) for weight_KD, _ in first]
            found.append([*zeros, (weight_DH, bias_D)])
        return found

    def slots(self) -> Slots:
        """All layers by name (model/fusion/slots.py)."""
        slots: Slots = {}
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Sequential)
            *first, last = linears(list(layer))
            slots |= layer_slots(f"cross.{number}", [last])
            slots |= {f"cross.{number}.down.weight": weight_KD.detach() for weight_KD, _ in first}
        return slots
