"""Items of the tiny feed (tests/artifacts.py) for catalogues: drawn by a seed, written as Parquet.

In: how many, a seed. Out: JSON values by column, nulls, empty lists and ids that no vocabulary holds among them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TYPES = {
    "id": pa.string(),
    "video_id": pa.int64(),
    "tag": pa.string(),
    "topics": pa.list_(pa.int64()),
    "duration_ms": pa.float64(),
}

Items = dict[str, Any]


def tiny_items(count: int, seed: int = 0) -> Items:
    """`count` items named item-0, item-1, ..."""
    random = np.random.default_rng(seed)

    def some(values: list[Any]) -> list[Any]:
        return [None if random.random() < 0.2 else values[random.integers(len(values))] for _ in range(count)]

    return {
        "id": [f"item-{n}" for n in range(count)],
        "video_id": some([-(2**63), -5, 0, 3, 17, 2**63 - 1]),
        "tag": some(["", "x", "naïve", "日本"]),
        "topics": some([[], [7], [8, 9, 1000], [9, None, 7, 7, 8]]),
        "duration_ms": some([0.0, 8000.0, 31000.5]),
    }


def write_items(path: Path, items: Items, row_group_size: int | None = None) -> Path:
    """The items as a Parquet file. A column that is an Arrow array already keeps its type."""
    table = pa.table({
        name: values if isinstance(values, pa.Array) else pa.array(values, TYPES[name])
        for name, values in items.items()
    })  # fmt: skip
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def values_of(items: Items, positions: list[int]) -> dict[str, list[Any]]:
    """The features of some items, as a request that names them all would hold them."""
    return {name: [column[n] for n in positions] for name, column in items.items() if name != "id"}
