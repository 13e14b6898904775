"""The embedding tables of an exported ranker: one flat file a width, mapped by every process that scores with them.

All tables of one width are one matrix, with any readers, and one file, `table_<width>.f32`: its rows one after the
other, little-endian float32, no header. `ranker.pt` has no table. Processes of one host map a file read-only, so they
share its pages. A lookup reads those that it needs.

Shapes: R rows of all tables of a width, W their columns.
"""

import mmap
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

TABLE = re.compile(r"table_([1-9][0-9]*)\.f32")


class StackedTables(NamedTuple):
    """Tables of a width below one another, and by table the row at which it starts."""

    stacked_RW: dict[int, Tensor]
    starts: dict[str, int]

    @classmethod
    def of(cls, tables: Mapping[str, Tensor]) -> "StackedTables":
        """The tables, copied."""
        starts, by_width = _stacks(tables)
        return cls({width: torch.cat(below) for width, below in by_width.items()}, starts)

    @classmethod
    def written(cls, tables: Mapping[str, Tensor], folder: Path) -> "StackedTables":
        """The tables written to files in `folder` and mapped from there: no second copy of them is in memory.

        Raises OSError where the disk does not take them."""
        starts, by_width = _stacks(tables)
        stacked_RW = {}
        for width, below in by_width.items():
            path = folder / table_file(width)
            with path.open("wb") as file:
                for table in below:
                    file.write(np.ascontiguousarray(table.numpy(), "<f4").data)
            with path.open("rb") as file:
                stacked_RW[width] = as_table(map_file(file), width)
        return cls(stacked_RW, starts)


def table_file(width: int) -> str:
    """The name of the file of a width."""
    return f"table_{width}.f32"


def map_file(file: IO[bytes]) -> mmap.mmap:
    """A file mapped read-only, its pages shared with its other readers. Raises OSError, or ValueError if empty."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def as_table(mapped: mmap.mmap, width: int) -> Tensor:
    """The matrix [R, W] over a mapped file. Nothing is copied, and nothing may write to it. Raises ValueError where the
    file is not made of whole rows."""
    if len(mapped) % (4 * width):
        raise ValueError(f"{len(mapped)} bytes are no rows of {width} float32 numbers")
    array = np.frombuffer(mapped, "<f4").astype(np.float32, copy=False)
    with warnings.catch_warnings():
        # torch has no read-only tensors. A lookup does not write.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array).view(-1, width)


def _stacks(tables: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[int, list[Tensor]]]:
    starts: dict[str, int] = {}
    by_width: dict[int, list[Tensor]] = {}
    for name, table in tables.items():
        below = by_width.setdefault(table.shape[1], [])
        starts[name] = sum(len(other) for other in below)
        below.append(table.detach())
    return starts, by_width
