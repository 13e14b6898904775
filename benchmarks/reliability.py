"""`make bench-reliability`: what disturbs a service under load, and by how much.

    python -m benchmarks.reliability [--seconds 30] [--swaps 20]

One worker on one core, open-loop Poisson load from another core, requests of 100 candidates of the reference feed. Its
capacity is found first, by four clients that ask again as soon as they are answered. Then, in turn: 80 % of it
undisturbed and with each disturbance, and three times of it. Latency counts from the moment at which a request was due.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console

from benchmarks import report
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.serving_processes import CLIENT_CORES, SERVER_CORES, free_port, serve
from deploy.open_loop import Outcome, closed_loop, message, offer, poisson
from tests.artifacts import publish_artifact

CANDIDATES = 100
SLOW_CLIENTS = 200
HUGE = 50 * 2**20
RECOVERY_SECONDS = 5.0
NAME = "reference"


class Bench:
    """A running service and the requests that it is asked."""

    def __init__(self, url: str, models: Path, staged: Path) -> None:
        self.url = url
        self.models = models
        self.staged = staged
        bodies = [json.dumps(columnar_request(CANDIDATES, seed)).encode() for seed in range(8)]
        self.messages = [message(url, "/v1/rank", body) for body in bodies]
        self._seed = 0

    def capacity(self, seconds: float) -> float:
        """Answers a second to four clients that ask again as soon as they are answered."""
        answered, taken = asyncio.run(closed_loop(self.url, self.messages, seconds, 4))
        return answered / taken

    def load(self, rate: float, seconds: float) -> Outcome:
        """Open-loop load."""
        self._seed += 1
        return asyncio.run(offer(self.url, self.messages, poisson(rate, seconds, self._seed)))

    @contextmanager
    def undisturbed(self, seconds: float) -> Iterator[None]:
        """Nothing happens."""
        del seconds
        yield

    @contextmanager
    def swaps(self, seconds: float) -> Iterator[None]:
        """New versions appear, evenly over the time."""
        versions = sorted(self.staged.iterdir(), key=lambda version: int(version.name))

        def publish() -> None:
            for version in versions:
                if is_over.wait(seconds / len(versions)):
                    return
                version.rename(self.models / NAME / version.name)

        is_over = threading.Event()
        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    @contextmanager
    def slow_clients(self, seconds: float) -> Iterator[None]:
        """Clients that send half a request and wait, each replaced when it is cut off, and one huge body a second."""
        address = httpx.URL(self.url)
        is_over = threading.Event()
        half = self.messages[0][: len(self.messages[0]) // 2]

        def linger() -> None:
            open_connections: list[socket.socket] = []
            while not is_over.wait(0.05):
                open_connections = [one for one in open_connections if not _is_cut_off(one)]
                for _ in range(SLOW_CLIENTS - len(open_connections)):
                    connection = socket.create_connection((address.host, address.port or 80))
                    connection.sendall(half)
                    connection.setblocking(False)
                    open_connections.append(connection)
            for connection in open_connections:
                connection.close()

        def send_huge() -> None:
            head = message(self.url, "/v1/rank", b"").replace(b"Content-Length: 0", b"Content-Length: %d" % HUGE)
            while not is_over.wait(1.0):
                with socket.create_connection((address.host, address.port or 80)) as connection:
                    connection.settimeout(5)
                    try:
                        connection.sendall(head + b" " * 2**20)
                        connection.recv(4096)
                    except OSError:
                        continue

        del seconds
        threads = [threading.Thread(target=work) for work in (linger, send_huge)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            is_over.set()
            for thread in threads:
                thread.join()


def _is_cut_off(connection: socket.socket) -> bool:
    try:
        return not connection.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _milliseconds(seconds: Any, percentile: float) -> float | None:
    return float(np.percentile(seconds, percentile)) * 1e3 if len(seconds) else None


def _summary(outcome: Outcome, seconds: float) -> dict[str, Any]:
    statuses, counts = np.unique(outcome.status_R, return_counts=True)
    answered, shed = outcome.of(200), outcome.of(429)
    return {
        "requests": len(outcome.due_R),
        "statuses": {str(status): int(count) for status, count in zip(statuses, counts, strict=True)},
        "goodput": len(answered) / seconds,
        "p50_ms": _milliseconds(answered, 50),
        "p99_ms": _milliseconds(answered, 99),
        "shed_p50_ms": _milliseconds(shed, 50),
        "shed_p99_ms": _milliseconds(shed, 99),
        "client_lateness_ms": outcome.lateness * 1e3,
    }


def measure(seconds: float, swaps: int, turns: int, show: Callable[[str], None]) -> dict[str, Any]:
    """All scenarios; each of a turn stands beside the undisturbed one of the same turn."""
    os.sched_setaffinity(0, CLIENT_CORES)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedrank-bench-")))
        request = columnar_request(CANDIDATES, 0)
        show("publishing versions to swap in")
        for seed in range(1 + swaps * turns):
            publish_artifact(folder / "all", NAME, schema=SCHEMA, network=NETWORK, request=request, seed=seed)
        (folder / "models" / NAME).mkdir(parents=True)
        (folder / "all" / NAME / "1").rename(folder / "models" / NAME / "1")
        port = free_port()
        flags = ["--threads", "1", "--log-level", "error", "--poll-seconds", "0.2"]
        command = [sys.executable, "-m", "service", "--models", str(folder / "models"), "--port", str(port), *flags]
        server = stack.enter_context(serve(command, "/readyz", port, folder / "log", SERVER_CORES))
        staged = folder / "staged"
        bench = Bench(server.url, folder / "models", staged)
        bench.capacity(2.0)
        capacity = bench.capacity(seconds / 3)
        show(f"capacity: {capacity:.0f} requests a second")
        rows: list[dict[str, Any]] = []
        for turn in range(turns):
            staged.mkdir(exist_ok=True)
            for version in range(2 + turn * swaps, 2 + (turn + 1) * swaps):
                (folder / "all" / NAME / str(version)).rename(staged / str(version))
            for name, disturb in (
                ("80 % load", bench.undisturbed),
                (f"80 % load, {swaps} new versions", bench.swaps),
                (f"80 % load, {SLOW_CLIENTS} slow clients, 50 MB bodies", bench.slow_clients),
            ):
                with disturb(seconds):
                    outcome = bench.load(0.8 * capacity, seconds)
                rows.append({"turn": turn, "name": name, **_summary(outcome, seconds)})
                show(f"turn {turn + 1}: {name}: {rows[-1]['statuses']}, p99 {rows[-1]['p99_ms']:.1f} ms")
            over = 2 * seconds
            busy = bench.load(3 * capacity, over)
            rows.append({"turn": turn, "name": "three times capacity", **_summary(busy, over)})
            show(f"turn {turn + 1}: three times capacity: {rows[-1]['statuses']}, {rows[-1]['goodput']:.0f} a second")
            after = bench.load(0.8 * capacity, RECOVERY_SECONDS + seconds / 3)
            settled = after.between(RECOVERY_SECONDS, np.inf)
            rows.append({"turn": turn, "name": "80 % load, 5 s later", **_summary(settled, seconds / 3)})
        served = httpx.get(f"{server.url}/v1/models").json()["models"][0]["default_version"]
    return {"capacity": capacity, "seconds": seconds, "rows": rows, "served_at_the_end": served}


def _spread(values: list[float | None], digits: int = 1) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.median(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f})"


def _table(data: dict[str, Any]) -> list[str]:
    turns = sorted({row["turn"] for row in data["rows"]})
    base = {row["turn"]: row for row in data["rows"] if row["name"] == "80 % load"}
    names = list(dict.fromkeys(row["name"] for row in data["rows"]))
    rows = []
    for name in names:
        of = [row for row in data["rows"] if row["name"] == name]
        total = {status: sum(row["statuses"].get(status, 0) for row in of) for status in ("200", "429")}
        other = sum(row["requests"] for row in of) - sum(total.values())
        ratios = [row["p99_ms"] / base[row["turn"]]["p99_ms"] for row in of if row["p99_ms"]]
        rows.append(
            [
                name,
                f"{total['200']:,}",
                f"{total['429']:,}",
                str(other),
                _spread([row["goodput"] / data["capacity"] for row in of], 2),
                _spread([row["p50_ms"] for row in of]),
                _spread([row["p99_ms"] for row in of]),
                _spread(list(ratios), 2),
                _spread([row["shed_p50_ms"] for row in of]),
                _spread([row["shed_p99_ms"] for row in of]),
            ]
        )
    return [
        f"Medians (least to most) over {len(turns)} turns. Goodput is in shares of the capacity, "
        f"{data['capacity']:.0f} requests of {CANDIDATES} candidates a second on one core; latency in ms, from "
        "the moment a request was due.",
        "",
        *report.table(
            ["load", "200", "429", "other", "goodput", "p50", "p99", "p99, times undisturbed", "429 p50", "429 p99"],
            rows,
        ),
        "",
        f"The client left late by {max(row['client_lateness_ms'] for row in data['rows']):.1f} ms at worst.",
    ]


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of one scenario; overload takes twice as long")
    parser.add_argument("--swaps", type=int, default=20, help="new versions in a turn")
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    data = measure(options.seconds, options.swaps, options.turns, Console().print)
    body = _table(data)
    print("\n".join(body))
    given = f"--seconds {options.seconds:g} --swaps {options.swaps} --turns {options.turns}"
    print(report.write("reliability", "A service disturbed", body, data, f"python -m benchmarks.reliability {given}"))


if __name__ == "__main__":
    main()
