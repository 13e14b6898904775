"""A small comparison on rolling days: a shared-bottom and boosted trees, on a feed whose days are dates."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.training_data import feed_table, training_file

Json = dict[str, Any]

ROWS = 900
RATE = "optimizer.dense.learning_rate"
BOTTOM: Json = {"name": "bottom", "fusion": {"kind": "shared_bottom", "levels": [8]}}
TREES: Json = {
    "name": "trees",
    "set": {"tasks": ["click", "like"]},
    "lightgbm": {"trees": 20, "early_stopping": 5, "min_rows_per_leaf": 10, "leaves": 4},
    "space": {"leaves": {"low": 3, "high": 9}},
}
FOLDS = (20240104, 20240105)
TEST = 20240106


def dated_table() -> pa.Table:
    """`feed_table` with days from 1 to 6 January 2024 as integers."""
    table = feed_table(ROWS)
    place = table.column_names.index("day")
    days = [20240100 + day for day in table.column("day").to_pylist()]
    return table.set_column(place, "date", pa.array(days, pa.int64()))


def comparison_file(folder: Path, **changes: Any) -> Path:
    """A comparison's file in `folder`, with its data. `changes` replace top-level keys."""
    (folder / "data").mkdir(exist_ok=True)
    pq.write_table(dated_table(), folder / "data" / "log.parquet")
    config = training_file(folder, epochs=1)
    content = {
        "name": "tiny",
        "config": str(config),
        "days": {"column": "date", "first": "2024-01-01", "choose": ["2024-01-04", "2024-01-05"], "test": "2024-01-06"},
        "metrics": ["normalized_entropy", "auc"],
        "tasks": ["click", "like"],
        "methods": [BOTTOM, TREES],
        "baseline": "trees",
        "search": {"trials": 2, "seeds": 1, "space": {RATE: {"low": 1e-3, "high": 1e-1, "log": True}}},
        "seeds": 2,
        "slices": [{"name": "home", "column": "tab", "keep": "home"}],
        "replicates": 100,
        "readings": str(folder / "readings.yaml"),
        "output": str(folder / "out"),
        **changes,
    }
    path = folder / "rolling.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
