"""Many exchanges with the whole service in this process, from the bytes of a connection to those of its answers.

In: the application, a number of requests, a seed. Out: `Outcome`. Several connections are open at once, as the service
has them. An exchange that is not over after HANG_SECONDS hangs.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httptools
from starlette.types import ASGIApp
from uvicorn import Config
from uvicorn.lifespan.on import LifespanOn
from uvicorn.server import ServerState

from service.http.protocol import GuardedProtocol
from tests.service.fuzz_requests import Exchange, Requests
from tests.service.in_memory import Transport

HANG_SECONDS = 120.0
_AT_ONCE = 8
_ALLOWED_5XX = (503, 504)


@dataclass
class Outcome:
    """Outcome of an exchange. `faults` are exchanges whose answers are wrong, with the reason. The first ones are
    kept."""

    requests: int = 0
    broken: int = 0  # of these, such as have no right framing
    statuses: Counter[int] = field(default_factory=Counter)
    hangs: int = 0
    fault_count: int = 0
    faults: list[tuple[str, Exchange]] = field(default_factory=list)

    def is_wrong(self, why: str, exchange: Exchange) -> None:
        """Keep it."""
        self.fault_count += 1
        if len(self.faults) < 10:
            self.faults.append((why, exchange))


class _Answers:
    """Reads answers as a client does."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # 100 Continue is none
            self.statuses.append(status)


class _Wire(Transport):
    """A transport that tells when anything changes, and ends as real ones do."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.protocol: GuardedProtocol | None = None
        self.answers = _Answers()
        self.changed = asyncio.Event()
        self._loop = loop

    def write(self, data: Any) -> None:
        if not self.is_closed and data:
            self.answers.feed(bytes(data))
            self.changed.set()

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.changed.set()
            assert self.protocol is not None
            self._loop.call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def resume_reading(self) -> None:
        super().resume_reading()
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not (condition() or self.is_closed):
            self.changed.clear()
            await self.changed.wait()


async def fuzz(application: ASGIApp, number: int, seed: int, tell: Callable[[int], None] = lambda _: None) -> Outcome:
    """At least `number` requests. `tell` is called from time to time with their number."""
    config = Config(application, access_log=False, log_config=None, timeout_keep_alive=600, ws="none", lifespan="on")
    config.load()
    lifespan = LifespanOn(config)
    await lifespan.startup()
    assert not lifespan.should_exit, "the application does not start"
    outcome, requests, state = Outcome(), Requests(seed), ServerState()

    async def client() -> None:
        while outcome.requests < number:
            exchange = requests.exchange()
            outcome.requests += exchange.requests
            outcome.broken += not exchange.is_whole
            if outcome.requests // 1000 > (outcome.requests - exchange.requests) // 1000:
                tell(outcome.requests)
            wire = _Wire(asyncio.get_running_loop())
            wire.protocol = GuardedProtocol(config, state, lifespan.state, asyncio.get_running_loop())
            try:
                async with asyncio.timeout(HANG_SECONDS):
                    await _talk(wire, wire.protocol, exchange)
            except TimeoutError:
                outcome.hangs += 1
                outcome.is_wrong("hangs", exchange)
            except httptools.HttpParserError as error:
                outcome.is_wrong(f"answers are not HTTP: {error}", exchange)
            outcome.statuses.update(wire.answers.statuses)
            why = _fault(exchange, wire.answers.statuses)
            if why is not None:
                outcome.is_wrong(why, exchange)

    await asyncio.gather(*(client() for _ in range(_AT_ONCE)))
    await lifespan.shutdown()
    return outcome


async def _talk(wire: _Wire, protocol: GuardedProtocol, exchange: Exchange) -> None:
    protocol.connection_made(wire)
    for part in exchange.reads:
        await wire.until(lambda: wire.is_read)
        if wire.is_closed:
            break
        protocol.data_received(part)
        await asyncio.sleep(0)
    if exchange.is_whole:
        await wire.until(lambda: len(wire.answers.statuses) >= exchange.requests)
    if not wire.is_closed and not protocol.eof_received():
        wire.close()
    await wire.until(lambda: False)


def _fault(exchange: Exchange, statuses: list[int]) -> str | None:
    wrong = [status for status in statuses if status >= 500 and status not in _ALLOWED_5XX]
    if wrong:
        return f"answered {wrong}"
    if exchange.is_whole and len(statuses) != exchange.requests:
        return f"{len(statuses)} answers to {exchange.requests} requests"
    if len(statuses) > exchange.requests + 1:
        return f"{len(statuses)} answers to {exchange.requests} requests, the last of which is broken"
    return None
