"""The rows of an embedding table: those that a process has, all or a part, their first weights, those of ids.

In: a table's weights, a tensor or a ShardedTensor. Nothing here needs TorchRec.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_DRAWN_AT_ONCE = 1 << 20


def local_rows(weight: Any) -> Iterator[tuple[int, Tensor]]:
    """The rows of a table that this process has: (number of the first, rows)."""
    if isinstance(weight, Tensor) and not hasattr(weight, "local_shards"):
        yield 0, weight
    else:
        for shard in weight.local_shards():
            yield shard.metadata.shard_offsets[0], shard.tensor


def draw(weight: Any, rows: int, dim: int) -> None:
    """First weights of a sharded table: every process draws the whole table, block by block, and keeps its own rows."""
    own = list(local_rows(weight))
    bound = rows**-0.5
    for first in range(0, rows, _DRAWN_AT_ONCE):
        block = torch.empty(min(_DRAWN_AT_ONCE, rows - first), dim).uniform_(-bound, bound)
        for start, held in own:
            low, high = max(first, start), min(first + len(block), start + len(held))
            if low < high:
                held[low - start : high - start].copy_(block[low - first : high - first])


def halves(pairs: Tensor, half_rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows, each within its half, of ids of tables with two hashes (model/features/id_lookup.py)."""
    first = torch.div(pairs, half_rows, rounding_mode="floor")
    return first, pairs - first * half_rows
