"""The rows of an embedding table that a process has, all or a part, and their first weights.

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
