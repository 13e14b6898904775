"""uvicorn's HTTP protocol, guarded: each request gets one answer, and a client takes no more than its share.

uvicorn waits for headers without end, keeps however many arrive, takes trailers for headers, and loses the body of a
request that offers another protocol. Here a request's headers have a time and a size, and so have the trailers after
its body. Past them the client is answered 408 or 431 and cut off. Bodies are limited where they are read
(service/http/body.py). Of one that was refused little more is taken off the connection. What the application sheds
(SHED in its lifespan's state) is answered without becoming a request of it.
"""

import asyncio
from collections.abc import Callable
from heapq import nsmallest
from typing import Any, ClassVar

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.http.connections import Connections, Limits, final_answer, status_of
from service.http.timer import OneTimer

# Key of the application's state, maybe with a function of a request's scope: an answer's bytes, or None to go on.
SHED = "shed"
# Keys of a request's scope. Its body is there, and reading it takes no time. It took too long. It will not come whole,
# as unfinished requests take too much together. The status for a client that is cut off before its request is whole.
IS_WHOLE, IS_SLOW, NO_ROOM, CUT_OFF = (f"feedrank.{key}" for key in ("is_whole", "is_slow", "no_room", "cut_off"))
# Of a body whose request is answered, what is still read, and so much at once, with a pause after it: most clients look
# for an answer when they have sent all, and many of them at once must not take the time of others. Beyond it, and for a
# client that would send for ever, the connection ends.
_MOST_UNREAD = 16 * 1024 * 1024
_AT_ONCE = 256 * 1024
_PAUSE_SECONDS = 0.05
# What a client that sends more has to see its answer, before its connection ends.
_LINGER_SECONDS = 2.0
# Requests of a connection that wait for the answers before theirs. One read has thousands of small ones.
_MOST_PIPELINED = 100
# Idle connections that end for new ones, at once: finding them takes a pass over all.
_IDLE_ENDED = 32


class RefusedError(Exception):
    """A request that is refused at its headers: a reason of service/http/connections.py, and a text."""


class GuardedFlow(FlowControl):
    """Reads on only where the protocol has a use for more."""

    def __init__(self, transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._may_read = may_read

    def resume_reading(self) -> None:
        """Called by those who wait for a body or have answered a request."""
        if self.read_paused and self._may_read():
            super().resume_reading()


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `limits` and `shared` are those of the whole process, set before its server starts."""

    limits: ClassVar[Limits] = Limits()
    shared: ClassVar[Connections] = Connections()
    held_bytes = 0  # of a request that is not whole, and of those that wait for the answers before theirs
    # Of the request that is arriving: whether there is one, where it is, and its bytes since the last of its body.
    _is_unfinished = False
    _is_in_headers = False
    _is_upgrade = False
    _is_after_chunk = False
    _framing_bytes = 0
    _field_bytes = 0  # of its headers, or of its trailers, so far
    _is_shed = False
    _unread_bytes = 0
    _pause: asyncio.TimerHandle | None = None
    # The request that the application answers now, which is not the newest where a client pipelines.
    _active: RequestResponseCycle | None = None
    # Nothing more is taken. Earlier requests are answered, then this is sent.
    _is_cut_off = False
    _last_words = b""
    _unread_answer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection on which nothing arrives is idle, as one between two requests is."""
        super().connection_made(transport)
        self._next = OneTimer(self.loop)
        self.shared.open = len(self.connections)
        self.flow = GuardedFlow(transport, lambda: not (self.pipeline or self._is_cut_off))
        if self.shared.open > self.shared.most and not self._end_idle():
            self._cut_off("connections", f"over {self.shared.most} connections")
            return
        self._next.start(self.timeout_keep_alive, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._next.close()
        if self._unread_answer is not None:
            self._unread_answer.cancel()
        self._end_pause()
        self.shared.release(self)
        if self._active is not None and not self._active.response_complete:
            _disconnect(self._active)
        super().connection_lost(exc)
        self.shared.open = len(self.connections)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: a part of one, or several."""
        if self._is_cut_off:
            return
        self._unset_keepalive_if_required()
        self._framing_bytes += len(data)
        try:
            self._parse(data)
        except HttpParserError as error:
            self._refuse(error)
            return
        if not (self._is_unfinished or self.pipeline):
            return
        # Of a field that has not ended whole reads are counted, after the one in which it began.
        if self._framing_bytes > self.limits.header_bytes and self._is_unfinished:
            self._cut_off(*self._too_large())
        elif self._is_in_headers or self.pipeline or not self._is_refused():
            self.shared.hold_bytes(self, len(data))

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more. Over plain TCP it may still read: it gets the answers to its requests."""
        if self._is_unfinished and not self._is_cut_off:
            self._cut_off("ended_early", "the request ended before it was whole")
        self._is_cut_off = True
        is_waiting = self._active is not None and not self._active.response_complete
        if not is_waiting or self.scheme == "https":
            return None
        if not self._last_words:
            self.cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._is_unfinished = self._is_in_headers = True
        self._is_upgrade = self._is_after_chunk = self._is_shed = False
        self._framing_bytes = self._field_bytes = self._unread_bytes = 0
        self._next.start(self.limits.header_seconds, self._too_slow)

    def on_url(self, url: bytes) -> None:
        """A part of the address, which counts as headers do."""
        super().on_url(url)
        self._count_field(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, without the blanks after its value (RFC 9110, 5.5). Trailers come here too and are dropped: a key,
        for one, must not come after a body."""
        name = name.lower()
        self._count_field(len(name) + len(value) + len(b": \r\n"))
        if self._is_in_headers:
            value = value.rstrip(b" \t")
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))
        elif name == b"connection":  # the parser would take nothing more, and not say so
            raise RefusedError("not_http", "no trailer may be about the connection")

    def on_headers_complete(self) -> None:
        """The request is known: from here on the application decides."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise RefusedError("not_http", "this is no proxy: there is no CONNECT")
            self._is_upgrade = True  # and comes again without
            return
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise RefusedError("pipelined", f"over {_MOST_PIPELINED} requests wait for their answers")
        self._next.stop()
        answer = self._shed()
        if answer is None:
            super().on_headers_complete()  # raises where an address is none
        self._is_in_headers = False
        self._framing_bytes = self._field_bytes = 0
        if answer is None:
            return
        self._is_shed = True
        self.server_state.total_requests += 1
        self.transport.write(answer)
        self._next.start(self.limits.header_seconds, self.transport.close)

    def on_chunk_header(self) -> None:
        """The size of a chunk. What follows is a body's, or trailers after the last of them."""
        self._is_after_chunk = True
        if self._next.then is None:
            self._next.start(self.limits.header_seconds, self._too_slow)

    def on_body(self, body: bytes) -> None:
        """A part of a body. The application is woken when it is whole, or over the limit: it has no use for
        less, and slow clients send many parts."""
        self._framing_bytes = 0
        if self._is_after_chunk:
            self._is_after_chunk = False
            if self._next.then == self._too_slow:
                self._next.stop()
        if self._is_refused():
            before, self._unread_bytes = self._unread_bytes, self._unread_bytes + len(body)
            if self._unread_bytes > _MOST_UNREAD:
                if not self.flow.read_paused:
                    self.flow.pause_reading()
                    self._next.start(_LINGER_SECONDS, self.transport.close)
            elif self._unread_bytes // _AT_ONCE > before // _AT_ONCE and not self.flow.read_paused:
                self.flow.pause_reading()
                self._pause = self.loop.call_later(_PAUSE_SECONDS, self._end_pause)
            return
        self.cycle.body += body
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
            self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        if self._is_upgrade:
            return
        self._is_unfinished = False
        if self.held_bytes and not self.pipeline:
            self.shared.release(self)
        self._next.stop()
        self._end_pause()
        if self._unread_bytes > _MOST_UNREAD:  # the end came with what was over
            self.flow.resume_reading()
        if self._is_shed:
            self._next.start(self.timeout_keep_alive, self.transport.close)
        else:
            self.scope[IS_WHOLE] = True  # type: ignore[literal-required]
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer that did not wait for the body gives the client some time to see it and to stop sending."""
        is_unread = self._active is not None and self._active.more_body
        is_last = not self.pipeline
        super().on_response_complete()
        if self.held_bytes and not self.pipeline and (is_unread or not self._is_unfinished):
            self.shared.release(self)
        if self._is_cut_off and is_last and not self.transport.is_closing():
            self.transport.write(self._last_words)
            self.transport.close()
        if self.transport.is_closing():
            if self.transport.get_write_buffer_size():
                self._abort_later()
        elif is_unread:
            self._next.start(self.limits.header_seconds, self.transport.close)

    def pause_writing(self) -> None:
        """More of answers waits for the client than the limit: it has the time of an idle connection to read."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        if self._unread_answer is not None and not self.transport.is_closing():
            self._unread_answer.cancel()
            self._unread_answer = None

    def _abort_later(self) -> None:
        """A client that reads nothing would keep the rest of its answers, and its connection, for ever."""
        if self._unread_answer is None:
            self._unread_answer = self.loop.call_later(self.timeout_keep_alive, self._abort)

    def _abort(self) -> None:
        self.shared.ends["unread_answers"] += 1
        self.transport.abort()

    def give_way(self) -> None:
        """Unfinished requests take too much memory together, and this connection most of it. A request whose headers
        are there is answered by the application."""
        if self.pipeline or self._is_in_headers:
            self.pipeline.clear()
            self._is_in_headers = True
            self._cut_off("no_room", "unfinished requests take too much memory together; try again")
        else:
            self.scope[NO_ROOM] = True  # type: ignore[literal-required]
            self.cycle.body = bytearray()
            self.cycle.message_event.set()

    def _end_idle(self) -> bool:
        """Ends connections that are idle longest, as there are too many. True where there is room then."""
        others = [one for one in self.connections if one is not self and not one.transport.is_closing()]
        if len(others) < self.shared.most:
            return True
        idle = [one for one in others if isinstance(one, GuardedProtocol) and one.is_idle]
        for one in nsmallest(_IDLE_ENDED, idle, key=lambda one: one.idle_until):
            self.shared.ends["idle"] += 1
            one.transport.close()
        return bool(idle)

    @property
    def is_idle(self) -> bool:
        """True where every request that has begun is answered."""
        return not self._is_unfinished and (self._active is None or self._active.response_complete)

    @property
    def idle_until(self) -> float:
        """Time at which an idle connection ends by itself, in seconds of the event loop."""
        return self._next.due if self.timeout_keep_alive_task is None else self.timeout_keep_alive_task.when()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def _parse(self, data: bytes | memoryview) -> None:
        """Feed the parser. It takes what follows a request that offers another protocol for that
        protocol and stops. The offer is not taken up (RFC 9110, 7.8), so it is given the same head again without."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as stopped:
                read: int = stopped.args[0]
            head = self._head_without_upgrade()
            self.parser = HttpRequestParser(self)  # what was before has ended, where the request is the last one
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self.parser.feed_data(head)
            data = memoryview(data)[read:]

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _shed(self) -> bytes | None:
        """The answer to a plain POST that the application has no room for. None where the request may have another
        outcome."""
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

    def _is_refused(self) -> bool:
        """True where the body that is arriving has no reader."""
        return self._is_shed or self.cycle.response_complete or NO_ROOM in self.scope

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            if not self.transport.is_closing():
                self.flow.resume_reading()

    def _count_field(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > self.limits.header_bytes:
            raise RefusedError(*self._too_large())

    def _too_large(self) -> tuple[str, str]:
        what = "headers" if self._is_in_headers else "trailers"
        return "large_headers", f"over {self.limits.header_bytes} bytes of {what}"

    def _too_slow(self) -> None:
        what = "headers" if self._is_in_headers else "trailers"
        self._cut_off("slow_headers", f"the {what} took more than {self.limits.header_seconds:g} s")

    def _refuse(self, error: HttpParserError) -> None:
        """End the connection for what is not HTTP, or what a callback of the parser has refused."""
        cause = error.__context__ if isinstance(error, HttpParserCallbackError) else None
        if isinstance(cause, RefusedError):
            self._cut_off(*cause.args)
            return
        if cause is not None and not isinstance(cause, HttpParserError | UnicodeError):
            self.logger.error("a fault of the service in reading a request", exc_info=cause)
        self._cut_off("not_http", "not an HTTP request that is understood here")

    def _cut_off(self, reason: str, text: str) -> None:
        """Take nothing more from the client: answer its earlier requests, and the request at hand with this where
        it has no answer yet. The connection ends."""
        self._next.stop()
        self._is_cut_off = True
        self.shared.ends[reason] += 1
        self.shared.release(self)
        answer = final_answer(reason, text)
        if self._is_unfinished and not self._is_in_headers:
            if self._is_shed or self.cycle.response_started:
                answer = b""
            if not self._is_shed:
                self.cycle.scope[CUT_OFF] = status_of(reason)  # type: ignore[literal-required]
                _disconnect(self.cycle)
                if self.pipeline and self.pipeline[0][0] is self.cycle:
                    self.pipeline.popleft()
        active = self._active
        if active is not None and not active.response_complete and not active.disconnected:
            self._last_words = answer
            self.flow.pause_reading()
        elif not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


def _disconnect(cycle: RequestResponseCycle) -> None:
    cycle.disconnected = True
    cycle.message_event.set()
