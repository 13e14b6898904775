"""Embedding tables and their optimizers' states in a checkpoint's folder: one file a process, of the parts that it has.

In: tensors by name, whole ones or ShardedTensors of which every process has a part. Out: `tables-<process>.pt`. They
are read into tensors that are sharded in any other way, or not at all. Files are read with `weights_only`, so that a
folder from elsewhere cannot run code, and mapped, so that no more of them is read than a process needs.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.artifact.artifact import sync
from model.untrusted_files import open_regular
from training.distributed.sharding import local_parts


class Table(NamedTuple):
    """A table, or a state of one: its shape, and parts with the place in it of each part's first element."""

    shape: tuple[int, ...]
    parts: list[tuple[tuple[int, ...], Tensor]]


def file_of(process: int) -> str:
    """The name of a process's file."""
    return f"tables-{process}.pt"


def own_parts(tables: Mapping[str, Any], *, is_first: bool) -> dict[str, Table]:
    """The tables in the parts that this process writes. What every process has whole, the first one writes."""
    return {
        name: Table(tuple(table.size()), [(place, part) for part, place in local_parts(table)])
        for name, table in tables.items()
        if is_first or hasattr(table, "local_shards")
    }


def size_of(tables: Mapping[str, Table]) -> int:
    """Bytes of parts."""
    return sum(part.numel() * part.element_size() for table in tables.values() for _, part in table.parts)


def copied(tables: Mapping[str, Table]) -> dict[str, Table]:
    """Copies on the CPU, which training may go on beside."""
    return {
        name: Table(shape, [(place, part.detach().to("cpu", copy=True)) for place, part in parts])
        for name, (shape, parts) in tables.items()
    }


def write(path: Path, tables: Mapping[str, Table]) -> None:
    """Write a process's file. Raises OSError, or RuntimeError where torch does not say that the disk is full."""
    torch.save({name: tuple(table) for name, table in tables.items()}, path)
    sync(path)


def read(folder: Path, tables: Mapping[str, Any]) -> None:
    """Read into the given tensors. Raises ValueError naming a table that is absent, in part too, or of another shape,
    and a file that is none of tables."""
    stored = _stored(folder)
    for name, table in tables.items():
        shape = tuple(table.size())
        if name not in stored:
            raise ValueError(f"{folder}: holds no table '{name}'")
        if stored[name].shape != shape:
            raise ValueError(f"{folder}: table '{name}' has shape {stored[name].shape} there, {shape} here")
        for target, place in local_parts(table):
            found = sum(_copy_common(target, place, part, first) for first, part in stored[name].parts)
            if found != target.numel():
                raise ValueError(f"{folder}: holds {found:,} of {target.numel():,} numbers of table '{name}'")


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All tables of a folder, whole. Raises as `read` does."""
    tables = {name: torch.empty(shape, dtype=parts[0][1].dtype) for name, (shape, parts) in _stored(folder).items()}
    read(folder, tables)
    return tables


def _stored(folder: Path) -> dict[str, Table]:
    """The tables of a folder, parts of all files together. None for a feed of numbers alone."""
    found: dict[str, Table] = {}
    for path in sorted(folder.glob("tables-*.pt")):
        try:
            with open_regular(path):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            for name, (shape, parts) in content.items():
                table = found.setdefault(name, Table(tuple(shape), []))
                if table.shape != tuple(shape) or not all(_is_within(shape, *part) for part in parts):
                    raise ValueError(f"parts of '{name}' do not fit its shape")
                table.parts.extend(parts)
        except Exception as error:  # a forged file can stop torch anywhere
            raise ValueError(f"{path}: not a file of tables ({str(error).partition(chr(10))[0]})") from None
    return found


def _is_within(shape: Sequence[int], first: Sequence[int], part: Tensor) -> bool:
    """True for a part whose numbers all have their place in a table of that shape."""
    ends = [at + size for at, size in zip(first, part.shape, strict=True)]
    return len(shape) == len(first) and all(
        at >= 0 and end <= size for at, end, size in zip(first, ends, shape, strict=True)
    )


def _copy_common(target: Tensor, place: Sequence[int], part: Tensor, first: Sequence[int]) -> int:
    """Copy into one part of a table what another has of it, each with its place. Returns how many numbers."""
    lows = [max(*both) for both in zip(place, first, strict=True)]
    ends = zip(place, target.shape, first, part.shape, strict=True)
    highs = [min(at + size, other + length) for at, size, other, length in ends]
    if any(low >= high for low, high in zip(lows, highs, strict=True)):
        return 0
    own, theirs = (
        tuple(slice(low - at, high - at) for low, high, at in zip(lows, highs, start, strict=True))
        for start in (place, first)
    )
    target.detach()[own].copy_(part[theirs])
    return math.prod(high - low for low, high in zip(lows, highs, strict=True))
