"""Transfers of an AITM as they score (model/fusion/aitm.py has the equations). Scripted by TorchScript.

Shapes: N candidates, T tasks, S transfers, H width of a task's result, K three times H.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.fusion.frozen import Transfer, transfer_matrices

# TorchScript reads these modules: lists are filled by loops.


class ScoringTransfers(nn.Module):
    """Results of T tasks, [N, H] each -> the same after all transfers, and weights_NTT of explanations."""

    # Annotated here, for TorchScript cannot infer the type of an empty list.
    steps: list[tuple[int, int]]
    base_TT: Tensor
    moved_STT: Tensor

    def __init__(self, transfers: Sequence[Transfer], num_tasks: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.steps = [(transfer.task, transfer.given) for transfer in transfers]
        self.layers = nn.ModuleList([ScoringTransfer(transfer, dtype) for transfer in transfers])
        base_TT, moved_STT = transfer_matrices(num_tasks, self.steps)
        self.register_buffer("base_TT", base_TT)
        self.register_buffer("moved_STT", moved_STT)

    def forward(self, results: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """(results, weights_NTT)."""
        shares: list[Tensor] = []
        for step, layer in enumerate(self.layers):
            task, given = self.steps[step]
            result_NH, share_N1 = layer(results[given], results[task])
            results[task] = result_NH
            shares.append(share_N1)
        return results, self.base_TT + torch.tensordot(torch.cat(shares, dim=1), self.moved_STT, dims=1)


class ScoringTransfer(nn.Module):
    """One transfer: weights and results in `dtype`, the attention's logits in fp32."""

    def __init__(self, transfer: Transfer, dtype: torch.dtype) -> None:
        super().__init__()
        self.width: int = transfer.attend.shape[1]
        self.inform_HH = _frozen(transfer.inform[0], dtype)
        self.inform_H = _frozen(transfer.inform[1], dtype)
        self.attend_KH = _frozen(transfer.attend, dtype)

    def forward(self, given_NH: Tensor, own_NH: Tensor) -> tuple[Tensor, Tensor]:
        """(result_NH, share_N1)."""
        informed_NH = torch.relu(functional.linear(given_NH, self.inform_HH, self.inform_H))
        logits_N1, value_NH = self._logits_and_value(informed_NH)
        own_logits_N1, own_value_NH = self._logits_and_value(own_NH)
        share_N1 = torch.sigmoid((logits_N1 - own_logits_N1) / math.sqrt(self.width))
        result_NH = share_N1 * value_NH.float() + (1 - share_N1) * own_value_NH.float()
        return result_NH.to(own_NH.dtype), share_N1

    def _logits_and_value(self, result_NH: Tensor) -> tuple[Tensor, Tensor]:
        query_NH, key_NH, value_NH = functional.linear(result_NH, self.attend_KH).chunk(3, dim=1)
        return (query_NH.float() * key_NH.float()).sum(1, keepdim=True), value_NH


def _frozen(weight: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A copy of a weight, not to be trained."""
    return nn.Parameter(weight.detach().to(dtype, copy=True).contiguous(), requires_grad=False)
