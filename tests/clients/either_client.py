"""All clients behind one face, so that a test is written once."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from feedrank import AsyncClient, Client, Counts, Ranking, RefusedError, UnavailableError
from tests.clients.node_client import NodeClient


class EitherClient(Protocol):
    """What every client does."""

    def rank(
        self, request: Mapping[str, Any], *, timeout: float | None = None, fallback: Sequence[str] | None = None
    ) -> Ranking:
        """Rank."""
        ...

    def rank_batch(
        self,
        requests: Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        fallbacks: Sequence[Sequence[str] | None] | None = None,
    ) -> list[Ranking | RefusedError | UnavailableError]:
        """Rank several."""
        ...

    def event(self, event: Mapping[str, Any]) -> bool:
        """Send an event soon."""
        ...

    def counts(self) -> Counts:
        """Counts so far."""
        ...

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits."""
        ...


class BlockingAsyncClient:
    """An AsyncClient with an event loop of its own, which runs while it is called."""

    def __init__(self, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, **options)

    def rank(
        self, request: Mapping[str, Any], *, timeout: float | None = None, fallback: Sequence[str] | None = None
    ) -> Ranking:
        """Rank."""
        return self._runner.run(self._client.rank(request, timeout=timeout, fallback=fallback))

    def rank_batch(
        self,
        requests: Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        fallbacks: Sequence[Sequence[str] | None] | None = None,
    ) -> list[Ranking | RefusedError | UnavailableError]:
        """Rank several."""
        return self._runner.run(self._client.rank_batch(requests, timeout=timeout, fallbacks=fallbacks))

    def event(self, event: Mapping[str, Any]) -> bool:
        """Send an event soon."""

        async def send() -> bool:
            return self._client.event(event)

        return self._runner.run(send())

    def counts(self) -> Counts:
        """Counts, after what the loop has to do at the moment."""
        self._runner.run(asyncio.sleep(0.02))
        return self._client.counts()

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits."""
        self._runner.run(self._client.aclose(timeout))
        self._runner.close()


MakeClient = Callable[..., EitherClient]
KINDS: dict[str, MakeClient] = {"sync": Client, "asyncio": BlockingAsyncClient, "node": NodeClient}


@contextmanager
def opened(client: EitherClient) -> Iterator[EitherClient]:
    """The client, closed at the end."""
    try:
        yield client
    finally:
        client.close()


def wait_for(condition: Callable[[], bool]) -> None:
    """Try again until it is true, for a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
