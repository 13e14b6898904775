"""Requests that are answered past ASGI: once their body is whole, in order, and by ASGI where it does not come."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from service.http.connections import Connections
from service.http.protocol import CUT_OFF, IS_SLOW, NO_ROOM
from service.http.scoring_protocol import DIRECT, ScoringProtocol, SendAnswer
from tests.service import in_memory
from tests.service.http.test_framing import answers, in_reads
from tests.service.in_memory import Clock

POST = b"POST /direct HTTP/1.1\r\ncontent-length: %d\r\n%b\r\n"
SECONDS = 5.0
LENGTH = (b"content-length", b"4")


@dataclass
class Way:
    """Takes requests for /direct. `taken` has their bodies and the functions that send answers."""

    body_seconds: float = SECONDS
    taken: list[tuple[bytes, SendAnswer]] = field(default_factory=list)

    def open_request(self, scope: Scope) -> "Way | None":
        return self if scope["path"] == "/direct" else None

    def take_body(self, body: bytes, send: SendAnswer) -> None:
        self.taken.append((body, send))

    def answer(self, number: int, text: bytes = b"done", status: int = 200) -> None:
        self.taken[number][1](status, [LENGTH], text)


class Connection(in_memory.Connection):
    """A connection whose other requests, and those that come late, are answered by ASGI. `seen` has their scopes and
    what they received."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.way = Way()
        self.seen: list[tuple[Scope, dict[str, Any]]] = []

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            message: dict[str, Any] = dict(await receive())
            self.seen.append((scope, message))
            if message["type"] != "http.disconnect":
                await send({"type": "http.response.start", "status": 202, "headers": [LENGTH]})
                await send({"type": "http.response.body", "body": b"asgi"})

        super().__init__(application, clock=clock, state={DIRECT: self.way})


def test_a_body_in_any_parts_is_taken_whole_and_answered_at_once() -> None:
    async def talk(parts: tuple[bytes, ...], bodies: list[bytes]) -> None:
        connection = Connection()
        assert await connection.send(*parts) == b""
        assert not connection.seen
        assert [body for body, _ in connection.way.taken] == bodies[:1]
        connection.way.answer(0)
        assert answers(connection.transport.written) == [(200, b"done")]
        written = connection.transport.written + await connection.send()
        # What was there before its turn is ASGI's.
        assert [status for status, _ in answers(written)] == [200, *[202] * (len(bodies) - 1)]
        assert not connection.transport.is_closed
        assert connection.transport.is_read

    one = POST % (5, b"") + b"ab\r\nc"
    for parts in in_reads(one):
        asyncio.run(talk(parts, [b"ab\r\nc"]))
    asyncio.run(talk((one + POST % (2, b"") + b"de",), [b"ab\r\nc", b"de"]))
    large = bytes(100_000)
    asyncio.run(talk((POST % (300_000, b"") + large, large, large), [3 * large]))


@pytest.mark.parametrize(
    ("head", "closes"), [(b"connection: close\r\n", True), (b"x: y\r\n", False)], ids=["close", "keep"]
)
def test_a_connection_ends_where_the_client_said_so(head: bytes, closes: bool) -> None:
    async def talk() -> None:
        connection = Connection()
        await connection.send(POST % (2, head) + b"ab")
        connection.way.answer(0, b"no!!", 429)
        assert connection.transport.written.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert (b"connection: close" in connection.transport.written) == closes == connection.transport.is_closed

    asyncio.run(talk())


def test_the_end_of_the_server_waits_for_the_answer() -> None:
    async def talk() -> None:
        connection = Connection()
        await connection.send(POST % (2, b"") + b"ab")
        connection.protocol.shutdown()
        assert not connection.transport.is_closed
        connection.way.answer(0)
        assert answers(connection.transport.written) == [(200, b"done")]
        assert connection.transport.is_closed

    asyncio.run(talk())


def test_a_client_that_is_gone_is_written_nothing() -> None:
    async def talk() -> None:
        connection = Connection()
        await connection.send(POST % (2, b"") + b"ab")
        connection.protocol.connection_lost(None)
        connection.way.answer(0)
        assert connection.transport.written == b""
        assert not connection.seen

    asyncio.run(talk())


def test_a_body_that_does_not_come_whole_is_asgi_s() -> None:
    async def lost() -> None:
        connection = Connection()
        await connection.send(POST % (3, b"") + b"ab")
        connection.protocol.connection_lost(None)
        await connection.send()
        assert [message["type"] for _, message in connection.seen] == ["http.disconnect"]
        assert not connection.way.taken

    async def ended() -> None:
        connection = Connection()
        await connection.send(POST % (3, b"") + b"ab")
        connection.protocol.eof_received()
        await connection.send()
        assert [scope[CUT_OFF] for scope, _ in connection.seen] == [499]

    asyncio.run(lost())
    asyncio.run(ended())


def test_a_slow_body_is_asgi_s_when_its_time_is_over() -> None:
    async def talk() -> None:
        clock = Clock()
        connection = Connection(clock)
        await connection.send(POST % (3, b"") + b"ab")
        clock.pass_by(SECONDS - 0.1)
        await connection.send()
        assert not connection.seen
        clock.pass_by(0.2)
        await connection.send(b"c")
        ((scope, message),) = connection.seen
        assert scope[IS_SLOW]
        assert message["body"] == b"abc"
        assert not connection.way.taken

    asyncio.run(talk())


def test_a_body_gives_way_where_unfinished_ones_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScoringProtocol, "shared", Connections(most_held_bytes=1000))

    async def talk() -> None:
        connection = Connection()
        await connection.send(POST % (3000, b""), bytes(900), bytes(900))
        ((scope, _),) = connection.seen
        assert scope[NO_ROOM]
        assert not connection.way.taken

    asyncio.run(talk())


def test_a_client_that_does_not_read_is_asgi_s() -> None:
    async def talk() -> None:
        connection = Connection()
        connection.protocol.pause_writing()
        assert await connection.send(POST % (2, b"") + b"ab") == b""
        connection.protocol.resume_writing()
        assert answers(await connection.send()) == [(202, b"asgi")]
        assert not connection.way.taken

    asyncio.run(talk())
