"""Items of the reference feed for a candidate catalogue: every candidate that some requests name, among many others.

In: the requests. Out: a Parquet file for `python -m training catalogue`. Items stand in random order, so that those of
a request are scattered over the catalogue as they would be.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.reference_feed import columnar_request

# With its sums 3 KB an item: more than fits the caches of a core.
ITEMS = 20_000
OTHERS_SEED = 1_000_000


def write_items(path: Path, requests: Sequence[dict[str, Any]]) -> None:
    """Write the candidates of the requests and others, ITEMS of them or more."""
    named = sum(len(request["candidates"]["id"]) for request in requests)
    others = columnar_request(max(ITEMS - named, 1), OTHERS_SEED)
    columns: dict[str, list[Any]] = {}
    for request in (*requests, others):
        for name, values in {"id": request["candidates"]["id"], **request["candidates"]["features"]}.items():
            columns.setdefault(name, []).extend(values)
    table = pa.table(columns)
    order = np.random.default_rng(OTHERS_SEED).permutation(len(table))
    pq.write_table(table.take(pa.array(order)), path)
