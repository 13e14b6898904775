"""`make bench-start`: from exec of the service to ready, and what a worker and each further one cost in memory.

    python -m benchmarks.start [--turns 3]

Two random artifacts of the reference network: the reference feed, and the same feed with ids enough for about 1 GB of
tables. A start is timed from exec until GET /readyz answers 200. `import torch` alone is timed in the same turn,
beside it, for no start can be faster. Both in wall seconds and in CPU seconds (user and system): on a busy machine the
second is the steadier one. Files are in the page cache. Memory is read from /proc/PID/smaps_rollup of all processes of
a service with 1, 2 and 3 workers after requests: Rss counts a shared page in every process, Pss shares it out, so the
sum of Pss is what the host gives.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.reference_feed import DIM, NETWORK, SCHEMA, columnar_request
from model.schema import FeedSchema
from tests.artifacts import publish_artifact

LARGE_BUCKETS = 650_000
WORKERS = (1, 2, 3)
REQUESTS = 60
CANDIDATES = 100
GIVE_UP_SECONDS = 120.0
MIB = 2**20
# Ended at once: taking torch down again is no part of a start.
IMPORT = [sys.executable, "-c", "import os, torch; os._exit(0)"]


@dataclass(frozen=True)
class Cost:
    """Of a process and its children: seconds by the clock and of CPU."""

    wall: float
    cpu: float


def feed(buckets: int) -> FeedSchema:
    """The reference feed with `buckets` rows, the unknown one apart, in every table."""
    content = SCHEMA.model_dump(mode="json", exclude_none=True)
    for feature in content["features"]:
        if "buckets" in feature:
            feature["buckets"] = buckets
    return FeedSchema.from_mapping(content, "the reference feed")


@contextmanager
def service(models: Path, workers: int) -> Iterator[tuple[subprocess.Popen[bytes], int, Cost]]:
    """A ready service, its port, and what its start cost, until the block ends. Raises RuntimeError if it does not
    start."""
    port = _free_port()
    flags = ["--port", str(port), "--workers", str(workers), "--threads", "1", "--log-level", "error"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "FEEDRANK_DRAIN_SECONDS": "0"}
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "service", "--models", str(models), *flags], env=variables) as process:
        try:
            while not _is_ready(port):
                if process.poll() is not None or time.perf_counter() - started > GIVE_UP_SECONDS:
                    raise RuntimeError(f"the service was not ready within {GIVE_UP_SECONDS:g} s")
                time.sleep(0.005)
            yield process, port, Cost(time.perf_counter() - started, _cpu_seconds(process.pid))
        finally:
            process.terminate()


def import_torch() -> Cost:
    """Cost of importing torch."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(IMPORT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(time.perf_counter() - started, used)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


def _cpu_seconds(pid: int) -> float:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    fields = text.rpartition(")")[2].split()  # the name before it may contain blanks. utime is field 14 of the line
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def start_costs(models: Path, turns: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of `import torch` and of a start, turn by turn. A first turn warms the page cache."""
    costs: dict[str, list[tuple[float, float]]] = {"import torch": [], "service": []}
    for turn in range(turns + 1):
        alone = import_torch()
        with service(models, 1) as (_, _, cost):
            pass
        if turn:
            costs["import torch"].append((alone.wall, alone.cpu))
            costs["service"].append((cost.wall, cost.cpu))
    return costs


def memory(models: Path, workers: int) -> dict[str, Any]:
    """MiB of all processes of a service that has scored, and of each process that maps a table."""
    with service(models, workers) as (process, port, _):
        # Ready is a service of which one worker is.
        give_up = time.monotonic() + GIVE_UP_SECONDS
        while sum(one["is_worker"] for one in _processes(process.pid)) < workers:
            if time.monotonic() > give_up:
                raise RuntimeError(f"{workers} workers had not loaded the model within {GIVE_UP_SECONDS:g} s")
            time.sleep(0.1)
        connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(8 * workers)]
        for number in range(REQUESTS * workers):
            connection = connections[number % len(connections)]
            body = json.dumps(columnar_request(CANDIDATES, number % 8)).encode()
            connection.request("POST", "/v1/rank", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"a request was refused: {answer.status}")
        processes = _processes(process.pid)
    return {
        "pss_mib": sum(one["Pss"] for one in processes),
        "workers": [one for one in processes if one["is_worker"]],
    }


def _processes(pid: int) -> list[dict[str, float]]:
    return [_smaps(one) for one in (pid, *_descendants(pid))]


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [one for child in map(int, children) for one in (child, *_descendants(child))]


def _smaps(pid: int) -> dict[str, float]:
    """MiB by name, and whether it is a process that scores."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    values = {
        name.strip(): int(rest.split()[0]) * 1024 / MIB for name, _, rest in (line.partition(":") for line in lines)
    }
    is_worker = "table_" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    private = values["Private_Clean"] + values["Private_Dirty"]
    return {"Rss": values["Rss"], "Pss": values["Pss"], "private": private, "is_worker": float(is_worker)}


def measure(buckets: int, turns: int) -> dict[str, Any]:
    """Start and memory of one artifact."""
    with tempfile.TemporaryDirectory(prefix="feedrank-bench-") as folder:
        models = Path(folder)
        schema = feed(buckets)
        path = publish_artifact(models, "reference", schema=schema, network=NETWORK, request=columnar_request(500, 0))
        size = sum(file.stat().st_size for file in path.glob("table_*.f32"))
        assert len(schema.tables) * buckets * DIM * 4 <= size
        costs = start_costs(models, turns)
        return {
            "table_mib": size / MIB,
            "seconds_wall_and_cpu": costs,
            "memory": {str(workers): memory(models, workers) for workers in WORKERS},
        }


def _middle(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _start_rows(data: dict[str, Any]) -> list[list[str]]:
    rows = []
    for measured in data.values():
        costs = measured["seconds_wall_and_cpu"]
        for clock, name in enumerate(("wall", "CPU")):
            alone, whole = ([cost[clock] for cost in costs[what]] for what in ("import torch", "service"))
            above = [one - other for one, other in zip(whole, alone, strict=True)]
            rows.append([f"{measured['table_mib']:.0f} MiB", name, *(_middle(one, 2) for one in (alone, whole, above))])
    return rows


def _memory_rows(data: dict[str, Any]) -> list[list[str]]:
    rows = []
    for measured in data.values():
        for workers, found in measured["memory"].items():
            of_a_worker = [
                f"{statistics.mean(one[key] for one in found['workers']):.0f}" for key in ("Rss", "Pss", "private")
            ]
            rows.append([f"{measured['table_mib']:.0f} MiB", workers, f"{found['pss_mib']:.0f}", *of_a_worker])
    return rows


def main() -> None:
    """Measures, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    data = {name: measure(buckets, turns) for name, buckets in (("reference", 20_000), ("large", LARGE_BUCKETS))}
    extra = {}
    for name, measured in data.items():
        pss = [measured["memory"][str(workers)]["pss_mib"] for workers in WORKERS]
        extra[name] = (pss[2] - pss[1], measured["table_mib"])
    body = [
        f"From exec of `python -m service` (one worker) to the first 200 of /readyz, {turns} turns with a Python "
        "that imports torch and ends beside each. Seconds, median (least to most). The last column is what the service "
        "adds.",
        "",
        *report.table(["tables", "clock", "import torch", "service", "above it"], _start_rows(data)),
        "",
        f"Memory in MiB after {REQUESTS} requests of {CANDIDATES} candidates a worker. `all` is the sum of Pss over "
        "every process of the service, the other columns are the mean of a worker.",
        "",
        *report.table(["tables", "workers", "all, Pss", "Rss", "Pss", "private"], _memory_rows(data)),
        "",
        "A third worker adds "
        + " and ".join(f"{more:.0f} MiB with {tables:.0f} MiB of tables" for more, tables in extra.values())
        + ".",
        "",
        "Load average of the machine at the end, of which one is this: " + f"{os.getloadavg()[1]:.1f} over 5 minutes.",
    ]
    print("\n".join(body))
    print(
        report.write("start", "Start and memory of the service", body, {"versions": data}, "python -m benchmarks.start")
    )


if __name__ == "__main__":
    run_benchmark(main)
