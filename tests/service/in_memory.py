"""A connection without a network: the service's HTTP protocol, what it writes, and a clock that is told when to go on.

In: an ASGI application and bytes, in as many reads as there are. Out: the bytes of the answers.
"""

import asyncio
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from service.http.scoring_protocol import ScoringProtocol


class Transport(asyncio.Transport):
    """Keeps what is written, and whether it is read from."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_read = True
        self.is_closed = False
        self.is_aborted = False
        self.unsent = 0

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body's size, once it has read it all."""
    size, has_more = 0, True
    while has_more:
        part = await receive()
        size += len(part["body"])
        has_more = part["more_body"]
    text = b"%d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


class Timer:
    """Result of a Clock's call_later."""

    def __init__(self, due: float, callback: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self.due = due
        self.callback = partial(callback, *arguments)
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Clock:
    """An event loop whose time passes when it is told to, and whose tasks are the running loop's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.create_task = asyncio.get_running_loop().create_task

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[..., object], *arguments: object) -> Timer:
        self.timers.append(Timer(self.now + seconds, callback, arguments))
        return self.timers[-1]

    def waiting(self) -> list[Timer]:
        return sorted((timer for timer in self.timers if not timer.is_cancelled), key=lambda timer: timer.due)

    def pass_by(self, seconds: float) -> None:
        """Let time pass, and run what is due in it."""
        end = self.now + seconds
        while (waiting := self.waiting()) and waiting[0].due <= end:
            self.timers.remove(waiting[0])
            self.now = waiting[0].due
            waiting[0].callback()
        self.now = end


class Connection:
    """A connection to `application`, which has `state` from its lifespan, one of those of `server_state`."""

    def __init__(
        self,
        application: ASGIApp = application,
        clock: Clock | None = None,
        state: dict[str, Any] | None = None,
        server_state: ServerState | None = None,
    ) -> None:
        self.transport = Transport()
        self.server_state = server_state or ServerState()
        loop: Any = clock or asyncio.get_running_loop()
        self.protocol = ScoringProtocol(_config_of(application), self.server_state, state or {}, loop)
        self.protocol.connection_made(self.transport)

    async def send(self, *parts: bytes) -> bytes:
        """Answer to the bytes."""
        before = len(self.transport.written)
        for part in parts:
            self.protocol.data_received(part)
        for _ in range(10):  # the application's task has no more steps than these
            await asyncio.sleep(0)
        return self.transport.written[before:]


@cache
def _config_of(application: ASGIApp) -> Config:
    config = Config(application, access_log=False, log_config=None, timeout_keep_alive=60, ws="none")
    config.load()
    return config
