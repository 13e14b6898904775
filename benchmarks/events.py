"""`make bench-events`: events a CPU second, and what they cost the rankings beside them.

    python -m benchmarks.events [--turns 8] [--requests 400]

One worker on one core, its clients on another, on loopback. Events come in batches of 100 with identities, times and
the item's id, keys and metrics on. Beside it a bare application takes the same bodies and writes them to a file. Every
turn measures each way once: events alone, rankings alone, both together, health checks alone and beside rankings, and
the bare application.

What a server spends on two kinds of requests that take turns is more than the sum: each finds the caches as the other
left them. Health checks say how much of that is due to the turns, and the thread that scores how much is the rankings'.
"""

import argparse
import asyncio
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import report
from benchmarks.closed_loop import closed_loop
from benchmarks.command import run_benchmark
from benchmarks.ratio import Ratio, mean_and_half_width
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.serving_processes import SERVER_CORES, Server, free_port, serve
from deploy.open_loop import message
from tests.artifacts import publish_artifact

BATCH = 100
CANDIDATES = 100
KEY = "a key of the benchmark"
_PATIENCE_SECONDS = 120.0


class Spent(NamedTuple):
    """CPU seconds of a server, and of that of its threads that spent most: with rankings, the one that scores."""

    seconds: float
    busiest: float


@dataclass(frozen=True)
class Way:
    """A way to use a server: requests in the order in which they are sent."""

    server: Server
    requests: Sequence[bytes]
    clients: int = 1

    def cpu_seconds(self) -> float:
        """CPU seconds of the server for all requests. Raises RuntimeError where one is refused."""
        return self.spent().seconds

    def spent(self) -> Spent:
        """The same, with the busiest thread's."""
        before, threads = self.server.cpu(), _thread_seconds(self.server.pid)
        loop = closed_loop(self.server.url, self.requests, _PATIENCE_SECONDS, self.clients, most=len(self.requests))
        answered = asyncio.run(loop)
        if len(answered.latencies) != len(self.requests):
            raise RuntimeError(f"{len(self.requests) - len(answered.latencies)} requests failed: {answered.said}")
        after = _thread_seconds(self.server.pid)
        busiest = max(after[thread] - threads.get(thread, 0.0) for thread in after)
        return Spent(self.server.cpu().seconds_since(before), busiest)


def _thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of each thread of a process so far. That of a worker is the service's own."""
    folder = Path("/proc") / str(pid) / "task"
    return {thread.name: int((thread / "schedstat").read_text().split()[0]) / 1e9 for thread in folder.iterdir()}


def events_body(item: str, number: int) -> bytes:
    """A batch of events as a backend sends them."""
    events: list[dict[str, Any]] = [
        {
            "request_id": f"r-{number}",
            "type": "click",
            "id": f"v{one}",
            "event_id": f"e-{number}-{one}",
            "user": 17,
            "time": "2026-11-29T20:15:03.120Z",
            item: number * BATCH + one,
        }
        for one in range(BATCH)
    ]
    return json.dumps({"events": events}).encode()


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--requests", type=int, default=400, help="of each kind, in a turn")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways = _ways(stack, folder, options.requests)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        busiest: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(-1, options.turns):  # the first one warms up
            for name, way in ways.items():
                spent = way.spent()
                if turn >= 0:
                    seconds[name].append(spent.seconds)
                    busiest[name].append(spent.busiest)
            print(f"turn {turn + 1} of {options.turns}", file=sys.stderr)
    num_events = options.requests * BATCH
    per_second = {name: [num_events / spent for spent in seconds[name]] for name in ("events", "bare")}

    def beside(both: str, alone: str) -> Ratio:
        less = [whole - part for whole, part in zip(seconds[both], seconds[alone], strict=True)]
        return Ratio.of(less, seconds["rank"])

    rows = [
        [what, f"{mean:,.0f}", f"± {half:,.0f}"]
        for what, (mean, half) in (
            ("the event log: checked, counted, with keys", mean_and_half_width(per_second["events"])),
            ("a bare application that writes bodies to a file", mean_and_half_width(per_second["bare"])),
        )
    ]
    rank_ms = 1000 * mean_and_half_width(seconds["rank"])[0] / options.requests
    body = [
        f"Events a CPU second of the server, in batches of {BATCH}. Mean over {options.turns} turns with its 95 % "
        "interval.",
        "",
        *report.table(["way", "events a CPU second", "95 %"], rows),
        "",
        f"Rankings of {CANDIDATES} candidates, as many as batches of events: {rank_ms:.2f} ms of CPU time each alone. "
        f"Beside events, less what the events take alone: {beside('both', 'events')} times that. Beside health "
        f"checks, less what these take alone: {beside('both_health', 'health')}. The thread that scores takes "
        f"{Ratio.of(busiest['both'], busiest['rank'])} times its own beside events. The rest is in the event loop, "
        "where what takes turns with a ranking finds cold caches.",
    ]
    path = report.write(
        "events",
        "Events",
        body,
        {"seconds": seconds, "busiest": busiest, "requests": options.requests},
        "make bench-events",
    )
    print(path.read_text(encoding="utf-8"))


def _ways(stack: ExitStack, folder: Path, requests: int) -> dict[str, Way]:
    """The ways by name, their servers running until the stack ends."""
    publish_artifact(folder / "models", "reference", schema=SCHEMA, network=NETWORK, request=columnar_request(2, 0))
    (folder / "events").mkdir()
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    (folder / "keys.yaml").write_text(f"keys:\n  - {{name: bench, scopes: [score, events], sha256: {digest}}}\n")
    port = free_port()
    flags = ["--models", str(folder / "models"), "--port", str(port), "--threads", "1"]
    flags += ["--event-log", str(folder / "events"), "--keys-file", str(folder / "keys.yaml")]
    service = stack.enter_context(
        serve([sys.executable, "-m", "service", *flags], "/readyz", port, folder / "service.log", SERVER_CORES)
    )
    bare_port = free_port()
    command = ["uvicorn", "--port", str(bare_port), "--log-level", "warning", "--no-access-log"]
    bare = stack.enter_context(
        serve(
            [sys.executable, "-m", *command, "benchmarks.bare_events:app"],
            "/",
            bare_port,
            folder / "bare.log",
            SERVER_CORES,
            BARE_EVENTS=str(folder / "bare.jsonl"),
        )
    )
    item = next(feature.name for feature in SCHEMA.features if feature.side == "candidate" and feature.has_ids)

    def sent(server: Server, path: str, body_of: Callable[[int], bytes]) -> list[bytes]:
        return [message(server.url, path, body_of(number), Authorization=f"Bearer {KEY}") for number in range(requests)]

    events = sent(service, "/v1/events", lambda number: events_body(item, number))
    health = [b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"] * requests
    rankings = sent(service, "/v1/rank", lambda number: json.dumps(columnar_request(CANDIDATES, number % 8)).encode())
    return {
        "events": Way(service, events),
        "rank": Way(service, rankings),
        "health": Way(service, health),
        "both_health": Way(service, [one for pair in zip(health, rankings, strict=True) for one in pair]),
        "both": Way(service, [one for pair in zip(events, rankings, strict=True) for one in pair]),
        "bare": Way(bare, sent(bare, "/v1/events", lambda number: events_body(item, number))),
    }


if __name__ == "__main__":
    run_benchmark(main)
