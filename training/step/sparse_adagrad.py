"""Adagrad in plain torch on sparse gradients, for tables that fbgemm does not train. It moves what was read.

fbgemm's rule: squared gradients are added to their sums, and a weight moves by lr / (sqrt(sum) + eps) times its
gradient. Row-wise there is one sum a row, of the mean over its squares.

Shapes: R rows of a table, N distinct rows read, D columns.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class SparseAdagrad(torch.optim.Optimizer):
    """One state a table, `sum`, [R] where row-wise and otherwise [R, D], from 0."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, eps: float, rowwise: bool) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sum"] = (
                    torch.zeros(len(parameter), device=parameter.device) if rowwise else torch.zeros_like(parameter)
                )

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
    squares_ND = values_ND.square()
    sums_N = sums_R[rows_N] + (squares_ND if sums_R.ndim == 2 else squares_ND.mean(dim=1))
    sums_R[rows_N] = sums_N
    divisors = sums_N.sqrt() + group["eps"]
    steps_ND = values_ND / (divisors if divisors.ndim == 2 else divisors.unsqueeze(1))
    parameter.index_add_(0, rows_N, steps_ND, alpha=-group["lr"])
