"""Memory of all connections together: those that hold most give way, idle ones end for new ones, and it is counted."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from service.base.errors import Problem, problem_response
from service.http.body import read_body_in_time
from service.http.connections import Connections
from service.http.protocol import GuardedProtocol
from service.metrics.connection_metrics import END_REASONS
from tests.service.in_memory import Connection
from tests.service.in_process import client_of, samples

HEAD = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
SMALL = HEAD % 10 + b"x" * 10


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connections]:
    shared = Connections(most=4, most_held_bytes=1000)
    monkeypatch.setattr(GuardedProtocol, "shared", shared)
    yield shared
    assert shared.held_bytes >= 0


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body's size, read as the service reads it."""
    try:
        text = b"%d" % len(await read_body_in_time(scope, receive, 10**6, 30))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
        await send({"type": "http.response.body", "body": text})
    except Problem as problem:
        await problem_response(problem, "r")(scope, receive, send)


def status(written: bytes) -> int:
    return int(written.split(b" ")[1])


def test_the_one_that_holds_most_gives_way_and_others_are_answered(shared: Connections) -> None:
    async def run() -> None:
        greedy, modest = Connection(application), Connection(application)
        assert await greedy.send(HEAD % 2000 + b"x" * 700) == b""
        assert await modest.send(HEAD % 200 + b"x" * 100) == b""
        held = shared.held_bytes
        assert held > 800
        third = Connection(application)
        assert await third.send(HEAD % 200 + b"x" * 150) == b""
        refused = await greedy.send()
        assert status(greedy.transport.written) == 429
        assert b"retry-after: 1" in greedy.transport.written
        assert b"too much memory" in greedy.transport.written + refused
        assert 0 < shared.held_bytes < 500
        assert (await modest.send(b"x" * 100)).endswith(b"\r\n\r\n200")
        assert (await third.send(b"x" * 50)).endswith(b"\r\n\r\n200")
        # What is refused is skipped to its end, and the connection goes on.
        assert await greedy.send(b"x" * 1000, b"x" * 300) == b""
        assert shared.held_bytes == 0
        assert (await greedy.send(SMALL)).endswith(b"\r\n\r\n10")

    asyncio.run(run())
    assert not shared.ends


def test_headers_and_requests_that_wait_are_held_too(shared: Connections) -> None:
    async def run() -> None:
        connections = [Connection(application) for _ in range(3)]
        for connection in connections:
            await connection.send(b"POST / HTTP/1.1\r\n" + b"X: %b\r\n" % (b"y" * 350))
        assert shared.held_bytes <= 1000
        refused = [connection for connection in connections if connection.transport.written]
        assert [status(connection.transport.written) for connection in refused] == [429]
        assert refused[0].transport.is_closed
        for connection in connections:
            connection.protocol.connection_lost(None)
        assert shared.held_bytes == 0
        waiting = Connection(application)
        waiting.protocol.pause_writing()  # its client reads nothing
        waiting.protocol.data_received(SMALL * 5)
        before = shared.held_bytes
        assert before == 5 * len(SMALL)
        for _ in range(10):
            await asyncio.sleep(0)
        waiting.protocol.data_received(SMALL * 20)
        assert shared.held_bytes == 0
        assert not waiting.protocol.pipeline
        waiting.protocol.resume_writing()
        for _ in range(20):
            await asyncio.sleep(0)
        assert waiting.transport.written.count(b"HTTP/1.1 200") == 1
        assert waiting.transport.written.count(b"HTTP/1.1 429") == 1
        assert waiting.transport.is_closed

    asyncio.run(run())
    assert shared.ends == {"no_room": 2}


def test_what_is_answered_is_held_no_more(shared: Connections) -> None:
    async def run() -> None:
        connection = Connection(application)
        for parts in ((SMALL,), (SMALL[:-5], SMALL[-5:]), (SMALL * 3,), (SMALL[:7], SMALL[7:] + SMALL[:9], SMALL[9:])):
            assert await connection.send(*parts)
            await connection.send()
            assert shared.held_bytes == 0, parts
        # Refused before its body is there.
        assert status(await connection.send(HEAD % 10**7 + b"x" * 100)) == 413
        assert shared.held_bytes == 0
        await connection.send(b"x" * 600)
        assert shared.held_bytes == 0

    asyncio.run(run())


def connections_of_one_server(number: int) -> list[Connection]:
    first = Connection(application)
    others = [Connection(application, server_state=first.server_state) for _ in range(number - 1)]
    return [first, *others]


def test_idle_connections_end_for_new_ones(shared: Connections) -> None:
    async def run() -> None:
        connections = connections_of_one_server(4)
        await connections[0].send(SMALL)  # so its time begins again
        await connections[1].send(SMALL[:-1])
        new = Connection(application, server_state=connections[0].server_state)
        assert [one.transport.is_closed for one in connections] == [True, False, True, True]
        assert not new.transport.is_closed
        assert (await new.send(SMALL)).endswith(b"10")
        assert (await connections[1].send(b"x")).endswith(b"10")

    asyncio.run(run())
    assert shared.ends == {"idle": 3}


def test_where_none_is_idle_the_new_one_is_refused(shared: Connections) -> None:
    async def run() -> None:
        connections = connections_of_one_server(4)
        for one in connections:
            await one.send(SMALL[:-1])
        new = Connection(application, server_state=connections[0].server_state)
        assert status(new.transport.written) == 503
        assert new.transport.is_closed
        for one in connections:
            assert (await one.send(b"x")).endswith(b"10")

    asyncio.run(run())
    assert shared.ends == {"connections": 1}
    assert shared.open == 5


def test_it_is_told_to_prometheus(tmp_path: Path, shared: Connections) -> None:
    shared.open, shared.held_bytes = 3, 77
    shared.ends["not_http"] += 2
    with client_of(tmp_path) as client:
        assert samples(client, "ranking_connections") == {frozenset(): 3}
        assert samples(client, "ranking_unfinished_request_bytes") == {frozenset(): 77}
        ended = samples(client, "ranking_connections_ended_total")
        assert ended == {frozenset({("reason", reason)}): 2 * (reason == "not_http") for reason in END_REASONS}
