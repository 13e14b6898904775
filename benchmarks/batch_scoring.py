"""`make bench-score`: rows per CPU second of batch scoring, against the loop that people write around a scorer.

    python -m benchmarks.batch_scoring [--version models/NAME/VERSION] [--input DIR] [--rows N] [--turns N]

In: a published version (default: one with random weights on the reference schema of the simulated feed) and Parquet
rows of its features (default: simulated). The job as a user runs it, in one process, rows as requests of their own,
rows grouped to the requests they were shown in, and these placed by a policy. Beside it `to_pylist`, a request a page,
`scorer.score_values`. Both read the same files and write Parquet. In turns, CPU seconds. The largest difference of an
answer is stated.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import yaml

from benchmarks import report
from benchmarks.command import run_benchmark
from model.policies.policies import FILE_NAME
from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact
from training.datasets.simulate import simulate
from training.score.job import ANSWER, Job
from training.score.run import score

SCHEMA = Path("configs/schemas/simulated.yaml")
NETWORK = {"fusion": {"kind": "adatt_sp", "levels": [64, 32], "experts_per_task": 2}, "tower": [32]}
GROUP = "page"
POLICIES = {
    "diverse": {
        "filter": ["duration_ms >= 3000"],
        "dedup": ["item_id"],
        "boost": [{"when": "item_age_hours < 24", "multiply": 1.2}],
        "decay": {"per": "creator", "factor": 0.8, "floor": 0.3},
        "select": {
            "cap": {"per": "creator", "count": 2, "within": 10, "else": "relax"},
            "mmr": {"lambda": 0.7, "head": 10, "by": "item_id"},
        },
    }
}


def prepare(source: Path, folder: Path, rows: int) -> Path:
    """The first `rows` impressions with a column that names the page they were shown on."""
    files = sorted(source.glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(file) for file in files]).slice(0, rows)
    user, time_ms = (table.column(name).cast(pa.string()) for name in ("user_id", "timestamp_ms"))
    folder.mkdir()
    page = pc.binary_join_element_wise(user, time_ms, "-")
    pq.write_table(table.append_column(GROUP, page), folder / "impressions.parquet", row_group_size=50_000)
    return folder


def plain_loop(version: Path, source: Path, out: Path) -> None:
    """The loop that people write: rows as dictionaries, a request a page, answers as dictionaries, one Parquet file."""
    scorer = Scorer.load(version, "torchscript")
    asked = {side: [feature.name for feature in scorer.schema.requested(side)] for side in ("request", "candidate")}
    rows = pq.read_table(source).to_pylist()
    answers: list[dict[str, Any]] = []
    for _, page in groupby(rows, key=lambda row: row[GROUP]):
        shown = list(page)
        features = {name: [row[name] for row in shown] for name in asked["candidate"]}
        user = {name: shown[0][name] for name in asked["request"]}
        for answer in scorer.score_values(user, features, len(shown)).tolist():
            answers.append(dict(zip(scorer.outputs, answer, strict=True)))  # noqa: PERF401 - as people write it
    out.mkdir()
    pq.write_table(pa.Table.from_pylist(answers), out / "scored.parquet")


def largest_difference(scored: Path, loop: Path, tasks: list[str]) -> dict[str, float]:
    """By task, absolute up to 1 and relative above. Batch scoring calls a task's column `answer_<task>`."""
    ours, theirs = pq.read_table(scored), pq.read_table(loop)
    worst = {}
    for task in tasks:
        columns = (ours.column(f"{ANSWER}{task}"), theirs.column(task))
        a, b = (np.asarray(column, np.float64) for column in columns)
        worst[task] = float((np.abs(a - b) / np.maximum(1.0, np.abs(b))).max())
    return worst


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", type=Path, help="a published version of the simulated feed's schema")
    parser.add_argument("--input", type=Path, help="a folder that `python -m training simulate` wrote")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="feedrank-bench-") as temporary:
        folder = Path(temporary)
        if options.input is None:
            simulate(options.rows, 0, folder / "simulated")
        source = prepare(options.input or folder / "simulated", folder / "in", options.rows)
        version = options.version or _random_version(folder / "models", source)
        tasks = Scorer.load(version, "torchscript").outputs

        (version.parent / FILE_NAME).write_text(yaml.safe_dump(POLICIES))

        def job(out: Path, group_by: str | None, policy: str | None = None) -> None:
            made = Job.of(version, str(source), out, group_by=group_by, policy=policy, engine="torchscript")
            score(made, show=False)

        paths: dict[str, Callable[[Path], None]] = {
            "plain loop": lambda out: plain_loop(version, source, out),
            "score": lambda out: job(out, None),
            "score --group-by": lambda out: job(out, GROUP),
            "score --group-by --policy": lambda out: job(out, GROUP, "diverse"),
        }
        rows = pq.read_metadata(source / "impressions.parquet").num_rows
        pages = len(set(pq.read_table(source, columns=[GROUP]).column(GROUP).to_pylist()))
        seconds: dict[str, list[float]] = {name: [] for name in paths}
        for turn in range(options.turns + 1):
            for name, path in paths.items():
                started = time.process_time()
                path(folder / f"{name}-{turn}")
                if turn:  # the first warms up
                    seconds[name].append(time.process_time() - started)
        differences = {
            name: largest_difference(folder / f"{name}-0", folder / "plain loop-0", tasks) for name in list(paths)[1:]
        }
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds["plain loop"], values, strict=True))
        for name, values in seconds.items()
    }
    cells = [["plain loop", f"{rows / medians['plain loop']:,.0f}", "1.0", ""]]
    for name, found in differences.items():
        largest = max(found, key=found.__getitem__)
        shown = f"{found[largest]:.1e} ({largest})"
        cells.append([name, f"{rows / medians[name]:,.0f}", f"{ratios[name]:.1f}", shown])
    body = [
        f"{rows:,} rows of the simulated feed, {rows / pages:.0f} a request, one process, one thread, TorchScript. "
        f"Loading the version, reading and writing Parquet are included. Medians of {options.turns} turns. "
        "Differences: absolute up to 1, relative above.",
        "",
        *report.table(["", "rows per CPU second", "times the plain loop", "largest difference of an answer"], cells),
    ]
    print("\n".join(body))
    data = {"rows": rows, "cpu_seconds": seconds, "differences": differences}
    print(report.write("batch_scoring", "Batch scoring", body, data, "make bench-score"))


def _random_version(models: Path, source: Path) -> Path:
    """A version with random weights: what it costs to score does not depend on them."""
    schema = FeedSchema.from_yaml(SCHEMA)
    items = sorted(set(pq.read_table(source, columns=["item_id"]).column("item_id").to_pylist()))
    features = [
        feature.model_copy(update={"vocabulary": items, "min_count": None}) if feature.name == "item_id" else feature
        for feature in schema.features
    ]
    schema = FeedSchema.model_validate({**schema.model_dump(), "features": [f.model_dump() for f in features]})
    request = {"user": {}, "candidates": {"id": ["a", "b"], "features": {}}}
    return publish_artifact(models, "simulated", schema=schema, network=NETWORK, request=request)


if __name__ == "__main__":
    run_benchmark(main)
