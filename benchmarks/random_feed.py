"""Random impressions of a feed schema, for measurements that need its shapes and not its data.

In: a schema and a number of rows. Out: a Parquet file of columns that `python -m training train` reads. Ids are drawn
evenly from as many values as said, numbers from a normal law, and labels depend a little on the first number, so that
losses fall.

Shapes: N impressions.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.schema import FeedSchema

DAY = "date"
DAYS = 3
_STRINGS = 20
_LISTED = 3


def write_random_feed(schema: FeedSchema, path: Path, rows: int, *, values: int, seed: int = 0) -> None:
    """Write `rows` impressions of DAYS equal days (1, 2, 3 in the column `date`). `values` is the number of different
    ids of a feature without a vocabulary."""
    generator = np.random.default_rng(seed)
    columns: dict[str, Any] = {DAY: np.sort(np.arange(rows) % DAYS) + 1}
    drive_N = generator.normal(size=rows)
    for feature in schema.features:
        if feature.side == "training_only":
            continue
        table = next((table for table in schema.tables if feature.name in table.features), None)
        if table is None:
            columns[feature.name] = drive_N if not columns.keys() - {DAY} else generator.normal(size=rows)
            continue
        known = table.vocabulary if isinstance(table.vocabulary, tuple) else None
        count = rows * (_LISTED if feature.is_list else 1)
        if known:
            ids: NDArray[Any] = generator.choice(np.array(known), count)
        elif table.dtype == "string":
            ids = np.array([f"value {number}" for number in range(_STRINGS)])[generator.integers(0, _STRINGS, count)]
        else:
            ids = generator.integers(0, values, count)
        columns[feature.name] = list(ids.reshape(rows, _LISTED)) if feature.is_list else ids
    for task in schema.tasks:
        noise_N = generator.normal(size=rows)
        columns[task.label] = np.exp(drive_N + noise_N) if task.kind == "regression" else (drive_N + noise_N > 1) * 1
    pq.write_table(pa.table(columns), path)
