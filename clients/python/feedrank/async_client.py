"""The client of code with asyncio. It belongs to one event loop."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from feedrank.call import Call
from feedrank.client import EVENT_SECONDS, LIMITS
from feedrank.client_state import ClientState
from feedrank.counts import Counts
from feedrank.event_queue import BATCH
from feedrank.wire import Event, Ranking, RankRequest, RefusedError, UnavailableError


class AsyncClient:
    """Rankings and events of one service, with the arguments of `Client`. Use it as a context manager, or await
    `aclose`. A call that is cancelled is in no count."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout: float = 0.5,
        strict: bool = False,
        most_events: int = 10_000,
        flush_seconds: float = 1.0,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._state = ClientState(base_url, key, timeout, most_events, strict=strict)
        self._flush_seconds = flush_seconds
        self._http = http or httpx.AsyncClient(limits=LIMITS, trust_env=False)
        self._is_own = http is None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._ends = asyncio.Event()
        self._end = 0.0

    async def rank(
        self,
        request: RankRequest | Mapping[str, Any],
        *,
        timeout: float | None = None,
        fallback: Sequence[str] | None = None,
    ) -> Ranking:
        """The service's ranking, or `fallback` where it gives none within `timeout` seconds.

        Raises RefusedError for a request that is wrong, UnavailableError without a fallback, ValueError for what is no
        JSON.
        """
        call = self._state.call(request, timeout, fallback)
        await self._send(call)
        return call.result()

    async def rank_batch(
        self,
        requests: Sequence[RankRequest | Mapping[str, Any]],
        *,
        timeout: float | None = None,
        fallbacks: Sequence[Sequence[str] | None] | None = None,
    ) -> list[Ranking | RefusedError | UnavailableError]:
        """Rankings of several users by one call, in the order of `requests`. A request that has none has its error in
        that place.

        Raises RefusedError where all of them are refused, ValueError for what is no JSON.
        """
        call = self._state.batch_call(requests, timeout, fallbacks)
        await self._send(call)
        return call.results()

    async def _send(self, call: Call) -> None:
        while (pause := await self._try_once(call)) is not None:
            await asyncio.sleep(pause)

    async def _try_once(self, call: Call) -> float | None:
        """Seconds until the retry, None where there is none."""
        headers, timeouts = {**self._state.headers, **call.headers()}, {"timeout": call.timeouts}
        url = self._state.address + call.path
        try:
            async with asyncio.timeout(call.left):
                reply = await self._http.post(url, content=call.body, headers=headers, extensions=timeouts)
        except (httpx.RequestError, TimeoutError) as error:
            return call.take_error(error)
        return call.take_reply(reply.status_code, reply.headers, reply.content)

    def event(self, event: Event | Mapping[str, Any]) -> bool:
        """Send an event soon, in the background. False where too many wait, and it is dropped and counted."""
        has_room = self._state.queue.add(event)
        if (self._task is None or self._task.done()) and not self._ends.is_set():
            self._task = asyncio.get_running_loop().create_task(self._send_events(), name="feedrank-events")
        if len(self._state.queue) >= BATCH:
            self._wake.set()
        return has_room

    def counts(self) -> Counts:
        """Counts of what became of all requests and events so far."""
        return self._state.counts()

    async def aclose(self, timeout: float = 5.0) -> None:
        """Send what waits, within `timeout` seconds, and drop and count the rest."""
        self._end = time.monotonic() + timeout
        self._ends.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout)
            self._task.cancel()
        self._state.queue.close()
        if self._is_own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send_events(self) -> None:
        while not self._ends.is_set():
            await _wait(self._wake, self._flush_seconds)
            self._wake.clear()
            await self._send_waiting()
        await self._send_waiting()

    async def _send_waiting(self) -> None:
        """Send until nothing waits, or until the end of `aclose`."""
        while (body := self._state.queue.take_batch()) is not None:
            headers = {**self._state.headers, "Content-Type": "application/json"}
            try:
                url = f"{self._state.address}/v1/events"
                reply = await self._http.post(url, content=body, headers=headers, timeout=EVENT_SECONDS)
            except (httpx.RequestError, RuntimeError):  # RuntimeError: the caller has closed its httpx client
                pause = self._state.queue.settle(0, {}, b"")
            else:
                pause = self._state.queue.settle(reply.status_code, reply.headers, reply.content)
            if pause > 0:
                await _wait(self._ends, pause)
            if self._ends.is_set():
                if pause >= self._end - time.monotonic():
                    return
                await asyncio.sleep(pause)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, or so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
