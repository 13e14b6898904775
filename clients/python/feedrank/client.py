"""The client of code without asyncio. Threads may share one, and should: its connections stay open.

Make it after a fork. Its thread of events starts with the first event.
"""

import atexit
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from feedrank.call import Call
from feedrank.client_state import ClientState
from feedrank.counts import Counts
from feedrank.event_queue import BATCH
from feedrank.wire import Event, Ranking, RankRequest, RefusedError, UnavailableError

# A backend's threads each have a connection. The service closes idle ones after 75 s, so they are closed here first.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=60)
EVENT_SECONDS = 10.0


class Client:
    """Rankings and events of one service. Use it as a context manager, or call `close`.

    `key` is an API key. `timeout` is in seconds, for a ranking with its retry. `strict` refuses requests that leave out
    a feature: for development. At most `most_events` wait to be sent, every `flush_seconds` or by 500. `http` replaces
    the httpx client, which knows no proxy and the usual certificates. It stays the caller's to close.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout: float = 0.5,
        strict: bool = False,
        most_events: int = 10_000,
        flush_seconds: float = 1.0,
        http: httpx.Client | None = None,
    ) -> None:
        self._state = ClientState(base_url, key, timeout, most_events, strict=strict)
        self._flush_seconds = flush_seconds
        self._http = http or httpx.Client(limits=LIMITS, trust_env=False)
        self._is_own = http is None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ends = threading.Event()
        self._end = 0.0

    def rank(
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
        self._send(call)
        return call.result()

    def rank_batch(
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
        self._send(call)
        return call.results()

    def _send(self, call: Call) -> None:
        while (pause := self._try_once(call)) is not None:
            time.sleep(pause)

    def _try_once(self, call: Call) -> float | None:
        """Seconds until the retry, None where there is none."""
        headers, timeouts = {**self._state.headers, **call.headers()}, {"timeout": call.timeouts}
        url = self._state.address + call.path
        try:
            with self._http.stream("POST", url, content=call.body, headers=headers, extensions=timeouts) as response:
                content = b"".join(_in_time(response.iter_bytes(), call))
        except httpx.RequestError as error:
            return call.take_error(error)
        return call.take_reply(response.status_code, response.headers, content)

    def event(self, event: Event | Mapping[str, Any]) -> bool:
        """Send an event soon, in the background. False where too many wait, and it is dropped and counted."""
        has_room = self._state.queue.add(event)
        if self._thread is None or not self._thread.is_alive():
            self._start_thread()
        if len(self._state.queue) >= BATCH:
            self._wake.set()
        return has_room

    def counts(self) -> Counts:
        """Counts of what became of all requests and events so far."""
        return self._state.counts()

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits, within `timeout` seconds, and drop and count the rest."""
        self._end = time.monotonic() + timeout
        self._ends.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
            atexit.unregister(self.close)
        self._state.queue.close()
        if self._is_own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start_thread(self) -> None:
        with self._lock:
            if not self._ends.is_set() and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._send_events, name="feedrank-events", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # once more is no harm

    def _send_events(self) -> None:
        while not self._ends.is_set():
            self._wake.wait(self._flush_seconds)
            self._wake.clear()
            self._send_waiting()
        self._send_waiting()

    def _send_waiting(self) -> None:
        """Send until nothing waits, or until the end of `close`."""
        while (body := self._state.queue.take_batch()) is not None:
            left = self._end - time.monotonic() if self._ends.is_set() else EVENT_SECONDS
            headers = {**self._state.headers, "Content-Type": "application/json"}
            try:
                url = f"{self._state.address}/v1/events"
                reply = self._http.post(url, content=body, headers=headers, timeout=max(min(left, EVENT_SECONDS), 0.01))
            except (httpx.RequestError, RuntimeError):  # RuntimeError: the caller has closed its httpx client
                pause = self._state.queue.settle(0, {}, b"")
            else:
                pause = self._state.queue.settle(reply.status_code, reply.headers, reply.content)
            if pause > 0:
                self._ends.wait(pause)
            if self._ends.is_set():
                left = self._end - time.monotonic()
                if pause >= left:
                    return
                time.sleep(pause)


def _in_time(chunks: Iterator[bytes], call: Call) -> Iterator[bytes]:
    """The chunks of a body. Raises httpx.ReadTimeout after the deadline, however slowly they drip."""
    for chunk in chunks:
        if call.left <= 0:
            raise httpx.ReadTimeout("the deadline has passed")
        yield chunk
