"""A joined folder, drawn: users who come back, two versions by user, some rows of nobody and of other versions.

In: a seed. Out: the folder's hours as `training join` writes them, and the same rows as dictionaries.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.schema import FeedSchema

SCHEMA = FeedSchema.from_mapping(
    {
        "name": "feed",
        "features": [{"name": "item", "side": "candidate", "kind": "id", "buckets": 10, "dim": 4}],
        "tasks": [
            {"name": "click", "kind": "binary", "label": "is_click"},
            {"name": "play_time", "kind": "regression", "label": "play_time_ms", "mask": "is_played"},
            {"name": "rating", "kind": "multiclass", "label": "stars", "classes": {1: "bad", 2: "good"}},
        ],
    },
    "schema",
)
START = datetime(2026, 11, 28, 22, tzinfo=UTC)
OWN = pa.schema(
    [
        ("_request_id", pa.string()),
        ("_time", pa.timestamp("ms", "UTC")),
        ("_model_version", pa.string()),
        ("_user", pa.string()),
        ("_weight", pa.float64()),
    ]
)
Row = dict[str, Any]


def drawn_rows(seed: int, users: int, hours: int) -> list[Row]:
    """Rows of requests of 1 to 4 places. A tenth of the users is the canary's, one in 50 moves over in the middle."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for user in range(users):
        is_canary = user % 10 == 0
        for _ in range(rng.poisson(rng.gamma(1.0, 6.0)) + (user % 3 == 0)):
            at = rng.uniform(0, hours)
            version = "7" if is_canary or (user % 50 == 1 and at > hours / 2) else "6"
            when = START + timedelta(hours=at)
            about = {
                "_request_id": f"r{len(rows)}",
                "_time": when.replace(microsecond=when.microsecond // 1000 * 1000),
                "_model_version": "5" if rng.random() < 0.02 else version,
                "_user": None if rng.random() < 0.02 else f"u{user}",
                "_weight": 2.0 if user % 7 == 0 else 1.0,
            }
            rows += [{**about, **_drawn_place(rng)} for _ in range(rng.integers(1, 5))]
    return rows


def _drawn_place(rng: np.random.Generator) -> Row:
    answer, stars = rng.beta(2, 5), rng.random()
    is_click = int(rng.random() < answer)
    return {
        "is_click": is_click,
        "play_time_ms": float(rng.gamma(0.5, 4000.0)) * is_click,
        "is_played": int(rng.random() < 0.8),
        "stars": int(rng.integers(1, 3)),
        "_answer_click": float(answer),
        "_answer_play_time": float(rng.gamma(2.0, 500.0)),
        "_answer_rating.bad": stars,
        "_answer_rating.good": 1 - stars,
    }


def write_hours(folder: Path, rows: Sequence[Row], hours: int) -> None:
    """The folder that a join makes of the rows, hours without rows included."""
    names = list(_drawn_place(np.random.default_rng(0)))
    kinds = [pa.float64() if name.startswith(("_", "play")) else pa.int64() for name in names]
    schema = pa.schema([*OWN, *zip(names, kinds, strict=True)])
    for number in range(hours):
        start = START + timedelta(hours=number)
        of_hour = [row for row in rows if start <= row["_time"] < start + timedelta(hours=1)]
        path = folder / f"date={start:%Y%m%d}" / f"{start:%Y%m%dT%H}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(of_hour, schema), path)
