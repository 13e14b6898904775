"""`make bench-attention`: what a list that each candidate weighs costs a request.

    python -m benchmarks.attention [--turns N]

Requests of the reference feed for 500 candidates, TorchScript, one thread: CPU time from columns to answers. The feed
stands beside itself with one list more, of the items of one of the candidate's tables, pooled by its mean and by
attention. All ways are timed in the same turns, candidates by their features and by their ids in a catalogue.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.ratio import Ratio, random_turns
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from model.features.kinds.id_list import MOST_OF_MLP
from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact
from training.publish.catalogue import build_catalogue

CANDIDATES = 500
LENGTHS = (50, 200)
WITHOUT = "no such list"
# The way to pool by its name, and the keys of the list.
LISTS: dict[str, dict[str, Any]] = {
    "mean": {"pooling": "mean"},
    "attention: dot": {"pooling": "attention"},
    "attention: mlp": {"pooling": "attention", "attention": "mlp"},
}
FEATURES, IDS = "by features", "by id"


def main() -> None:
    """Times, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spent: dict[str, dict[str, dict[str, list[float]]]] = {}
    cells = []
    for length in LENGTHS:
        with tempfile.TemporaryDirectory(prefix="feedrank-bench-") as folder:
            lists = {
                way: keys for way, keys in LISTS.items() if length <= MOST_OF_MLP or keys.get("attention") != "mlp"
            }
            scorers = {way: _scorer(Path(folder) / way, length, keys) for way, keys in {WITHOUT: {}, **lists}.items()}
        for candidates in (FEATURES, IDS):
            timed = _timed(scorers, length, candidates, options.turns)
            spent.setdefault(str(length), {})[candidates] = timed
            for way in lists:
                medians = [f"{statistics.median(timed[one]):,.0f}" for one in (WITHOUT, way)]
                cells.append([str(length), candidates, way, *medians, str(Ratio.of(timed[way], timed[WITHOUT]))])
    body = [
        f"Requests of the reference feed for {CANDIDATES} candidates, TorchScript, one thread: CPU microseconds from "
        f"columns to answers, medians of {options.turns} paired turns in random order. The feed as it is stands beside "
        "the same with one list more, which is full, of items of a table of 16 columns. The ratio has its 95 % "
        "interval.",
        "",
        *report.table(["items", "candidates", "pooling", "without the list", "with it", "ratio"], cells),
    ]
    path = report.write("attention", "Lists with attention", body, {"microseconds": spent}, "make bench-attention")
    print(path.read_text(encoding="utf-8"))


def _scorer(models: Path, length: int, keys: dict[str, Any]) -> Scorer:
    """The reference feed with one list more, where it has `keys`, and its catalogue."""
    content = SCHEMA.model_dump(mode="json", exclude_none=True)
    request = columnar_request(2, 0)
    if keys:
        history = {"name": "history", "side": "user", "kind": "id_list", "table": "candidate_0", "max_length": length}
        content["features"].append({**history, **keys})
        request["user"]["history"] = _history(length)
    schema = FeedSchema.from_mapping(content, "the reference feed")
    version = publish_artifact(models, "reference", schema=schema, network=NETWORK, request=request)
    items = columnar_request(CANDIDATES, CANDIDATES)["candidates"]
    columns = {"id": pa.array(items["id"]), **{name: pa.array(column) for name, column in items["features"].items()}}
    pq.write_table(pa.table(columns), models / "items.parquet")
    build_catalogue(version, models / "items.parquet")
    scorer = Scorer.load(version, "torchscript")
    (generation,) = scorer.catalogue_generations()
    scorer.catalogue = scorer.open_catalogue(generation)
    return scorer


def _history(length: int) -> list[int]:
    history: list[int] = np.random.default_rng(length).integers(0, 2**40, length).tolist()
    return history


def _timed(scorers: dict[str, Scorer], length: int, candidates: str, turns: int) -> dict[str, list[float]]:
    asked = columnar_request(CANDIDATES, CANDIDATES)
    ways = {
        way: _question(scorer, asked, {} if way == WITHOUT else {"history": _history(length)}, candidates)
        for way, scorer in scorers.items()
    }
    return random_turns(ways, turns=turns, seed=length)


def _question(
    scorer: Scorer, asked: dict[str, Any], history: dict[str, list[int]], candidates: str
) -> Callable[[], object]:
    """A request, up to its answers."""
    encoder = scorer.encoder
    user, ids = {**asked["user"], **history}, asked["candidates"]["id"]
    columns = encoder.columns("candidate", asked["candidates"]["features"], len(ids))

    def by_features() -> object:
        encoded = encoder.encode("candidate", columns, len(ids), as_served=True)
        return scorer.score(encoder.encode_request(user), encoded)

    def by_id() -> object:
        named = scorer.name(ids, {}, {})
        assert named is not None
        return scorer.score(encoder.encode_request(user), named)

    return by_features if candidates == FEATURES else by_id


if __name__ == "__main__":
    run_benchmark(main)
