"""Requests by id while their store fails: restarts of Redis under load, a Redis that answers half a second late.

In: a folder with the model, and a Redis. Out: what clients in a closed loop were answered. So many clients ask that the
service is never idle: a rate of answers is what its core can do.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.closed_loop import Answered, closed_loop
from benchmarks.serving_processes import CLIENT_CORES
from benchmarks.state_services import RedisProcess, messages, put_users, service
from deploy.open_loop import Connections

_CLIENTS = 16
_RESTARTS = 20
_LATE_SECONDS = 0.5
_USUAL_SECONDS = 2.0
_AFTER_SECONDS = 1.0
_WAIT_SECONDS = 60.0
_FLAGS = ("--queue-seconds", "30")
_OPENED, _CLOSED = b"the state store fails", b"the state store answers again"


@dataclass(frozen=True)
class LateRedis:
    """Answers a second in one time that Redis turned late: as usual, until the breaker opened, and after that.
    `seconds` is how long the breaker took."""

    usual: float
    before: float
    after: float
    seconds: float
    failed: int


class _Proxy:
    """A process between a service and Redis, whose answers it can hold back."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "benchmarks.late_proxy", str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(self._process.pid, CLIENT_CORES)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def hold_back(self, seconds: float) -> None:
        """Let answers come so much later from now on."""
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)

    def end(self) -> None:
        """End it."""
        self._process.communicate()


def measure_restarts(folder: Path, redis: RedisProcess) -> tuple[Answered, Answered]:
    """Answers as usual, and while Redis is killed and started again."""
    put_users(redis.url)
    with service(folder, "restarts", redis.url, *_FLAGS) as server:
        bodies = messages(server.url, by_id=True)

        async def load() -> tuple[Answered, Answered]:
            await closed_loop(server.url, bodies, _USUAL_SECONDS, _CLIENTS)
            usual = await closed_loop(server.url, bodies, _USUAL_SECONDS, _CLIENTS)
            restarts = asyncio.create_task(asyncio.to_thread(_restart, redis))
            parts = []
            while not restarts.done():
                parts.append(await closed_loop(server.url, bodies, 1.0, _CLIENTS))
            await restarts
            latencies = [one for part in parts for one in part.latencies]
            said = {code: text for part in parts for code, text in part.said.items()}
            return usual, Answered(latencies, sum(part.seconds for part in parts), said)

        return asyncio.run(load())


def _restart(redis: RedisProcess) -> None:
    for _ in range(_RESTARTS):
        redis.restart()


def measure_late_redis(folder: Path, redis: RedisProcess, times: int) -> list[LateRedis]:
    """Requests each time that Redis begins to answer half a second late: how many are answered, and how fast."""
    put_users(redis.url)
    return asyncio.run(_late_redis(folder, redis, times))


async def _late_redis(folder: Path, redis: RedisProcess, times: int) -> list[LateRedis]:
    with contextlib.ExitStack() as stack:
        proxy = _Proxy(redis.port)
        stack.callback(proxy.end)
        server = stack.enter_context(service(folder, "late", f"redis://127.0.0.1:{proxy.port}/0", *_FLAGS))
        breaker = _Breaker(folder / "late.log")
        async with _load(server.url, messages(server.url, by_id=True)) as answers:
            await asyncio.sleep(_USUAL_SECONDS)  # warm
            return [await _turn_late(proxy, breaker, answers) for _ in range(times)]


async def _turn_late(proxy: _Proxy, breaker: "_Breaker", answers: "_Answers") -> LateRedis:
    while True:
        await breaker.wait_until(is_open=False)
        failed, begun = answers.failed, time.time()
        await asyncio.sleep(_USUAL_SECONDS)
        if not breaker.read_is_open():  # a busy machine is slow as well
            break
    late = time.time()
    proxy.hold_back(_LATE_SECONDS)
    try:
        await breaker.wait_until(is_open=True)
        await asyncio.sleep(_AFTER_SECONDS)
        ended = time.time()
    finally:
        proxy.hold_back(0.0)
    opened = breaker.changed
    return LateRedis(
        answers.rate(begun, late),
        answers.rate(late, opened),
        answers.rate(opened, ended),
        opened - late,
        answers.failed - failed,
    )


class _Answers:
    """Times of answers of success, in Unix seconds, and how many others there were."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.failed = 0

    def rate(self, begin: float, end: float) -> float:
        """Answers a second between two times."""
        return sum(begin <= one < end for one in self.times) / (end - begin)


@asynccontextmanager
async def _load(url: str, bodies: list[bytes]) -> AsyncIterator[_Answers]:
    """Clients that ask until the block ends."""
    connections, answers = Connections(url), _Answers()

    async def client(number: int) -> None:
        while True:
            status = await connections.send_request(bodies[number % len(bodies)])
            number += _CLIENTS
            if 200 <= status < 300:
                answers.times.append(time.time())
            else:
                answers.failed += 1

    clients = asyncio.gather(*(client(number) for number in range(_CLIENTS)))
    try:
        yield answers
    finally:
        clients.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await clients
        await connections.close()


class _Breaker:
    """The breaker before the store, by the lines of a service's log. `changed` is when it last opened or closed, in
    Unix seconds."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = 0
        self._is_open = False
        self.changed = 0.0

    async def wait_until(self, *, is_open: bool) -> None:
        """Wait until it is open, or closed. Raises TimeoutError."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while self.read_is_open() != is_open:
                await asyncio.sleep(0.01)

    def read_is_open(self) -> bool:
        """True while it is open."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            if _OPENED in line or _CLOSED in line:
                self._is_open = _OPENED in line
                self.changed = datetime.fromisoformat(json.loads(line)["time"]).timestamp()
        return self._is_open
