"""`make bench-join`: rows against a slow loop, and candidates a CPU minute.

    python -m benchmarks.join [--exact 1000000] [--candidates 2000000 4000000 8000000] [--an-hour 2000000]
                              [--one-hour 20000000]

First logs with lost, doubled, late, disordered and ambiguous events are joined in parts, and each row and count is
compared with a loop over Python objects. Then larger logs are joined by a process of its own each, with one thread.
The last of them have all their candidates in a single hour, which is what is joined at once.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.join_logs import START, write_logs
from tests.training.join.logs import START as EXACT_START
from tests.training.join.logs import logs, write
from tests.training.join.loops import join_slowly
from tests.training.join.test_join import LAST, check, tie
from training.join.join import Settings, join
from training.join.plan import Plan

# Requests that are compared at once: the loop has an object for each impression and event.
_PART = 20_000
_MEMORY = "400MB"


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exact", type=int, default=1_000_000, help="impressions that are compared with the loop")
    parser.add_argument("--candidates", type=int, nargs="+", default=[2_000_000, 4_000_000, 8_000_000])
    parser.add_argument("--an-hour", type=int, default=2_000_000, help="candidates of an hour")
    parser.add_argument("--one-hour", type=int, default=20_000_000, help="candidates of the largest hour")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(_measured(options.measure)))
        return
    exact = _compared(options.exact)
    sizes = [(candidates, max(1, candidates // options.an_hour)) for candidates in options.candidates]
    runs = [_run(candidates, hours) for candidates, hours in [*sizes, (options.one_hour, 1)]]
    rows = [
        [
            f"{run['impressions']:,}",
            f"{run['events']:,}",
            str(run["hours"]),
            f"{run['cpu_seconds']:.0f}",
            f"{60 * run['impressions'] / run['cpu_seconds'] / 1e6:.1f} million",
            f"{run['peak_mb']:.0f} MB",
        ]
        for run in runs
    ]
    head = ["candidates", "events", "hours", "CPU seconds", "candidates a CPU minute", "peak memory"]
    body = [
        f"Rows and counts of {exact['impressions']:,} impressions and {exact['events']:,} events were those of a slow "
        f"loop in Python: {exact['rows']:,} rows, every column, and every event in the same class. Events were lost, "
        "doubled, late, out of order and ambiguous.",
        "",
        f"Requests of 25 candidates with ten features, lines of JSON on the disk, one thread, {_MEMORY} for DuckDB:",
        "",
        *report.table(head, rows),
        "",
        "CPU seconds are those of the whole process, its start included.",
    ]
    path = report.write("join", "The join of impressions and events", body, {"exact": exact, "runs": runs},
                        "make bench-join")  # fmt: skip
    print(path.read_text(encoding="utf-8"))


def _compared(impressions: int) -> dict[str, int]:
    """Join logs in parts and compare each with the loop. Raises AssertionError where a row or a count differs."""
    done = {"impressions": 0, "events": 0, "rows": 0}
    seed = 0
    while done["impressions"] < impressions:
        made = logs(_PART, 4, seed, with_digits=bool(seed % 2))
        with tempfile.TemporaryDirectory() as folder:
            plan = Plan.load(write(Path(folder), made, files=20))
            join(plan, Settings(now=EXACT_START + timedelta(hours=13)))
            truth = join_slowly(made, "shown", LAST, tie)
            check(plan.out, truth)
        done["impressions"] += sum(len(line["order"]) for line in made.requests)
        done["events"] += len(made.events)
        done["rows"] += sum(map(len, truth.rows.values()))
        seed += 1
        print(f"{done['impressions']:,} impressions compared", file=sys.stderr)
    return done


def _run(candidates: int, hours: int) -> dict[str, Any]:
    """Write logs and join them in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_logs(Path(folder) / "logs", candidates, hours)
        command = [sys.executable, "-m", "benchmarks.join", "--measure", str(path)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    print(f"{candidates:,} candidates: {found['cpu_seconds']:.0f} CPU seconds", file=sys.stderr)
    return found


def _measured(path: Path) -> dict[str, Any]:
    """Join one file and measure this process."""
    plan = Plan.load(path)
    hours = len(list((path.parent / "impressions").iterdir())) // 60
    end = datetime.fromtimestamp(START / 1000, UTC) + timedelta(hours=hours, minutes=36)
    began = time.perf_counter()
    join(plan, Settings(now=end, memory=_MEMORY))
    seconds = time.perf_counter() - began
    counts = json.loads((plan.out / "_join" / "counts.json").read_bytes())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "impressions": sum(hour["impressions"] for hour in counts["impressions"].values()),
        "events": sum(hour["in"] for hour in counts["events"].values()),
        "rows": sum(hour["rows"] for hour in counts["impressions"].values()),
        "hours": len(counts["impressions"]),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "seconds": seconds,
        "peak_mb": usage.ru_maxrss / 1000,
    }


if __name__ == "__main__":
    run_benchmark(main)
