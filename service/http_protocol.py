"""uvicorn's HTTP protocol with limits on what a client may take before its request is known.

uvicorn waits for headers without end and keeps however many arrive. Here a request's headers have a time and a size;
past them the client is answered 408 or 431 and cut off. Bodies are limited where they are read (service/app.py); of one
that was refused little more is taken off the connection. What the application sheds (SHED in its lifespan's state) is
answered without becoming a request of it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

# The key of the application's state under which there may be a function of a request's scope: the bytes of an answer,
# or None where it goes on.
SHED = "shed"
# The key of a request's scope that is there when its body is: reading it takes no time then.
IS_WHOLE = "feedrank.is_whole"
# Of a body whose request is answered, what is still read, and so much at once, with a pause after it: most clients look
# for an answer when they have sent all, and many of them at once must not take the time of others. Beyond it, and for a
# client that would send for ever, the connection ends.
_MOST_UNREAD = 16 * 1024 * 1024
_AT_ONCE = 256 * 1024
_PAUSE_SECONDS = 0.05
# What a client that sends more has to see its answer, before its connection ends.
_LINGER_SECONDS = 2.0

_ANSWER = (
    "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\n"
    "connection: close\r\n\r\n{text}"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds from the first byte of a request to the end of its headers, and their size in bytes."""

    header_seconds: float = 10.0
    header_bytes: int = 32 * 1024


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `limits` are those of the whole process, set before its server starts."""

    limits: ClassVar[Limits] = Limits()
    # What happens next if nothing else does, and when: a timer for each of these would cost more than they.
    _then: Callable[[], None] | None = None
    _due = 0.0
    _timer: asyncio.TimerHandle | None = None
    _timer_due = 0.0
    _is_in_headers = False
    _is_cut_off = False
    _header_bytes = 0
    _is_shed = False
    _unread_bytes = 0
    _pause: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection on which nothing arrives is idle, as one between two requests is."""
        super().connection_made(transport)
        self._start_timer(self.timeout_keep_alive, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_timer()
        if self._timer is not None:
            self._timer.cancel()
        self._end_pause()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: a part of one, or several."""
        if self._is_cut_off:
            return
        self._header_bytes += len(data)
        super().data_received(data)
        # Whole reads are counted, after the one in which the headers began: no more than that one is over the limit.
        if self._is_in_headers and self._header_bytes > self.limits.header_bytes:
            self._cut_off("431 Request Header Fields Too Large", f"over {self.limits.header_bytes} bytes of headers")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._is_in_headers, self._header_bytes = True, 0
        self._is_shed, self._unread_bytes = False, 0
        self._start_timer(self.limits.header_seconds, self._too_slow)

    def on_headers_complete(self) -> None:
        """The request is known: from here on the application decides."""
        self._is_in_headers = False
        self._stop_timer()
        answer = self._shed()
        if answer is None:
            super().on_headers_complete()
            return
        self._is_shed = True
        self.server_state.total_requests += 1
        self.transport.write(answer)
        self._start_timer(self.limits.header_seconds, self.transport.close)

    def on_body(self, body: bytes) -> None:
        """A part of a body. The application is woken when it is whole, or more than is to be held: it has no use for
        less, and slow clients send many parts."""
        if self._is_shed or self.cycle.response_complete:
            before, self._unread_bytes = self._unread_bytes, self._unread_bytes + len(body)
            if self._unread_bytes > _MOST_UNREAD:
                if not self.flow.read_paused:
                    self.flow.pause_reading()
                    self._start_timer(_LINGER_SECONDS, self.transport.close)
            elif self._unread_bytes // _AT_ONCE > before // _AT_ONCE and not self.flow.read_paused:
                self.flow.pause_reading()
                self._pause = self.loop.call_later(_PAUSE_SECONDS, self._end_pause)
            return
        self.cycle.body += body
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """An answer that did not wait for the body gives the client some time to see it and to stop sending."""
        unread = self.cycle.more_body
        super().on_response_complete()
        if unread and not self.transport.is_closing():
            self._start_timer(self.limits.header_seconds, self.transport.close)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._stop_timer()
        self._end_pause()
        if self._unread_bytes > _MOST_UNREAD:  # the end came with what was over
            self.flow.resume_reading()
        if self._is_shed:
            self._start_timer(self.timeout_keep_alive, self.transport.close)
        else:
            self.scope[IS_WHOLE] = True  # type: ignore[literal-required]
            super().on_message_complete()

    def _shed(self) -> bytes | None:
        """The answer to a plain POST that the application has no room for; None where anything else may come of it."""
        shed = self.app_state.get(SHED)
        cycle: RequestResponseCycle | None = self.cycle
        is_free = cycle is None or cycle.response_complete
        if shed is None or not is_free or self.expect_100_continue or self.parser.get_method() != b"POST":
            return None
        if self.parser.get_http_version() != "1.1" or not self.parser.should_keep_alive() or b"?" in self.url:
            return None
        self.scope["path"] = self.url.decode("ascii", "replace")
        answer: bytes | None = shed(self.scope)
        return answer

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            if not self.transport.is_closing():
                self.flow.resume_reading()

    def _too_slow(self) -> None:
        self._cut_off("408 Request Timeout", f"the headers took more than {self.limits.header_seconds:g} s")

    def _cut_off(self, status: str, text: str) -> None:
        self._stop_timer()
        self._is_cut_off = True
        if not self.transport.is_closing():
            self.transport.write(_ANSWER.format(status=status, length=len(text), text=text).encode("ascii"))
            self.transport.close()

    def _start_timer(self, seconds: float, then: Callable[[], None]) -> None:
        """Has `then` done in place of what was to be done before, unless that too is replaced or stopped in time."""
        self._due, self._then = self.loop.time() + seconds, then
        if self._timer is None or self._due < self._timer_due:
            self._set_timer(seconds)

    def _stop_timer(self) -> None:
        self._then = None

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due = self.loop.call_later(seconds, self._look_at_timer), self.loop.time() + seconds

    def _look_at_timer(self) -> None:
        self._timer = None
        then, left = self._then, self._due - self.loop.time()
        if then is None:
            return
        if left > 0:
            self._set_timer(left)
        else:
            self._then = None
            then()
