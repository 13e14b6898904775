"""`make bench-checkpoints`: what a checkpoint costs training, in CPU time, seconds and memory.

    FEEDRANK_DATA=<folder with kuairand_pure> python -m benchmarks.checkpoint_cost [--turns N]

After a few training steps one checkpoint after the other is written, while nothing else runs in the process. Measured
are its CPU time (copy, writing and checksums, all threads), the wait of training for the copy, and its whole duration.
Over 60 s that is the share of a checkpoint a minute. The differences of paired runs are smaller than what a shared
machine changes meanwhile. Feeds are those of benchmarks/training_loops.py: KuaiRand, and 26 tables of 1M, 10M and 26M
rows in all.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.training_loops import IDS, endless, open_feed
from benchmarks.training_steps import ranker_step
from training.distributed.ranks import ALONE
from training.run import table_files
from training.run.checkpoints import Checkpoints
from training.step.training import Training

MINUTE, SHARE = 60.0, 0.05
# Name, feed, rows of a table.
FEEDS = (
    ("KuaiRand-Pure", "kuairand", 0),
    ("26 tables, 1M rows in all", "tables", 1_000_000 // IDS),
    ("26 tables, 10M rows in all", "tables", 10_000_000 // IDS),
    ("26 tables, 26M rows in all", "tables", 1_000_000),
)


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    found = []
    for name, feed, buckets in FEEDS:
        with tempfile.TemporaryDirectory() as folder:
            found.append({"name": name, **_measure(feed, buckets, Path(folder), options.turns)})
        print(found[-1], flush=True)
    lines = [
        [
            one["name"],
            f"{one['bytes'] / 2**20:,.1f}",
            f"{one['cpu']:.2f}",
            f"{one['blocked']:.3f}",
            f"{one['wall']:.2f}",
            f"{one['cpu'] / MINUTE:.2%}",
            f"{one['blocked'] / MINUTE:.2%}",
            f"{one['cpu'] / SHARE:,.0f}",
        ]
        for one in found
    ]
    body = [
        f"Medians of {options.turns} checkpoints. One thread trains, another writes.",
        "",
        *report.table(
            [
                "feed",
                "a checkpoint and its copy in memory, MiB",
                "CPU s",
                "s that training waits",
                "s in all",
                "CPU, share of a minute",
                "waiting, share of a minute",
                "interval for 5 % of CPU, s",
            ],
            lines,
        ),
    ]
    path = report.write("checkpoint_cost", "Cost of a checkpoint", body, {"feeds": found}, "make bench-checkpoints")
    print(path.read_text(encoding="utf-8"))


def _measure(feed: str, buckets: int, folder: Path, turns: int) -> dict[str, Any]:
    run, source, _ = open_feed(feed, folder, buckets=buckets)
    rows = source()
    training = Training(run, rows, ALONE)
    saved = Checkpoints(run.path, ALONE, keep=1, about={})
    step = ranker_step(run, training.ranker, endless(rows), training.balancing, training.optimizers)
    for _ in range(5):
        step()
    spent: dict[str, list[float]] = {"cpu": [], "wall": [], "blocked": []}
    for turn in range(turns + 1):  # the first warms up
        cpu, wall = time.process_time(), time.monotonic()
        saved.save(turn + 1, training.state_dict(), training.tables())
        blocked = time.monotonic() - wall
        saved.wait()
        found = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall, "blocked": blocked}
        for clock, values in spent.items():
            values += [found[clock]] if turn else []
    newest = saved.newest()
    assert newest is not None
    return {
        "bytes": table_files.size_of(table_files.own_parts(training.tables(), is_first=True))
        + (newest / "state.pt").stat().st_size,
        **{clock: statistics.median(values) for clock, values in spent.items()},
        "turns": spent,
    }


if __name__ == "__main__":
    run_benchmark(main)
