"""Load in a closed loop: so many clients, each of which asks again as soon as it is answered.

In: an address and encoded requests. Out: the seconds of each answer. It says how much a service can do, or how much a
request costs it. How long clients wait who ask when it suits them is the open loop's to say (deploy/open_loop.py).
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.open_loop import Connections


@dataclass(frozen=True)
class Answered:
    """Seconds of each answer with a status of success, how long all of them took, and the beginning of an answer of
    each other status."""

    latencies: list[float]
    seconds: float
    said: dict[int, str]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds


async def closed_loop(
    url: str,
    requests: Sequence[bytes],
    seconds: float,
    clients: int,
    *,
    most: int | None = None,
    timeout: float = 30.0,
) -> Answered:
    """Answers to so many clients in so many seconds, and to at most `most` requests.

    Raises OSError, EOFError or TimeoutError where there is no answer."""
    connections = Connections(url)
    numbers = iter(range(sys.maxsize if most is None else most))
    latencies: list[float] = []
    begun = time.perf_counter()

    async def client() -> None:
        for number in numbers:
            sent = time.perf_counter()
            if sent - begun >= seconds:
                break
            async with asyncio.timeout(timeout):
                status = await connections.send_request(requests[number % len(requests)])
            if 200 <= status < 300:
                latencies.append(time.perf_counter() - sent)

    try:
        await asyncio.gather(*(client() for _ in range(clients)))
        taken = time.perf_counter() - begun
    finally:
        await connections.close()
    return Answered(latencies, taken, connections.said)
