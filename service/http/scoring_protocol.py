"""HTTP protocol of the service: a scoring request whose body has come is answered by a callback, past ASGI.

A task, its coroutines and two writes of an answer cost more than all else that a small request needs of the event loop.
So a request that the application takes by its headers (DIRECT in its lifespan's state) waits here for its body, and its
answer is one write. All other requests, and those whose body is slow or does not come whole, are ASGI's as ever.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.http.protocol import IS_SLOW, GuardedProtocol

# Key of the application's state with a `DirectWay`.
DIRECT = "direct"

Headers = Sequence[tuple[bytes, bytes]]
# Takes status, headers and body of an answer, on the event loop.
SendAnswer = Callable[[int, Headers, bytes], None]


class DirectRequest(Protocol):
    """A request that was taken by its headers."""

    def take_body(self, body: bytes, send: SendAnswer) -> None:
        """The body is whole. `send` is called once, now or later."""


class DirectWay(Protocol):
    """The application, as far as it answers past ASGI."""

    body_seconds: float

    def open_request(self, scope: Scope) -> DirectRequest | None:
        """Takes a request by its headers. None for one that goes the way of all."""


class ScoringProtocol(GuardedProtocol):
    """One connection."""

    # The request that waits for its body, and what has come of that.
    _direct: DirectRequest | None = None
    _parts: list[bytes]

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        if self._direct is None:
            super().on_body(body)
        else:
            self._framing_bytes = 0
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        super().on_message_complete()
        direct, self._direct = self._direct, None
        if direct is not None:
            parts, self._parts = self._parts, []
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            direct.take_body(body, partial(self._send_answer, self.cycle))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._start_late()
        super().connection_lost(exc)

    def give_way(self) -> None:
        """Unfinished requests take too much memory together, and this connection most of it."""
        self._start_late()
        super().give_way()

    def _cut_off(self, reason: str, text: str) -> None:
        self._start_late()
        super()._cut_off(reason, text)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        way: DirectWay | None = self.app_state.get(DIRECT)
        # A request whose body was there before its turn came, and a client that is not reading: the way of all.
        if way is not None and cycle.more_body and not (self.expect_100_continue or self.flow.write_paused):
            self._direct = way.open_request(cycle.scope)  # type: ignore[arg-type]
        if way is None or self._direct is None:
            super()._start_asgi_task(cycle, app)
            return
        self._active, self._parts = cycle, []
        self._next.start(way.body_seconds, self._too_slow_body)

    def _too_slow_body(self) -> None:
        self.cycle.scope[IS_SLOW] = True  # type: ignore[literal-required]
        self._start_late()

    def _start_late(self) -> None:
        """Give a request that waits for its body to ASGI, which knows what to do."""
        if self._direct is not None:
            self._direct = None
            self.cycle.body += b"".join(self._parts)
            self._parts = []
            super()._start_asgi_task(self.cycle, self.app)

    def _send_answer(self, cycle: RequestResponseCycle, status: int, headers: Headers, body: bytes) -> None:
        if cycle.disconnected:
            return
        lines = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"".join([*lines, b"\r\n", body]))
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
