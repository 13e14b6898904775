"""`make bench-fuzz`: a million requests that are nearly right, framing included, to the whole service in a process.

    python -m benchmarks.fuzz [--requests 1000000] [--processes 2] [--seed 0]

From the bytes of a connection to those of its answers, without a network (tests/service/fuzz_requests.py says what is
sent). An answer of 5xx but 503 and 504, a request without its answer or with two, and an exchange that is not over
after two minutes are faults: they are written to the results, and the run ends with status 1.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
import uvloop

from benchmarks import report
from benchmarks.command import run_benchmark
from tests.artifacts import publish_artifact
from tests.service.fuzzing import HANG_SECONDS, Outcome, fuzz

_SETTLED = 20_000  # requests after which what is made once has been made
MIB = 1024 * 1024


def main() -> None:
    """Send, count, write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    command = "make bench-fuzz" + (f' ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else "")
    started = time.monotonic()
    each = -(-options.requests // options.processes)
    seeds = range(options.seed, options.seed + options.processes)
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        runs = list(pool.map(_run, [each] * options.processes, seeds))
    outcomes = [outcome for outcome, _, _ in runs]
    statuses: Counter[int] = sum((outcome.statuses for outcome in outcomes), Counter())
    requests, hangs = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("requests", "hangs"))
    broken = sum(outcome.broken for outcome in outcomes)
    faults = sum(outcome.fault_count for outcome in outcomes)
    wrong = sum(count for status, count in statuses.items() if status >= 500 and status not in (503, 504))
    data = {
        "requests": requests,
        "broken": broken,
        "seeds": list(seeds),
        "statuses": dict(sorted(statuses.items())),
        "hangs": hangs,
        "faults": faults,
        "first_faults": [[why, [part.hex() for part in one.reads]] for run in outcomes for why, one in run.faults],
        "grown_mib": [grown for _, grown, _ in runs],
        "cpu_seconds": [cpu for _, _, cpu in runs],
        "seconds": time.monotonic() - started,
    }
    body = [
        f"{requests:,} requests, seeds {', '.join(map(str, seeds))}: {wrong} answers of 5xx but 503 and 504, {hangs} "
        f"hangs (an exchange that is not over after {HANG_SECONDS:g} s), {faults} exchanges with a wrong number of "
        f"answers or a wrong one. The framing of {broken:,} requests is broken, or they are none at all: these may be "
        f"answered by the end of their connection. Resident memory of a process after its first {_SETTLED:,} requests "
        f"and at its end differs by at most {max(grown for _, grown, _ in runs):.0f} MiB.",
        "",
        *report.table(
            ["status", "answers"], [[str(status), f"{count:,}"] for status, count in sorted(statuses.items())]
        ),
    ]
    print(report.write("fuzz", "Requests that are nearly right", body, data, command, is_compact=True))
    if faults:
        sys.exit(1)


def _run(number: int, seed: int) -> tuple[Outcome, float, float]:
    """Outcome, growth of resident memory in MiB, and CPU seconds."""
    from service.app import create_app
    from service.settings import Settings

    logging.getLogger("feedrank").setLevel(logging.CRITICAL + 1)
    process = psutil.Process()
    resident: list[int] = []

    def tell(requests: int) -> None:
        if requests >= _SETTLED or not resident:
            resident.append(process.memory_info().rss)
        if requests % 50_000 < 1000:
            print(f"seed {seed}: {requests:,} requests", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        publish_artifact(Path(folder))
        settings = Settings(
            models=Path(folder), threads=1, queue_seconds=60, max_body_bytes=20_000, max_candidates=50, shadow_sample=0
        )
        outcome = uvloop.run(fuzz(create_app(settings), number, seed, tell))
    settled = resident[min(1, len(resident) - 1)]
    return outcome, (process.memory_info().rss - settled) / MIB, time.process_time()


if __name__ == "__main__":
    run_benchmark(main)
