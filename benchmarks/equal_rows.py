"""`make bench-equal-rows`: what it costs a request to find equal candidates where there are none.

    python -m benchmarks.equal_rows [--turns N]

Requests of the reference feed, TorchScript, one thread: from columns to answers, with the search and without it, in the
same turns. Then the search alone, and a request a half of whose candidates equal the other half, which are scored once.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.ratio import Ratio, random_turns
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from model.features.block import EncodedBlock
from model.features.distinct import distinct
from model.features.kinds.columns import Column
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact

SIZES = (20, 100, 500)


def main() -> None:
    """Times, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="feedrank-bench-") as folder:
        version = publish_artifact(
            Path(folder), "reference", schema=SCHEMA, network=NETWORK, request=columnar_request(2, 0)
        )
        scorer = Scorer.load(version, "torchscript")
    timed = {size: _timed(scorer, size, options.turns) for size in SIZES}
    cells = []
    for size, by_way in timed.items():
        medians = {way: f"{statistics.median(values):,.0f}" for way, values in by_way.items()}
        cells.append([str(size), *medians.values(), str(Ratio.of(by_way["with the search"], by_way["without"]))])
    body = [
        "Requests of the reference feed (9 ids and a list of 10 a candidate), TorchScript, one thread: CPU "
        f"microseconds from columns to answers, medians of {options.turns} paired turns in random order, and the "
        "ratio with its 95 % interval. No two candidates of a request are equal, but in the last column of times.",
        "",
        *report.table(["candidates", *next(iter(timed.values())), "with the search / without"], cells),
    ]
    data = {"microseconds": {str(size): by_way for size, by_way in timed.items()}}
    path = report.write("equal_rows", "Finding equal candidates", body, data, "make bench-equal-rows")
    print(path.read_text(encoding="utf-8"))


def _timed(scorer: Scorer, size: int, turns: int) -> dict[str, list[float]]:
    asked = columnar_request(size, size)
    features = asked["candidates"]["features"]
    halves = {name: [*column[: size // 2], *column[: size // 2]] for name, column in features.items()}
    request = scorer.encoder.request_columns(asked["user"])
    columns, doubled = (scorer.encoder.columns("candidate", given, size) for given in (features, halves))
    block = scorer.encoder.encode("candidate", columns, size, as_served=True).block

    def score(given: Mapping[str, Column]) -> None:
        scorer.score(*scorer.encode(request, given, size))

    ways: dict[str, Callable[[], object]] = {
        "without": lambda: score(columns),
        "with the search": lambda: score(columns),
        "the search alone": lambda: distinct(block),
        "half of them equal": lambda: score(doubled),
    }

    def searches(way: str) -> AbstractContextManager[object]:
        return patch("model.scorer.scorer.once", _as_it_is) if way == "without" else nullcontext()

    return random_turns(ways, turns=turns, seed=size, within=searches)


def _as_it_is(block: EncodedBlock) -> tuple[EncodedBlock, None]:
    return block, None


if __name__ == "__main__":
    run_benchmark(main)
