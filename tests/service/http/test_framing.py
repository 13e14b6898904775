"""Framing of requests: N requests get N answers, however their bytes arrive and whatever they offer."""

import asyncio
import json
import re
from collections.abc import Iterable

import pytest
from starlette.types import Receive, Scope, Send

from service.http.connections import Limits
from service.http.protocol import GuardedProtocol
from tests.service.in_memory import Clock, Connection

OFFERS = {
    "JDK's HttpClient": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n",
    "websocket": b"Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\nSec-WebSocket-Version: 13\r\n",
    "any word": b"UPGRADE: whatever/1.0, else \t\r\nconnection:UPGRADE\r\n",
    "two lines": b"Connection: keep-alive\r\nUpgrade: a\r\nConnection: Upgrade\r\nUpgrade: b\r\n",
    "no offer": b"Upgrade: h2c\r\n",
    "nothing": b"Connection: upgrade\r\n",
}
LENGTH = b"Content-Length: 5\r\n\r\nab\r\nc"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3;x=y\r\n\r\nc\r\n0\r\n\r\n"
BODIES = {"length": LENGTH, "chunked": CHUNKED, "none": b"\r\n"}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what the application got: the path, the names of headers, the body."""
    body, has_more = b"", True
    while has_more:
        part = await receive()
        if part["type"] == "http.disconnect":
            return
        body += part["body"]
        has_more = part["more_body"]
    names = sorted(name.decode() for name, _ in scope["headers"])
    text = json.dumps([scope["method"], scope["path"], names, body.decode()]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


def answers(written: bytes) -> list[tuple[int, bytes]]:
    """Status and body of every answer."""
    found = []
    while written:
        head, _, rest = written.partition(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert len(rest) >= size, written
        found.append((int(head.split(b" ")[1]), rest[:size]))
        written = rest[size:]
    return found


def talk(*parts: bytes) -> tuple[Connection, list[tuple[int, bytes]]]:
    """The connection after these reads, and the answers."""

    async def run() -> tuple[Connection, bytes]:
        connection = Connection(echo)
        written = await connection.send(*parts)
        while more := await connection.send():  # pipelined requests are answered one after the other
            written += more
        return connection, written

    connection, written = asyncio.run(run())
    return connection, answers(written)


def in_reads(stream: bytes) -> Iterable[tuple[bytes, ...]]:
    """The stream at once, byte by byte, and in two: where blocks end, and at every seventh place."""
    yield (stream,)
    yield tuple(stream[at : at + 1] for at in range(len(stream)))
    ends = {found.end() for found in re.finditer(rb"\r?\n", stream)}
    for at in sorted(ends | set(range(1, len(stream), 7))):
        yield stream[:at], stream[at:]


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_of_another_protocol_is_passed_over(offer: str, body: str, version: bytes) -> None:
    head = b"POST /%d " + version + b"\r\nHost: x\r\n" + OFFERS[offer]
    stream = b"".join(head.replace(b"%d", b"%d" % n) + BODIES[body] for n in range(3))
    # The application's first answer ends a connection of HTTP/1.0.
    number = 3 if version == b"HTTP/1.1" else 1
    text = "" if body == "none" else "ab\r\nc"
    for parts in in_reads(stream):
        connection, found = talk(*parts)
        assert [status for status, _ in found] == [200] * number, parts
        got = [json.loads(one) for _, one in found]
        assert [(method, path, echoed) for method, path, _, echoed in got] == [
            ("POST", f"/{n}", text) for n in range(number)
        ], parts
        assert connection.transport.is_closed == (version == b"HTTP/1.0")


def test_an_offer_with_close_ends_the_connection_after_its_answer() -> None:
    stream = b"POST / HTTP/1.1\r\nConnection: close, upgrade\r\nUpgrade: h2c\r\n" + LENGTH + b"GET /x HTTP/1.1\r\n\r\n"
    for parts in in_reads(stream):
        connection, found = talk(*parts)
        assert [json.loads(body)[3] for _, body in found] == ["ab\r\nc"]
        assert connection.transport.is_closed


REFUSED = {
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "length and chunked": b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "a signed length": b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\nabcde",
    "a length in a list": b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\nabcde",
    "chunked, not last": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a folded header": b"POST / HTTP/1.1\r\nConnection: keep-alive,\r\n upgrade\r\nUpgrade: h2c\r\n\r\n",
    "a blank before the colon": b"POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\nabcde",
    "line feeds": b"POST / HTTP/1.1\nContent-Length: 5\n\nabcde",
    "a NUL": b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    "no address": b"GET \xff HTTP/1.1\r\n\r\n",
    "a trailer that ends the connection": b"POST / HTTP/1.1\r\n" + CHUNKED[:-2] + b"Connection: close\r\n\r\n",
    "a trailer that gives a length": b"POST / HTTP/1.1\r\n" + CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n",
    "a chunk that is none": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a chunk too short": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("stream", REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_400_once_and_the_end(stream: bytes) -> None:
    for parts in in_reads(stream + b"GET /smuggled HTTP/1.1\r\n\r\n"):
        connection, found = talk(*parts)
        assert [status for status, _ in found] == [400], parts
        assert connection.transport.is_closed


@pytest.mark.parametrize("stream", REFUSED.values(), ids=REFUSED)
def test_what_was_asked_before_is_answered_first(stream: bytes) -> None:
    before = b"POST /first HTTP/1.1\r\n" + LENGTH + b"GET /second HTTP/1.1\r\n\r\n"
    connection, found = talk(before + stream)
    assert [status for status, _ in found] == [200, 200, 400]
    assert [json.loads(body)[1] for _, body in found[:2]] == ["/first", "/second"]
    assert connection.transport.is_closed


def test_trailers_are_no_headers() -> None:
    trailers = b"Authorization: Bearer k\r\nUpgrade: h2c\r\nX-Request-Id: t\r\n\r\n"
    stream = b"POST / HTTP/1.1\r\nHost: x\r\n" + CHUNKED[:-2] + trailers
    for parts in in_reads(stream):
        _, found = talk(*parts, b"GET /next HTTP/1.1\r\n\r\n")
        assert [json.loads(body)[1:] for _, body in found] == [
            ["/", ["host", "transfer-encoding"], "ab\r\nc"],
            ["/next", [], ""],
        ]


@pytest.mark.parametrize("body", [b"0\r\n", b"2\r\nab\r\n0\r\n"])
@pytest.mark.parametrize("trailer", [b"X-%d: " + b"y" * 90 + b"\r\n", b"z" * 100])
def test_trailers_have_the_size_of_headers(body: bytes, trailer: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    connection, found = talk(head, *[trailer.replace(b"%d", b"%d" % number) for number in range(1000)])
    assert [status for status, _ in found] == [431]
    assert b"of trailers" in found[0][1]
    assert connection.transport.is_closed


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"u" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 8_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: " + b"x" * 40_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: x\r\n" * 8_000 + b"\r\n",
    ],
)
def test_the_size_of_headers_is_the_same_in_one_read_and_in_many(sent: bytes) -> None:
    many = [sent[start : start + 1000] for start in range(0, len(sent), 1000)]
    for parts in ([sent], many):
        connection, found = talk(*parts)
        assert [status for status, _ in found] == [431]
        assert connection.transport.is_closed


def test_what_is_written_beside_a_chunks_size_has_the_size_of_headers() -> None:
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;"
    assert [status for status, _ in talk(head, *[b"x" * 100] * 1000)[1]] == [431]


def test_many_small_chunks_and_large_headers_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "limits", Limits(header_bytes=1000))
    head = b"POST / HTTP/1.1\r\nX: " + b"x" * 900 + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    for parts in (
        [head + b"1\r\na\r\n" * 1000 + b"0\r\n\r\n"],
        [head, *[b"1\r\n", b"a\r\n"] * 1000, b"0\r\n", b"\r\n"],
    ):
        _, found = talk(*parts)
        assert [json.loads(body)[3] for _, body in found] == ["a" * 1000]


@pytest.mark.parametrize(("sent", "what"), [(b"", "headers"), (b"0\r\nX: ", "trailers")])
def test_trailers_have_the_time_of_headers(sent: bytes, what: str) -> None:
    async def run() -> bytes:
        clock = Clock()
        connection = Connection(echo, clock)
        head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + (b"\r\n" if sent else b"")
        await connection.send(head + sent)
        for _ in range(9):
            clock.pass_by(1.0)
            await connection.send(b"y")
        assert not connection.transport.written
        clock.pass_by(1.5)
        return await connection.send() or connection.transport.written

    assert answers(asyncio.run(run())) == [(408, f"the {what} took more than 10 s".encode())]


def test_blanks_around_a_value_are_not_part_of_it() -> None:
    async def values(scope: Scope, receive: Receive, send: Send) -> None:
        text = repr(scope["headers"]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
        await send({"type": "http.response.body", "body": text})

    async def run() -> bytes:
        return await Connection(values).send(b"GET / HTTP/1.1\r\nA: \t1 2 \t \r\nB:\r\nC:  \t\r\nD:3\r\n\r\n")

    assert answers(asyncio.run(run())) == [
        (200, repr([(b"a", b"1 2"), (b"b", b""), (b"c", b""), (b"d", b"3")]).encode())
    ]


@pytest.mark.parametrize("requests", [1, 3])
def test_a_client_that_sends_no_more_gets_its_answers(requests: int) -> None:
    async def run() -> tuple[bytes, bool]:
        connection = Connection(echo)
        one = b"POST / HTTP/1.1\r\n" + LENGTH
        for number in range(requests):
            connection.protocol.data_received(one.replace(b"/ ", b"/%d " % number))
        assert connection.protocol.eof_received()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not connection.protocol.eof_received()
        return connection.transport.written, connection.transport.is_closed

    written, is_closed = asyncio.run(run())
    assert [json.loads(body)[1] for _, body in answers(written)] == [f"/{number}" for number in range(requests)]
    assert written.count(b"connection: close") == 1
    assert is_closed


@pytest.mark.parametrize("before", [0, 2])
def test_a_request_that_ends_early_is_400_after_the_answers_before_it(before: int) -> None:
    async def run(part: bytes) -> bytes:
        connection = Connection(echo)
        connection.protocol.data_received(b"GET / HTTP/1.1\r\n\r\n" * before + part)
        connection.protocol.eof_received()
        for _ in range(100):
            await asyncio.sleep(0)
        assert connection.transport.is_closed
        return connection.transport.written

    for part in (
        b"P",
        b"POST / HTTP/1.1\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na",
        b"POST / HTTP/1.1\r\n" + CHUNKED[:-2],
    ):
        assert [status for status, _ in answers(asyncio.run(run(part)))] == [200] * before + [400]


def test_requests_that_wait_for_answers_are_bounded_and_not_read_on_for() -> None:
    async def run() -> tuple[list[tuple[int, bytes]], bool]:
        connection = Connection(echo)
        one = b"GET / HTTP/1.1\r\n\r\n"
        written, reads = b"", 0
        while reads < 3:  # it reads on when all of these are answered
            if connection.transport.is_read:
                reads += 1
                connection.protocol.data_received(one * 50)
            assert connection.transport.is_read != bool(connection.protocol.pipeline)
            written += await connection.send()
        connection.protocol.data_received(one * 10_000)
        while more := await connection.send():
            written += more
        return answers(written), connection.transport.is_closed

    found, is_closed = asyncio.run(run())
    assert [status for status, _ in found[:-1]] == [200] * (len(found) - 1)
    assert 100 <= len(found) <= 3 * 50 + 1 + 100 + 1
    assert found[-1][0] == 429
    assert is_closed


def test_a_client_that_reads_nothing_is_cut_off() -> None:
    async def run() -> bool:
        clock = Clock()
        connection = Connection(echo, clock)
        connection.transport.unsent = 1
        await connection.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        clock.pass_by(61)
        return connection.transport.is_aborted

    assert asyncio.run(run())
