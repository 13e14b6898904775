"""Cross layers as they score (model/cross_layers.py): what is linear in the row once a request and once an item.

A cross multiplies the request's columns with the candidate's, so behind the first layer nothing is of one side alone.
The first layer is x_0 * (W x_0 + b) + x_0. Both W x_0 + b and x_0 itself are sums of what the request's columns give
and what the candidate's give. So the outputs over the raw row (model/export/scoring_network.py) are these two, side by
side. All that sums are good for stays: a request is multiplied once, and a catalogue has its items' sums. What follows
is computed for each candidate.

Shapes: N candidates, D columns of the dense row, K rank, F outputs over the raw row (D + D, or K + D), H those of a
reader.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.export.frozen_linear import frozen_linear
from model.fusion.slots import Layers

# TorchScript reads these modules.


def over_raw_row(crosses: Sequence[Layers]) -> tuple[Tensor, Tensor]:
    """Weight [F, D] and bias [F] of the first layer's first matrix and, below it, of the row itself."""
    weight_KD, bias_K = crosses[0][0]
    width = weight_KD.shape[1]
    return torch.cat([weight_KD, torch.eye(width)]), torch.cat([bias_K, bias_K.new_zeros(width)])


class CrossedRow(nn.Module):
    """Sums over the raw row -> outputs over the crossed row. Its parts are Linears, `splits` outputs each."""

    bias_1F: Tensor

    def __init__(
        self,
        crosses: Sequence[Layers],
        weight: Tensor,
        bias: Tensor,
        splits: Sequence[int],
        *,
        is_compiled: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.is_compiled: bool = is_compiled
        self.dtype: torch.dtype = dtype
        self.width: int = weight.shape[1]
        first, *rest = crosses
        self.first = nn.Sequential(*(frozen_linear(*layer, dtype) for layer in first[1:]))
        self.rest = nn.ModuleList([nn.Sequential(*(frozen_linear(*layer, dtype) for layer in each)) for each in rest])
        self.readers = nn.ModuleList([frozen_linear(part, None, dtype) for part in torch.split(weight, list(splits))])
        self.register_buffer("bias_1F", bias.detach().clone().unsqueeze(0))

    def forward(self, sums_NF: Tensor) -> list[Tensor]:
        """Outputs over the crossed row, part by part."""
        inner = sums_NF.shape[1] - self.width
        row_ND = sums_NF.narrow(1, inner, self.width)
        product: Tensor = self.first(sums_NF.narrow(1, 0, inner).to(self.dtype)).float()
        crossed_ND = torch.addcmul(row_ND, row_ND, product)
        for layers in self.rest:
            crossed_ND = torch.addcmul(crossed_ND, row_ND, layers(crossed_ND.to(self.dtype)).float())
        rows_ND = crossed_ND.to(self.dtype)
        parts: list[Tensor] = []
        start = 0
        for reader in self.readers:
            weight_HD: Tensor = reader.weight  # type: ignore[assignment]
            end = start + weight_HD.shape[0]
            bias_1H = self.bias_1F[:, start:end]
            if self.is_compiled:
                parts.append(functional.linear(rows_ND, weight_HD).float() + bias_1H)
            else:
                parts.append(functional.linear(rows_ND, weight_HD, bias_1H[0]))
            start = end
        return parts
