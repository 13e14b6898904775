"""Embedding tables and their optimizers' states in a checkpoint's folder, by torch.distributed.checkpoint.

In: tensors by name, whole ones or ShardedTensors of which every process has a part. Out: one file a process and an
index, `.metadata`. They are read into tensors that are sharded in any other way, or not at all. The index is a pickle:
it is read by an unpickler that makes nothing but an index, so that a folder from elsewhere cannot run code.
"""

import copy
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.remote_device import _remote_device

from model.untrusted_files import open_regular

INDEX = ".metadata"

# Warned of where one process saves by itself. For good: filters set around a call in a thread would be set for all.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

# All that an index of tensors is made of.
_PARTS = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "StorageMeta", "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout"),
    ("torch", "Size"), ("torch", "float32"), ("torch", "float16"), ("torch", "bfloat16"), ("torch", "int64"),
    ("pathlib", "PosixPath"),
}  # fmt: skip


def _member(kind: object, name: str) -> _MEM_FORMAT_ENCODING:
    """For getattr, which Pythons before 3.11.4 write in place of a member of an enumeration. It gives nothing else."""
    if kind is not _MEM_FORMAT_ENCODING:
        raise pickle.UnpicklingError("getattr of anything but an encoding is no part of an index of tensors")
    return _MEM_FORMAT_ENCODING[name]


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) not in _PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an index of tensors")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_index(Path(self.path))


def read_index(folder: Path) -> Metadata:
    """The index of a folder. Raises ValueError naming it where it is not one."""
    try:
        with open_regular(folder / INDEX) as file:
            found = _IndexUnpickler(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError(f"an index was expected, got {type(found).__name__}")
        if not all(isinstance(entry, TensorStorageMetadata) for entry in found.state_dict_metadata.values()):
            raise pickle.UnpicklingError("an entry is no tensor")
        if any("/" in place.relative_path for place in found.storage_data.values()):
            raise pickle.UnpicklingError("a part lies in another folder")
    except Exception as error:  # a forged index can make the unpickler stop anywhere
        raise ValueError(f"{folder / INDEX}: not an index of tables ({error})") from None
    return found


def _entries(folder: Path) -> dict[str, TensorStorageMetadata]:
    if not (folder / INDEX).exists():  # of a feed of numbers alone
        return {}
    found = read_index(folder).state_dict_metadata
    return {name: entry for name, entry in found.items() if isinstance(entry, TensorStorageMetadata)}


def write(folder: Path, tables: Mapping[str, Any], group: dist.ProcessGroup | None) -> None:
    """Writes the tables. All processes of the group call it. Raises OSError, or CheckpointException, which has every
    process's fault."""
    writer = FileSystemWriter(folder, thread_count=1, sync_files=True)
    save(dict(tables), storage_writer=writer, process_group=group, no_dist=group is None)


def read(folder: Path, tables: Mapping[str, Any], group: dist.ProcessGroup | None) -> None:
    """Reads into the given tensors. Raises ValueError naming a table that is absent or of another shape."""
    entries = _entries(folder)
    for name, tensor in tables.items():
        if name not in entries:
            raise ValueError(f"{folder}: holds no table '{name}'")
        if tuple(entries[name].size) != tuple(tensor.size()):
            raise ValueError(
                f"{folder}: table '{name}' has shape {tuple(entries[name].size)} there, {tuple(tensor.size())} here"
            )
    if tables:
        load(dict(tables), storage_reader=_Reader(folder), process_group=group, no_dist=group is None)


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All tables of a folder, whole."""
    entries = _entries(folder)
    tables = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    read(folder, tables, None)
    return tables


def copied(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Copies on the CPU, which training may go on beside."""
    return {name: _copied(value) for name, value in tables.items()}


def _copied(value: Any) -> Any:
    if not hasattr(value, "local_shards"):
        return value.detach().to("cpu", copy=True)
    metadata = copy.deepcopy(value.metadata())
    for part in metadata.shards_metadata:
        part.placement = _remote_device(f"rank:{part.placement.rank()}/cpu")
    by_offsets = {tuple(part.shard_offsets): part for part in metadata.shards_metadata}
    own = [
        Shard(shard.tensor.detach().to("cpu", copy=True), by_offsets[tuple(shard.metadata.shard_offsets)])
        for shard in value.local_shards()
    ]
    return ShardedTensor._init_from_local_shards_and_global_metadata(own, metadata)


def size_of(tables: Mapping[str, Any]) -> int:
    """Bytes of the tables that this process has."""
    held = [
        part
        for value in tables.values()
        for part in ([shard.tensor for shard in value.local_shards()] if hasattr(value, "local_shards") else [value])
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)
