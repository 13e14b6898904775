"""Load on a service. Open loop: requests leave when they are due, whether or not those before them were answered.

In: an address, encoded requests, and the seconds at which each is due. Out: per request its status and how long after
it was due the answer was there, so that a service which stalls is charged for all requests that would have come
meanwhile (no coordinated omission). One process, asyncio streams, connections kept alive and opened as they are needed.

Shapes: R requests.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ssl import SSLContext
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

# What a request without an answer has for a status: refused or reset, and none within the time.
FAILED, TIMED_OUT = 0, -1

_SAID_BYTES = 500

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """Outcome of every request: when it was due, the seconds from then to its answer, and its status."""

    due_R: Array
    seconds_R: Array
    status_R: NDArray[np.int64]
    # How late requests left, at worst: beyond a few milliseconds the client itself was too slow.
    lateness: float
    # The beginning of an answer of each status but those of success.
    said: dict[int, str] = field(default_factory=dict)

    def of(self, status: int) -> Array:
        """Seconds of the requests with a status."""
        seconds: Array = self.seconds_R[self.status_R == status]
        return seconds


def poisson(rate: float, seconds: float, seed: int) -> Array:
    """Arrival times of a Poisson process: `rate` a second on average, over so many seconds."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / rate, int(rate * seconds + 6 * np.sqrt(rate * seconds) + 10))
    times: Array = np.cumsum(gaps)
    return times[times < seconds]


async def offer(
    url: str, requests: Sequence[bytes], due_R: Array, *, timeout: float = 30.0, tls: SSLContext | None = None
) -> Outcome:
    """Send one of `requests` (whole HTTP messages), in turn, at each of `due_R`, in seconds from now. `tls` says whom
    to trust where the URL is one of HTTPS."""
    connections = Connections(url, tls)
    seconds_R = np.zeros(len(due_R))
    status_R = np.full(len(due_R), FAILED, np.int64)
    lateness = 0.0
    begun = time.perf_counter()

    async def one(number: int) -> None:
        try:
            async with asyncio.timeout(timeout):
                status_R[number] = await connections.send_request(requests[number % len(requests)])
        except TimeoutError:
            status_R[number] = TIMED_OUT
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            pass
        seconds_R[number] = time.perf_counter() - begun - due_R[number]

    running: set[asyncio.Task[None]] = set()
    for number, due in enumerate(due_R.tolist()):
        wait = due - (time.perf_counter() - begun)
        if wait > 0:
            await asyncio.sleep(wait)
        lateness = max(lateness, time.perf_counter() - begun - due)
        task = asyncio.create_task(one(number))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    await connections.close()
    return Outcome(due_R, seconds_R, status_R, lateness, connections.said)


class Connections:
    """Connections to one address, as many as requests are in flight."""

    def __init__(self, url: str, tls: SSLContext | None = None) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self._tls = (tls or True) if address.scheme == "https" else None
        self._host, self._port = address.hostname, address.port or (443 if self._tls else 80)
        self.said: dict[int, str] = {}
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def send_request(self, message: bytes) -> int:
        """The status of the answer to a message."""
        reader, writer = await self._take()
        is_kept = False
        try:
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            lower = head.lower()
            body = await reader.readexactly(int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0]))
            if not 200 <= status < 300 and status not in self.said:
                self.said[status] = body[:_SAID_BYTES].decode(errors="replace")
            is_kept = b"connection: close" not in lower
        finally:
            if is_kept:
                self._idle.append((reader, writer))
            else:
                await _closed(writer)
        return status

    async def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not writer.is_closing() and not reader.at_eof():
                return reader, writer
            await _closed(writer)
        return await self._opened()

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port, ssl=self._tls)

    async def close(self) -> None:
        """Close what is open."""
        while self._idle:
            await _closed(self._idle.pop()[1])


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def message(url: str, path: str, body: bytes, **headers: str) -> bytes:
    """A POST of JSON as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {urlsplit(url).netloc}", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("ascii") + body
