"""The embedding tables of an exported ranker: one flat file a width, mapped by every process that scores with them.

All tables of one width are one matrix, with any readers, and one file, `table_<width>.f32`: its rows one after the
other, little-endian float32, no header. `ranker.pt` has no table. Processes of one host map a file read-only, so they
share its pages. A lookup reads those that it needs.

Shapes: R rows of all tables of a width, W their columns.
"""

import mmap
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

TABLE = re.compile(r"table_([1-9][0-9]*)\.f32")
_ATTRIBUTE = "stacked_RW"  # the matrix's name in modules that look rows up


class StackedTables(NamedTuple):
    """Tables of a width below one another, and by table the row at which it starts."""

    stacked_RW: dict[int, nn.Parameter]
    starts: dict[str, int]

    @classmethod
    def of(cls, tables: Mapping[str, Tensor]) -> "StackedTables":
        """The tables, copied."""
        starts, by_width = _stacks(tables)
        return cls({width: _parameter(torch.cat(below)) for width, below in by_width.items()}, starts)

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
                stacked_RW[width] = _parameter(as_table(map_file(file), width))
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


def widths_of(module: nn.Module) -> list[int]:
    """The widths of the tables that a module reads, eager or scripted."""
    return sorted({getattr(reader, _ATTRIBUTE).shape[1] for reader in _readers(module)})


def set_tables(module: nn.Module, stacked_RW: Mapping[int, Tensor]) -> None:
    """Point a module, eager or scripted, at these matrices. A width without a matrix stays as it was."""
    for reader in _readers(module):
        width = getattr(reader, _ATTRIBUTE).shape[1]
        if width in stacked_RW:
            setattr(reader, _ATTRIBUTE, _parameter(stacked_RW[width]))


@contextmanager
def without_tables(module: nn.Module) -> Iterator[None]:
    """A module whose tables have no rows until the block ends, so that what is saved of it has none."""
    full = {getattr(reader, _ATTRIBUTE).shape[1]: getattr(reader, _ATTRIBUTE) for reader in _readers(module)}
    with ExitStack() as stack:
        stack.callback(set_tables, module, full)
        set_tables(module, {width: torch.empty(0, width) for width in full})
        yield


def _readers(module: nn.Module) -> list[nn.Module]:
    return [reader for reader in module.modules() if hasattr(reader, _ATTRIBUTE)]


def _stacks(tables: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[int, list[Tensor]]]:
    starts: dict[str, int] = {}
    by_width: dict[int, list[Tensor]] = {}
    for name, table in tables.items():
        below = by_width.setdefault(table.shape[1], [])
        starts[name] = sum(len(other) for other in below)
        below.append(table.detach())
    return starts, by_width


def _parameter(stacked_RW: Tensor) -> nn.Parameter:
    return nn.Parameter(stacked_RW, requires_grad=False)
