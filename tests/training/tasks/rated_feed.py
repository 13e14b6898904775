"""The feed of tests/training_data.py with two tasks of several classes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.training_data import SCHEMA, feed_table, sigmoid

RATED = f"""{SCHEMA}
  - {{name: rating, kind: multiclass, label: stars, classes: {{1: bad, 2: fair, 3: good}}, mask: is_rated}}
  - {{name: mood, kind: multiclass, label: mood, classes: [calm, loud]}}
"""


def rated_log(folder: Path, rows: int = 1500) -> None:
    """The feed's log, where a long watch is rated high by those who rate, and moods follow clicks."""
    table, rng = feed_table(rows), np.random.default_rng(9)
    watch = np.log(table.column("watch_ms").to_numpy()) - 7.0
    stars = (
        1 + (rng.random(rows) < sigmoid(2 * watch)).astype(int) + (rng.random(rows) < sigmoid(watch - 1)).astype(int)
    )
    is_rated = rng.random(rows) < 0.7
    loud = rng.random(rows) < 0.2 + 0.5 * table.column("is_click").to_numpy()
    table = table.append_column("stars", pa.array(stars, mask=~is_rated)).append_column("is_rated", pa.array(is_rated))
    table = table.append_column("mood", pa.array(np.where(loud, "loud", "calm")))
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "log.parquet")
