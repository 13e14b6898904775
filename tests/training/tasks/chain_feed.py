"""A feed with a chain of three tasks, drawn from a known law: who buys has clicked, who returns has bought.

Shapes: N rows, T tasks.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import expit

CHAIN = """
name: shop
features:
  - {name: x, side: user,      kind: number}
  - {name: y, side: candidate, kind: number}
tasks:
  - {name: buy,     kind: binary, label: bought,   given: click}
  - {name: seconds, kind: regression, label: seconds}
  - {name: click,   kind: binary, label: clicked}
  - {name: returns, kind: binary, label: returned, given: buy}
"""


def probabilities(x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unconditional probabilities_NT of click, buy and returns."""
    return np.cumprod([expit(x_N - 0.5), expit(y_N - 0.5), expit(-x_N - y_N)], axis=0).T


def shop_table(rows: int, seed: int = 0) -> pa.Table:
    """Impressions over six days."""
    rng = np.random.default_rng(seed)
    x_N, y_N = rng.normal(size=(2, rows))
    chances_TN = probabilities(x_N, y_N).T
    # One number a row under each of its chances: the outcomes are nested.
    drawn_N = rng.random(rows)
    clicked, bought, returned = (drawn_N < chances_TN).astype(np.int64)
    return pa.table(
        {
            "x": x_N,
            "y": y_N,
            "clicked": clicked,
            "bought": bought,
            "returned": returned,
            "seconds": np.exp(rng.normal(size=rows)),
            "day": rng.integers(1, 7, rows).astype(np.int32),
            "user_id": rng.integers(0, 50, rows),
        }
    )


def write_shop(folder: Path, table: pa.Table) -> Path:
    """The log as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "log.parquet")
    return folder
