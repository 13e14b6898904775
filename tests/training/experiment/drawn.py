"""Joined hours of an experiment, drawn: users with a past, two arms by user, a day before the start and two after it.

In: a seed and what the treatment does. Out: the folder as `training join` writes it, and its rows as dictionaries.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.schema import FeedSchema

SCHEMA = """
name: feed
features:
  - {name: user_id, side: user, kind: id, buckets: 100, dim: 4}
  - {name: item, side: candidate, kind: id, buckets: 10, dim: 4}
tasks:
  - {name: click, kind: binary, label: is_click}
  - {name: play_time, kind: regression, label: play_time_ms, mask: is_played}
"""
START = datetime(2026, 12, 1, tzinfo=UTC)
BEFORE, AFTER = 12, 48
EPOCH = "abcd0123"
ROW = pa.schema(
    [
        ("_request_id", pa.string()),
        ("_time", pa.timestamp("ms", "UTC")),
        ("_model_version", pa.string()),
        ("_experiments", pa.string()),
        ("_epochs", pa.string()),
        ("_fell_back", pa.string()),
        ("_user", pa.string()),
        ("_weight", pa.float64()),
        ("is_click", pa.int64()),
        ("play_time_ms", pa.float64()),
        ("is_played", pa.int64()),
    ]
)
Row = dict[str, Any]


def schema(folder: Path) -> Path:
    """The feed's schema as a file."""
    path = folder / "schema.yaml"
    path.write_text(SCHEMA)
    FeedSchema.from_yaml(path)
    return path


def drawn_rows(seed: int, users: int, *, effect: float = 0.0, epoch: str = EPOCH, requests: float = 6.0) -> list[Row]:
    """Rows of users whose rates differ, and are the same before and after. Every second one is treated: `effect` is
    added to the rate of clicks, relatively."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for user in range(users):
        arm = "treatment" if user % 2 else "control"
        rate = rng.beta(2, 6)
        for _ in range(rng.poisson(rng.gamma(4.0, requests / 4.0)) + 1):
            at = rng.uniform(-BEFORE, AFTER)
            when = START + timedelta(hours=at)
            is_in = at >= 0
            chance = rate * (1 + effect * (arm == "treatment" and is_in))
            about = {
                "_request_id": f"r{len(rows)}",
                "_time": when.replace(microsecond=when.microsecond // 1000 * 1000),
                "_model_version": "6",
                "_experiments": f'{{"bold":"{arm}","other":"x"}}' if is_in else None,
                "_epochs": f'{{"bold":"{epoch}","other":"0"}}' if is_in else None,
                "_fell_back": '["bold"]' if is_in and user % 40 == 1 else None,
                "_user": None if rng.random() < 0.02 else f"u{user}",
                "_weight": 2.0 if user % 7 == 0 else 1.0,
            }
            for _ in range(rng.integers(1, 4)):
                is_click = int(rng.random() < chance)
                rows.append(
                    {
                        **about,
                        "is_click": is_click,
                        "play_time_ms": float(rng.gamma(2.0, 2000.0)) * is_click,
                        "is_played": int(rng.random() < 0.8),
                    }
                )
    return rows


def write_hours(folder: Path, rows: Sequence[Row], *, before: int = BEFORE, after: int = AFTER) -> Path:
    """The folder that a join makes of the rows, hours without rows included."""
    for number in range(-before, after):
        start = START + timedelta(hours=number)
        of_hour = [row for row in rows if start <= row["_time"] < start + timedelta(hours=1)]
        path = folder / f"date={start:%Y%m%d}" / f"{start:%Y%m%dT%H}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(of_hour, ROW), path)
    return folder
