"""Calls of a service by each client and by a bare one, and how they end.

In: an address, a request. Out: `Ends`: calls by their end, `answered` where the service gave a ranking in time. Either
so many ask without pause, or calls begin at a rate whether or not those before them have ended. A client's own counts
are compared with the calls that were made.
"""

import asyncio
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx

from benchmarks.client_overhead import CLIENT_JS
from feedrank import AsyncClient, Client, Counts

DEADLINE_SECONDS = 2.0
ASKING = 4
ANSWERED = "answered"
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=60)


@dataclass(frozen=True)
class Ends:
    """Calls by their end, the seconds in which they began, and how many were sent again."""

    calls: "Counter[str]"
    seconds: float
    retries: int = 0

    @property
    def share(self) -> float:
        """Share of the calls that the service answered."""
        return self.calls[ANSWERED] / max(self.calls.total(), 1)


# Ends of calls for so many seconds: without pause, or at a rate a second.
Ask = Callable[[float], Ends]
AskAtRate = Callable[[float, float], Ends]


@dataclass(frozen=True)
class Way:
    """A way to call the service."""

    ask: Ask
    ask_at_rate: AskAtRate


@contextmanager
def ways(url: str, request: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Way]]:
    """Every way, bare ones first in each language."""
    with ExitStack() as stack:
        node = stack.enter_context(_node(url, request, folder))
        yield {
            "httpx": _python(url, request, is_bare=True),
            "Client of Python": _python(url, request, is_bare=False),
            "fetch": _of_node(node, is_bare=True),
            "Client of TypeScript": _of_node(node, is_bare=False),
        }


def _python(url: str, request: Mapping[str, Any], *, is_bare: bool) -> Way:
    """Without pause by threads, at a rate by asyncio."""

    def ask(seconds: float) -> Ends:
        end, lock, calls = time.monotonic() + seconds, threading.Lock(), Counter[str]()
        with httpx.Client(limits=_LIMITS, timeout=DEADLINE_SECONDS, trust_env=False) as http, Client(url) as client:

            def call() -> str:
                if is_bare:
                    return _bare_end(lambda: http.post(f"{url}/v1/rank", json=request, headers=_headers()))
                return client.rank(request, timeout=DEADLINE_SECONDS, fallback=[]).reason or ANSWERED

            def work() -> None:
                while time.monotonic() < end:
                    ended = call()
                    with lock:
                        calls[ended] += 1

            asking = [threading.Thread(target=work) for _ in range(ASKING)]
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join()
            return Ends(calls, seconds) if is_bare else checked(calls, seconds, client.counts())

    async def begin(rate: float, seconds: float) -> Ends:
        calls = Counter[str]()
        async with (
            httpx.AsyncClient(limits=_LIMITS, timeout=DEADLINE_SECONDS, trust_env=False) as http,
            AsyncClient(url) as client,
        ):

            async def bare() -> None:
                try:
                    reply = await http.post(f"{url}/v1/rank", json=request, headers=_headers())
                except httpx.TransportError as error:
                    calls[_lost(error)] += 1
                else:
                    calls[_end_of(reply)] += 1

            async def own() -> None:
                ranking = await client.rank(request, timeout=DEADLINE_SECONDS, fallback=[])
                calls[ranking.reason or ANSWERED] += 1

            taken = await _at_rate(bare if is_bare else own, rate, seconds)
            return Ends(calls, taken) if is_bare else checked(calls, taken, client.counts())

    return Way(ask, lambda rate, seconds: asyncio.run(begin(rate, seconds)))


async def _at_rate(call: Callable[[], Coroutine[Any, Any, None]], rate: float, seconds: float) -> float:
    """Seconds in which the calls began: more than they should where this process is too slow for the rate."""
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(begun + number / rate - time.perf_counter(), 0))
            group.create_task(call())
        return time.perf_counter() - begun


def checked(calls: "Counter[str]", seconds: float, counts: Counts) -> Ends:
    """The ends of a client's calls. Raises RuntimeError where its own counts are others."""
    reasons = {end: number for end, number in calls.items() if end != ANSWERED}
    counted = (counts.answered, counts.fallbacks, counts.unavailable + counts.refused, counts.reasons)
    if counted != (calls[ANSWERED], sum(reasons.values()), 0, reasons):
        raise RuntimeError(f"the client counts {counts}, and the calls ended so: {dict(calls)}")
    return Ends(calls, seconds, counts.retries)


def _headers() -> dict[str, str]:
    return {"X-Request-Timeout-Ms": str(int(1000 * DEADLINE_SECONDS))}


def _bare_end(post: Callable[[], httpx.Response]) -> str:
    try:
        return _end_of(post())
    except httpx.TransportError as error:
        return _lost(error)


def _lost(error: httpx.TransportError) -> str:
    return "timeout" if isinstance(error, httpx.TimeoutException) else "connection"


def _end_of(reply: httpx.Response) -> str:
    return ANSWERED if reply.status_code == 200 else f"status {reply.status_code}"


@contextmanager
def _node(url: str, request: Mapping[str, Any], folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process of Node that calls as it is told."""
    file = folder / "request.json"
    file.write_text(json.dumps(request))
    command = ["node", str(Path(__file__).with_suffix(".mjs")), str(CLIENT_JS), url, str(file)]
    with subprocess.Popen([*command, str(1000 * DEADLINE_SECONDS)], stdin=PIPE, stdout=PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _of_node(node: "subprocess.Popen[str]", *, is_bare: bool) -> Way:
    def told(**order: float) -> Ends:
        assert node.stdin is not None
        assert node.stdout is not None
        print(json.dumps({"isBare": is_bare, **order}), file=node.stdin, flush=True)
        reply = json.loads(node.stdout.readline())
        calls = Counter[str](reply["calls"])
        if is_bare:
            return Ends(calls, reply["ms"] / 1000)
        counts = reply["counts"]
        names = ("answered", "fallbacks", "unavailable", "refused", "retries", "reasons")
        return checked(calls, reply["ms"] / 1000, Counts(**{name: counts[name] for name in names}))

    return Way(
        lambda seconds: told(asking=ASKING, ms=1000 * seconds),
        lambda rate, seconds: told(rate=rate, ms=1000 * seconds),
    )
