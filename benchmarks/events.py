"""`make bench-events`: events a CPU second, and what they cost the rankings beside them.

    python -m benchmarks.events [--turns 16] [--rate 150] [--seconds 4]

One worker on one core, its clients on another, on loopback. Events come in batches of 100 with identities, times and
the item's id, keys and metrics on. A turn measures each way once, in turns of either order. By one client, which sends
again as soon as it is answered: events, and a bare application that takes the same bodies and writes them to a file.

What events add to a ranking is asked at one rate: so many rankings a second at random moments, alone and beside as many
batches of events, and these events alone. Rankings and events come at the same moments in each of these ways. A service
that nobody asks is measured too, for all of them have its polls and flushes in them. What is left of both, less the
events' own, is the rankings'. The same without pauses is said beside it: each request comes when the one before is
answered. There a ranking that follows a ranking finds all caches as it needs them, which no other request leaves so.

Shapes: R requests.
"""

import argparse
import asyncio
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.closed_loop import closed_loop
from benchmarks.command import run_benchmark
from benchmarks.ratio import Ratio, in_turns, mean_and_half_width
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.serving_processes import CLIENT_CORES, SERVER_CORES, Server, free_port, serve
from deploy.open_loop import message, offer, poisson
from tests.artifacts import publish_artifact

BATCH = 100
CANDIDATES = 100
KEY = "a key of the benchmark"
_PATIENCE_SECONDS = 120.0
# Of each kind of request, one after the other, in a turn.
_BATCHES = 400


@dataclass(frozen=True)
class Way:
    """A way to use a server: requests in the order in which they are sent, each when the one before is answered."""

    server: Server
    requests: Sequence[bytes]
    clients: int = 1

    def cpu_seconds(self) -> float:
        """CPU seconds of the server for all requests. Raises RuntimeError where one is refused."""
        before = self.server.cpu()
        loop = closed_loop(self.server.url, self.requests, _PATIENCE_SECONDS, self.clients, most=len(self.requests))
        answered = asyncio.run(loop)
        if len(answered.latencies) != len(self.requests):
            raise RuntimeError(f"{len(self.requests) - len(answered.latencies)} requests failed: {answered.said}")
        return self.server.cpu().seconds_since(before)


@dataclass(frozen=True)
class PacedWay:
    """A way to use a server for so many seconds: each request at its moment."""

    server: Server
    seconds: float
    requests: Sequence[tuple[float, bytes]] = ()

    def cpu_seconds(self) -> float:
        """CPU seconds of the server in that time. Raises RuntimeError where a request is refused."""
        before = self.server.cpu()
        asyncio.run(self._send())
        return self.server.cpu().seconds_since(before)

    async def _send(self) -> None:
        end = asyncio.create_task(asyncio.sleep(self.seconds))
        due_R = np.array([due for due, _ in self.requests])
        outcome = await offer(self.server.url, [request for _, request in self.requests], due_R)
        if not np.isin(outcome.status_R, (200, 202)).all():
            raise RuntimeError(f"requests failed: {np.unique(outcome.status_R)} {outcome.said}")
        await end


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
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--rate", type=int, default=150, help="rankings a second, and batches of events")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a way at that rate, in a turn")
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    with ExitStack() as stack:
        os.sched_setaffinity(0, CLIENT_CORES)
        stack.callback(os.sched_setaffinity, 0, cores)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways = _ways(stack, folder, options.rate, options.seconds)
        num_rankings = len(ways["rank"].requests)
        seconds = in_turns({name: way.cpu_seconds for name, way in ways.items()}, options.turns)
    num_events = _BATCHES * BATCH
    per_second = {name: [num_events / spent for spent in seconds[name]] for name in ("full", "bare")}
    rows = [
        [what, f"{mean:,.0f}", f"± {half:,.0f}"]
        for what, (mean, half) in (
            ("the event log: checked, counted, with keys", mean_and_half_width(per_second["full"])),
            ("a bare application that writes bodies to a file", mean_and_half_width(per_second["bare"])),
        )
    ]
    paced = Ratio.of(_less(seconds["both"], seconds["events"]), _less(seconds["rank"], seconds["idle"]))
    full = Ratio.of(_less(seconds["both_full"], seconds["full"]), seconds["rank_full"])
    rank_ms = 1000 * mean_and_half_width(_less(seconds["rank"], seconds["idle"]))[0] / num_rankings
    body = [
        f"Events a CPU second of the server, in batches of {BATCH}, one after the other. Mean over {options.turns} "
        "turns with its 95 % interval.",
        "",
        *report.table(["way", "events a CPU second", "95 %"], rows),
        "",
        f"Rankings of {CANDIDATES} candidates, {options.rate} a second at random moments: {rank_ms:.2f} ms of CPU time "
        f"each. Beside as many batches of events, less what these take alone at the same moments: "
        f"{paced} times that. One after the other, without a pause: {full} times.",
    ]
    path = report.write(
        "events",
        "Events",
        body,
        {"seconds": seconds, "rate": options.rate, "rankings": num_rankings, "events": num_events},
        "make bench-events",
    )
    print(path.read_text(encoding="utf-8"))


def _less(whole: Sequence[float], part: Sequence[float]) -> list[float]:
    """Differences, turn by turn."""
    return [one - other for one, other in zip(whole, part, strict=True)]


def _ways(stack: ExitStack, folder: Path, rate: int, seconds: float) -> dict[str, Way | PacedWay]:
    """The ways by name, their servers running until the stack ends."""
    publish_artifact(folder / "models", "reference", schema=SCHEMA, network=NETWORK, request=columnar_request(2, 0))
    (folder / "events").mkdir()
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    (folder / "keys.yaml").write_text(f"keys:\n  - {{name: bench, scopes: [score, events], sha256: {digest}}}\n")
    port = free_port()
    flags = ["--models", str(folder / "models"), "--port", str(port), "--threads", "1", "--queue-seconds", "30"]
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

    def sent(server: Server, path: str, bodies: Iterable[bytes]) -> list[bytes]:
        return [message(server.url, path, body, Authorization=f"Bearer {KEY}") for body in bodies]

    batches = [events_body(item, number) for number in range(_BATCHES)]
    events = sent(service, "/v1/events", batches)
    bodies = sent(service, "/v1/rank", (json.dumps(columnar_request(CANDIDATES, seed)).encode() for seed in range(8)))
    rankings = [bodies[number % len(bodies)] for number in range(_BATCHES)]
    due_rank, due_events = (poisson(rate, seconds, seed).tolist() for seed in (0, 1))
    paced_rank = list(zip(due_rank, cycle(rankings), strict=False))
    paced_events = list(zip(due_events, cycle(events), strict=False))
    paced: dict[str, list[tuple[float, bytes]]] = {
        "idle": [],
        "rank": paced_rank,
        "events": paced_events,
        "both": sorted(paced_rank + paced_events),
    }
    return {
        **{name: PacedWay(service, seconds, requests) for name, requests in paced.items()},
        "full": Way(service, events),
        "rank_full": Way(service, rankings),
        "both_full": Way(service, [one for pair in zip(events, rankings, strict=True) for one in pair]),
        "bare": Way(bare, sent(bare, "/v1/events", batches)),
    }


if __name__ == "__main__":
    run_benchmark(main)
