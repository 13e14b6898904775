"""Linears and a softmax as torch has them, at sizes for which torch's are slow on a CPU. Scripted by TorchScript.

They pad. The products of a Linear's backward take a third longer where it reads 119 columns than with 120, a multiple
of 4. A product with few outputs takes as long as one with many more, so that two are made in one. A softmax over 7
values takes six times as long as one over 8, a vector's width.

Shapes: B rows, D input, H outputs of a Linear, G gates, E experts, P padding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def apply_linear(rows_BD: Tensor, weight_HD: Tensor, bias_H: Tensor) -> Tensor:
    """outputs_BH."""
    missing = _padding(rows_BD.size(1), 4)
    if missing:
        rows_BD, weight_HD = functional.pad(rows_BD, [0, missing]), functional.pad(weight_HD, [0, missing])
    return functional.linear(rows_BD, weight_HD, bias_H)


def linear_and_gate(
    rows_BD: Tensor, weight_HD: Tensor, bias_H: Tensor, gate_ED: Tensor, gate_E: Tensor
) -> tuple[Tensor, Tensor]:
    """(outputs_BH, logits_BE) of a Linear and a gate of the same rows, by one product."""
    sizes = [bias_H.size(0), gate_E.size(0), _padding(bias_H.size(0) + gate_E.size(0), 8)]
    none_PD = weight_HD.new_zeros(sizes[2], weight_HD.size(1))
    outputs = apply_linear(
        rows_BD, torch.cat([weight_HD, gate_ED, none_PD]), torch.cat([bias_H, gate_E, none_PD[:, 0]])
    )
    parts = torch.split_with_sizes(outputs, sizes, dim=1)
    return parts[0], parts[1]


class RowLinear(nn.Linear):
    """nn.Linear for rows as wide as a feed's features make them: rows_BD -> outputs_BH."""

    def forward(self, rows_BD: Tensor) -> Tensor:
        """outputs_BH."""
        return apply_linear(rows_BD, self.weight, self.bias)


def softmax_over_experts(logits_BGE: Tensor) -> Tensor:
    """weights_BGE, summing to 1 over E, with any number of dimensions before it."""
    num_experts = logits_BGE.size(-1)
    missing = _short_of(num_experts, 8)
    if missing:
        logits_BGE = functional.pad(logits_BGE, [0, missing], value=-float("inf"))
    return torch.softmax(logits_BGE, dim=-1).narrow(-1, 0, num_experts)


def _short_of(size: int, multiple: int) -> int:
    """Distance of `size` to the next multiple."""
    return (multiple - size % multiple) % multiple


def _padding(size: int, multiple: int) -> int:
    """The same where a backward may follow. A forward alone hardly gains by it."""
    return _short_of(size, multiple) if torch.is_grad_enabled() else 0
