"""TorchScript of a fusion network, saved and loaded again."""

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def reloaded_where_equal(module: nn.Module, blocks: Sequence[Tensor]) -> Any:
    """The module scripted, saved and loaded. It and the scripted one answer each block bit for bit as the module."""
    scripted = torch.jit.script(module)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    reloaded = torch.jit.load(file)  # type: ignore[no-untyped-call]
    for rows_BD in blocks:
        expected = module(rows_BD)
        # Some runs each: TorchScript's executor optimises after the first.
        for _ in range(3):
            assert torch.equal(scripted(rows_BD), expected)
            assert torch.equal(reloaded(rows_BD), expected)
    return reloaded
