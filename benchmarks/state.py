"""`make bench-state`: what users by id cost a request, and what becomes of requests where the store fails.

    python -m benchmarks.state [--turns 6] [--requests 400]

One worker on one core, its clients on another, on loopback. The user's 18 features come inline, or from the store by a
key. SQLite is in the service's own process, Redis is a server on the same host, whose CPU time is not the service's.
Every turn measures each way once. Then: events that are in their user's next request a second later, in this service
and in another one on the same Redis, restarts of Redis under load, and a Redis that answers nothing.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from redis import Redis, exceptions

from benchmarks import report
from benchmarks.closed_loop import Answered, closed_loop
from benchmarks.command import run_benchmark
from benchmarks.ratio import mean_and_half_width
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.serving_processes import CLIENT_CORES, SERVER_CORES, Server, free_port, serve
from deploy.open_loop import message
from service.state.store import Written
from service.state.stores import open_store
from service.state.user_state import Entry, UserState, store_name
from tests.artifacts import publish_artifact

CANDIDATES = 100
USERS = 50
KEY = "visitor"
HISTORY, ITEM = "user_list_0", "candidate_0"
_PATIENCE_SECONDS = 120.0
_EVENT_SECONDS = 1.0
_RESTARTS = 20
_TTL_SECONDS = 86_400.0


@dataclass(frozen=True)
class Stores:
    """URLs of the stores by name, and the process of Redis."""

    urls: dict[str, str]
    redis: "RedisProcess"


class RedisProcess:
    """A Redis server on the cores of the clients."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = ["taskset", "-c", ",".join(map(str, sorted(CLIENT_CORES))), "redis-server"]
        self._command += ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self.process = self._started()

    def _started(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return process
                except exceptions.RedisError:
                    time.sleep(0.02)

    def kill(self) -> None:
        """Kill it, with all that it has."""
        self.process.kill()
        self.process.wait()

    def restart(self, times: int) -> None:
        """Kill it and start another on its port, again and again."""
        for _ in range(times):
            self.kill()
            self.process = self._started()


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--requests", type=int, default=400, help="of each way, in a turn")
    parser.add_argument("--events", type=int, default=1_000)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = RedisProcess(folder)
        stack.callback(redis.kill)
        stores = Stores({"SQLite": f"sqlite:///{folder}/state.db", "Redis": redis.url}, redis)
        _publish(folder)
        costs = _costs(folder, stores, options.turns, options.requests)
        freshness = asyncio.run(_freshness(folder, stores, options.events))
        faults = _faults(folder, stores)
    rows = []
    for name in stores.urls:
        extra = [1000 * (by_id - inline) / options.requests for by_id, inline in zip(*costs[name], strict=True)]
        inline_ms = 1000 * mean_and_half_width(costs[name][1])[0] / options.requests
        mean, half = mean_and_half_width(extra)
        rows.append([name, f"{inline_ms:.3f}", f"{mean:+.3f}", f"± {half:.3f}"])
    body = [
        f"CPU milliseconds of the service a request of {CANDIDATES} candidates; mean over {options.turns} turns.",
        "",
        *report.table(["store", "18 features inline", "more by id", "95 %"], rows),
        "",
        "A user's event is in the user's next request a second after the event was accepted:",
        "",
        *report.table(["service that is asked", "events", "found"], [[n, f"{o}", f"{f}"] for n, o, f in freshness]),
        "",
        "Requests while Redis fails, closed loop of two clients:",
        "",
        *report.table(["", "answered", "refused with", "answers a second"], faults),
    ]
    raw = {"cpu_seconds": costs, "freshness": freshness, "faults": faults, "requests": options.requests}
    print(report.write("state", "Users by id", body, raw, "make bench-state").read_text(encoding="utf-8"))


def _publish(folder: Path) -> None:
    published = publish_artifact(folder / "models", "reference", schema=SCHEMA, network=NETWORK, request=_request(0))
    user = [feature.name for feature in SCHEMA.requested("request") if feature.side == "user"]
    fields = [name for name in user if name != HISTORY]
    append = f"{{{HISTORY}: {{event: click, value: {ITEM}, keep: 10}}}}"
    state = f"key: {KEY}\nfields: [{', '.join(fields)}]\nappend: {append}\n"
    (published.parent / "state.yaml").write_text(state)


def _request(seed: int) -> dict[str, Any]:
    return columnar_request(CANDIDATES, seed)


def _is_of_user(name: str) -> bool:
    return any(feature.name == name and feature.side == "user" for feature in SCHEMA.features)


def _put_users(url: str) -> None:
    store = open_store(url, 5.0)
    for seed in range(USERS):
        values = {name: value for name, value in _request(seed)["user"].items() if _is_of_user(name)}
        entries = [Entry(value, float(n)) for n, value in enumerate(values.pop(HISTORY))]
        name = store_name("reference", str(seed))
        blob = UserState(values, {HISTORY: entries}).encoded()
        store.change([name], lambda _, name=name, blob=blob: {name: Written(blob, _TTL_SECONDS)})  # type: ignore[misc]
    store.close()


def _bodies(server: Server, *, by_id: bool) -> list[bytes]:
    """Requests of each user, in which either its features or its key stand."""
    bodies = []
    for seed in range(USERS):
        request = _request(seed)
        if by_id:
            context = {name: value for name, value in request["user"].items() if not _is_of_user(name)}
            request["user"] = {KEY: seed, **context}
        bodies.append(message(server.url, "/v1/rank", json.dumps(request).encode()))
    return bodies


@contextmanager
def _service(folder: Path, name: str, *flags: str) -> Iterator[Server]:
    port = free_port()
    (folder / name).mkdir(exist_ok=True)
    command = [sys.executable, "-m", "service", "--models", str(folder / "models"), "--port", str(port)]
    command += ["--threads", "1", "--event-log", str(folder / name), *flags]
    with serve(command, "/readyz", port, folder / f"{name}.log", SERVER_CORES) as server:
        yield server


def _costs(folder: Path, stores: Stores, turns: int, requests: int) -> dict[str, tuple[list[float], list[float]]]:
    """CPU seconds by store: by id, and inline, of each turn."""
    costs: dict[str, tuple[list[float], list[float]]] = {}
    for name, url in stores.urls.items():
        _put_users(url)
        seconds: tuple[list[float], list[float]] = ([], [])
        with _service(folder, f"cost-{name}", "--state", url, "--state-timeout-ms", "1000") as server:
            for turn in range(-1, turns):  # the first one warms up
                for spent, by_id in zip(seconds, (True, False), strict=True):
                    bodies = _bodies(server, by_id=by_id)
                    before = server.cpu()
                    loop = closed_loop(server.url, bodies, _PATIENCE_SECONDS, 1, most=requests)
                    answered = asyncio.run(loop)
                    if len(answered.latencies) != requests:
                        raise RuntimeError(f"{requests - len(answered.latencies)} requests failed: {answered.said}")
                    if turn >= 0:
                        spent.append(server.cpu().seconds_since(before))
                print(f"{name}: turn {turn + 1} of {turns}", file=sys.stderr)
            missed = _counted(server, 'ranking_state_lookups_total{model="reference",result="hit"}')
            if missed != (turns + 1) * requests:
                raise RuntimeError(f"{missed:.0f} hits in {(turns + 1) * requests} requests by id")
        costs[name] = seconds
    return costs


def _counted(server: Server, sample: str) -> float:
    for line in httpx.get(f"{server.url}/metrics", trust_env=False).text.splitlines():
        if line.startswith(sample):
            return float(line.rpartition(" ")[2])
    return 0.0


async def _freshness(folder: Path, stores: Stores, events: int) -> list[tuple[str, int, int]]:
    """Events that are in the next request, a second after they were accepted: asked of, sent, found."""
    found: list[tuple[str, int, int]] = []
    with ExitStack() as stack:
        flags = ("--state-timeout-ms", "1000", "--queue-seconds", "30")
        embedded = stack.enter_context(_service(folder, "embedded", "--state", stores.urls["SQLite"], *flags))
        one = stack.enter_context(_service(folder, "one", "--state", stores.urls["Redis"], *flags))
        other = stack.enter_context(_service(folder, "other", "--state", stores.urls["Redis"], *flags))
        for name, sent, asked in (
            ("the same, SQLite", embedded, embedded),
            ("the same, Redis", one, one),
            ("another one, Redis", one, other),
        ):
            async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
                results = await asyncio.gather(
                    *(_is_fresh(client, sent.url, asked.url, f"{name}-{n}", n) for n in range(events))
                )
            found.append((name, events, sum(results)))
    return found


async def _is_fresh(client: httpx.AsyncClient, sent: str, asked: str, user: str, number: int) -> bool:
    await asyncio.sleep(number * 0.02)
    event = {"request_id": "r", "type": "click", "id": "v", "event_id": user, "user": user, ITEM: 7}
    accepted = await client.post(f"{sent}/v1/events", json={"events": [event]})
    accepted.raise_for_status()
    await asyncio.sleep(_EVENT_SECONDS)
    body = {"user": {KEY: user}, "candidates": {"id": ["a"], "features": {ITEM: [1]}}, "explain": True}
    answer = await client.post(f"{asked}/v1/rank", json=body)
    answer.raise_for_status()
    return bool(answer.json()["explain"]["inputs"]["state"].get(HISTORY) == 1)


def _faults(folder: Path, stores: Stores) -> list[list[str]]:
    """Requests beside a Redis that works, that is killed and started again, and that answers nothing."""
    redis = stores.redis
    with _service(folder, "faults", "--state", redis.url) as server:
        bodies = _bodies(server, by_id=True)

        def load(seconds: float) -> Answered:
            return asyncio.run(closed_loop(server.url, bodies, seconds, 2))

        load(2.0)
        usual = load(5.0)
        restarts = threading.Thread(target=redis.restart, args=(_RESTARTS,))
        restarts.start()
        parts = []
        while restarts.is_alive():
            parts.append(load(1.0))
        restarted = Answered(
            [one for part in parts for one in part.latencies],
            sum(part.seconds for part in parts),
            {code: text for part in parts for code, text in part.said.items()},
        )
        load(2.0)
        redis.process.send_signal(signal.SIGSTOP)
        first, after = load(0.5), load(5.0)
        redis.process.send_signal(signal.SIGCONT)
        back = load(5.0)
    return [
        [what, f"{len(one.latencies):,}", ", ".join(map(str, one.said)) or "none", f"{one.rate:,.0f}"]
        for what, one in (
            ("as usual", usual),
            (f"{_RESTARTS} restarts", restarted),
            ("the first half second that it answers nothing", first),
            ("the five seconds after that", after),
            ("it answers again", back),
        )
    ]


if __name__ == "__main__":
    run_benchmark(main)
