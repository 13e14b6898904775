"""The catalogue that appends are measured on: items of the reference feed, drawn by a seed, and a version of it.

In: a folder, how many items. Out: Parquet files of items, and a published version with the catalogue of the first.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.reference_feed import LIST_LENGTH, NETWORK, SCHEMA, columnar_request, names_of
from tests.artifacts import publish_artifact

_GROUP = 50_000


def write_items(path: Path, first: int, count: int, seed: int) -> Path:
    """Write the items `first` to `first + count - 1`. Their features are drawn."""
    draw = np.random.default_rng(seed)
    ids, lists, _ = names_of("candidate")
    schema = pa.schema([
        ("id", pa.string()),
        *((name, pa.int64()) for name in ids),
        *((name, pa.list_(pa.int64())) for name in lists),
    ])  # fmt: skip
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, _GROUP):
            rows = min(_GROUP, count - start)
            offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * LIST_LENGTH)
            columns: list[pa.Array] = [pa.array([item_id(first + start + row) for row in range(rows)])]
            columns += [pa.array(draw.integers(0, 2**40, rows)) for _ in ids]
            columns += [
                pa.ListArray.from_arrays(offsets, pa.array(draw.integers(0, 2**40, rows * LIST_LENGTH))) for _ in lists
            ]
            writer.write_table(pa.table(columns, schema=schema))
    return path


def item_id(number: int) -> str:
    """The id of an item."""
    return f"v{number:09d}"


def published(folder: Path, items: int) -> tuple[Path, float]:
    """A version of the reference network, whose catalogue has so many items, and the CPU seconds of building that."""
    version = publish_artifact(
        folder / "models", "reference", schema=SCHEMA, network=NETWORK, request=columnar_request(500, 0)
    )
    path = write_items(folder / "items.parquet", 0, items, 1)
    return version, catalogue(version, str(path))[0]


def catalogue(version: Path, *arguments: str) -> tuple[float, float]:
    """CPU and wall seconds of `python -m training catalogue`. Raises RuntimeError where it fails."""
    return seconds_of([sys.executable, "-m", "training", "catalogue", str(version), *arguments])


def seconds_of(command: list[str]) -> tuple[float, float]:
    """CPU seconds, user and system, and wall seconds of a command. Raises RuntimeError where it fails."""
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after, wall = os.times(), time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:5])} failed: {done.stderr.strip()[-500:]}")
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return user + system, wall
