"""A small log for the tests of training/input: every row knows its number, in any files and row groups.

Row n has the number n, the list of ids [n, n + 1, ...] of n % 3 entries, and the label n % 2. It trains unless its
number ends in 9, which validates.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from model.features.encoder import FeatureEncoder
from model.schema import FeedSchema
from training.config import DataConfig
from training.data.index import index_of
from training.data.kinds.columns import columns_from_arrow
from training.data.reader import LogReader
from training.data.rows import Batch, fit_features
from training.data.stream import StreamSource

SCHEMA = FeedSchema.from_mapping(
    yaml.safe_load("""
name: numbered
features:
  - {name: number, side: candidate, kind: number}
  - {name: near, side: candidate, kind: id_list, buckets: 1000, dim: 4, max_length: 2}
  - {name: also, side: candidate, kind: id_list, table: near, max_length: 2}
  - {name: user, side: user, kind: id, dtype: string, vocabulary: [u0, u1], dim: 4}
tasks:
  - {name: odd, kind: binary, label: odd}
"""),
    "test",
)
VALIDATES = 9


def numbered(rows: Sequence[int] | range) -> pa.Table:
    """The rows of the given numbers."""
    return pa.table(
        {
            "number": pa.array(rows, pa.int64()),
            "near": pa.array([list(range(row, row + row % 3)) for row in rows], pa.list_(pa.int64())),
            "also": pa.array([[row] for row in rows], pa.list_(pa.int64())),
            "user": pa.array([f"u{row % 3}" for row in rows], pa.string()),
            "odd": pa.array([row % 2 for row in rows], pa.int8()),
            "digit": pa.array([row % 10 for row in rows], pa.int32()),
        }
    )


def write_groups(folder: Path, groups: Sequence[Sequence[int]], *, first: int = 0) -> None:
    """Numbered rows in files (one of `groups` each) of row groups of so many rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, sizes in enumerate(groups):
        with pq.ParquetWriter(folder / f"part-{name:03}.parquet", numbered(range(0)).schema) as writer:
            for size in sizes:
                writer.write_table(numbered(range(first, first + size)), row_group_size=max(size, 1))
                first += size


def data_config(folder: Path | str, **changes: Any) -> DataConfig:
    """The training file's data for a numbered log."""
    split = {"column": "digit", "train": {"max": VALIDATES - 1}, "validation": VALIDATES}
    content = {"path": folder, "split": split, "read": "stream", "lanes": 4, **changes}
    return DataConfig.from_mapping(content, "test")


@cache
def encoder() -> FeatureEncoder:
    """Encoder of a numbered log."""
    table = numbered(range(2))
    return FeatureEncoder(SCHEMA, fit_features(SCHEMA, table, columns_from_arrow(SCHEMA, table)))


def stream(config: DataConfig, batch_size: int = 8, seed: int = 5, **process: int) -> StreamSource:
    """A numbered log as a source."""
    reader = LogReader(config, SCHEMA)
    return StreamSource(reader, index_of(reader), encoder(), batch_size, seed, **process)


def numbers_of(batch: Batch) -> list[int]:
    """The numbers of a batch's rows that count."""
    numbers_B = batch.candidate.numbers_BQ[:, 0].numpy()
    numbers: list[int] = np.rint(numbers_B[batch.observed_BT[:, 0].numpy() > 0]).astype(int).tolist()
    return numbers


def lists_of(batch: Batch) -> Iterator[list[list[int]]]:
    """The table rows of each of the two lists, row by row."""
    values = batch.candidate.list_values_V.tolist()
    for lengths in batch.candidate.list_lengths_LB.tolist():
        yield [[values.pop(0) for _ in range(length)] for length in lengths]
