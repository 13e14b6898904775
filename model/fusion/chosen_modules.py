"""Rows through the modules that they chose: each module computes its own rows, and no others.

Shapes: S rows of the input, N choices, ... the rest of a row's shape.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def apply_by_module(
    inputs: Tensor, source_N: Tensor | None, module_N: Tensor, modules: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """[N, ...]: entry n is modules[module_N[n]] of row source_N[n] of `inputs` [S, ...], or of row n where None (S =
    N).

    A module that no row chose is given no rows, so its gradient is zero."""
    order_N = module_N.argsort(stable=True)
    sorted_inputs = inputs.index_select(0, order_N if source_N is None else source_N.index_select(0, order_N))
    counts: list[int] = torch.bincount(module_N, minlength=len(modules)).tolist()
    parts = torch.split_with_sizes(sorted_inputs, counts)
    outputs = [module(part) for module, part in zip(modules, parts, strict=True)]
    return torch.cat(outputs).index_select(0, order_N.argsort())
