"""Row-wise Adagrad in plain torch, for tables that fbgemm does not train: one sum of squares a row.

fbgemm's rule: the mean of a row's squared gradient is added to its sum, and the row moves by lr / (sqrt(sum) + eps)
times its gradient. Steps on sparse gradients, so that it touches the rows a batch has read.

Shapes: R rows of a table, N distinct rows read, D columns.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class RowwiseAdagrad(torch.optim.Optimizer):
    """One state a row, `sum` [R], from 0."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, eps: float) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sum"] = torch.zeros(len(parameter), device=parameter.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step on the gradients there are."""
        assert closure is None, "gradients come from the training loop"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _step(parameter, self.state[parameter]["sum"], group)


def _step(parameter: nn.Parameter, sums_R: torch.Tensor, group: dict[str, Any]) -> None:
    assert parameter.grad is not None
    gradient = parameter.grad.coalesce()
    rows_N, values_ND = gradient.indices()[0], gradient.values()
    sums_N = sums_R[rows_N] + values_ND.square().mean(dim=1)
    sums_R[rows_N] = sums_N
    parameter.index_add_(0, rows_N, values_ND / (sums_N.sqrt() + group["eps"]).unsqueeze(1), alpha=-group["lr"])
