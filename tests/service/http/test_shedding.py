"""Requests that are refused from their headers: refused as the usual way does, on a connection that goes on."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Scope

from service.http.admission import Admission, Ticket
from service.http.content_encoding import size_of
from service.http.keys import Keys, hash_of
from service.http.middleware import Observe
from service.http.protocol import SHED
from service.http.shedding import Shedding
from service.metrics.metrics import Metrics
from tests.service import in_memory
from tests.service.in_memory import Clock

ANSWER = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nbusy"
POST = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"


class Connection(in_memory.Connection):
    """A connection to a server that sheds while `is_busy`."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock=clock, state={SHED: self._shed})
        self.is_busy = True
        self.paths: list[str] = []

    def _shed(self, scope: Scope) -> bytes | None:
        self.paths.append(scope["path"])
        return ANSWER if self.is_busy else None


def test_a_connection_goes_on_after_what_was_shed() -> None:
    async def talk() -> None:
        connection = Connection()
        assert await connection.send(POST % 3 + b"abc") == ANSWER
        assert await connection.send(POST % 3) == ANSWER  # before its body
        assert await connection.send(b"ab", b"c") == b""
        # Its end comes with what follows, and a body in many parts.
        assert await connection.send(POST % 300_000, *[bytes(100_000)] * 2, bytes(100_000) + POST % 0) == 2 * ANSWER
        assert connection.transport.is_read
        connection.is_busy = False
        assert (await connection.send(POST % 3 + b"a", b"b", b"c")).endswith(b"\r\n\r\n3")
        connection.is_busy = True
        assert await connection.send(POST % 0) == ANSWER
        assert not connection.transport.is_closed
        assert set(connection.paths) == {"/v1/rank"}

    asyncio.run(talk())


def test_a_shed_request_waits_for_the_answer_before_it() -> None:
    async def talk() -> None:
        connection = Connection()
        connection.is_busy = False
        assert await connection.send(POST % 3 + b"ab") == b""
        connection.is_busy = True
        answers = await connection.send(b"c" + POST % 2 + b"de")
        assert answers.index(b"\r\n\r\n3") < answers.index(b"\r\n\r\n2")  # by the application, which has both

    asyncio.run(talk())


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        b"POST /v1/rank HTTP/1.0\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        b"POST /v1/rank HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        b"POST /v1/rank HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_what_is_not_a_plain_post_is_the_applications(head: bytes) -> None:
    async def talk() -> None:
        assert b"200 OK" in await Connection().send(head)

    asyncio.run(talk())


def test_little_of_an_endless_body_is_read() -> None:
    async def talk() -> None:
        connection = Connection()
        await connection.send(POST % 50_000_000)
        sent = 0
        while connection.transport.is_read:
            await connection.send(bytes(65_536))
            sent += 65_536
        assert sent <= 512 * 1024
        assert not connection.transport.is_closed  # not yet: the client has to see its answer

    asyncio.run(talk())


def test_a_connection_is_closed_when_it_was_idle_for_long_and_not_before() -> None:
    async def talk() -> None:
        clock = Clock()
        connection = Connection(clock)
        for is_busy in (True, False, True, True, False, False, True):
            clock.pass_by(59)
            connection.is_busy = is_busy
            assert await connection.send(POST % 2 + b"ab")
            assert not connection.transport.is_closing()
            # uvicorn's timer of an answered connection, and one of ours: none for each request or each of its parts.
            assert len(clock.waiting()) <= 2
        clock.pass_by(59)
        assert not connection.transport.is_closing()
        clock.pass_by(1)
        assert connection.transport.is_closing()

    asyncio.run(talk())


@pytest.mark.parametrize(("parts", "seconds", "status"), [([POST[:9]], 10, b"408"), ([POST % 5, b"ab"], 10, b"429")])
def test_a_request_without_an_end_is_cut_off_in_time(parts: list[bytes], seconds: float, status: bytes) -> None:
    async def talk() -> None:
        clock = Clock()
        connection = Connection(clock)
        await connection.send(POST % 1 + b"a")
        clock.pass_by(50)
        answer = await connection.send(*parts)
        clock.pass_by(seconds - 0.5)
        assert not connection.transport.is_closing()
        answered = len(connection.transport.written)
        clock.pass_by(0.5)
        assert connection.transport.is_closing()
        assert status in (answer or connection.transport.written[answered:])

    asyncio.run(talk())


@pytest.fixture
def full() -> Iterator[Admission]:
    """One thread, and no room: the tickets are held."""
    admission = Admission(threads=1, seconds=1e-6, largest=100)
    tickets: list[Ticket] = [admission.admit(1000) for _ in range(2)]
    yield admission
    for ticket in tickets:
        ticket.release()


def scope_of(path: str = "/v1/rank", **headers: str) -> dict[str, Any]:
    given = {"content-length": "1000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return {"path": path, "headers": [(name.encode(), value.encode()) for name, value in given.items()]}


def shedding(admission: Admission, metrics: Metrics, keys: Keys, *, is_leaving: bool = False) -> Shedding:
    return Shedding(
        lambda scope: admission.wait(size_of(scope)),
        keys,
        Observe(in_memory.application, metrics),
        metrics,
        lambda: is_leaving,
    )


def test_the_answer_is_a_problem_and_counted(full: Admission) -> None:
    metrics = Metrics()
    shed = shedding(full, metrics, Keys(None, 1.0))
    answer = shed(scope_of(x_request_id="mine"))
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    assert status == b"HTTP/1.1 429 Too Many Requests"
    headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"content-length"] == b"%d" % len(body)
    assert headers[b"x-request-id"] == b"mine"
    assert int(headers[b"retry-after"]) >= 1
    content = json.loads(body)
    assert (content["status"], content["request_id"]) == (429, "mine")
    other = shed(scope_of("/v2/models/a/infer"))
    assert other is not None
    assert list(json.loads(other.partition(b"\r\n\r\n")[2])) == ["error"]
    sample = metrics.registry.get_sample_value
    assert sample("ranking_requests_rejected_total", {"reason": "shed"}) == 2
    assert sample("ranking_requests_total", {"endpoint": "/v1/rank", "code": "429"}) == 1
    assert sample("ranking_requests_total", {"endpoint": "/v2/models/{name}/infer", "code": "429"}) == 1


def test_only_scoring_requests_are_shed_and_only_where_there_is_no_room(full: Admission) -> None:
    shed = shedding(full, Metrics(), Keys(None, 1.0))
    for path in ("/metrics", "/v1/models", "/v1/rank/", "/v1/%72ank", "http://x/v1/rank"):
        assert shed(scope_of(path)) is None
    assert shedding(full, Metrics(), Keys(None, 1.0), is_leaving=True)(scope_of()) is None
    room = Admission(threads=1, seconds=1.0, largest=100)
    assert shedding(room, Metrics(), Keys(None, 1.0))(scope_of()) is None


def test_who_has_no_key_is_told_that_and_not_how_busy_it_is(full: Admission, tmp_path: Any) -> None:
    file = tmp_path / "keys.yaml"
    text = "k" * 40
    file.write_text(f"keys:\n- {{name: mine, scopes: [score], sha256: {hash_of(text)}}}\n")
    shed = shedding(full, Metrics(), Keys(file, 1.0))
    assert shed(scope_of()) is None
    assert shed(scope_of(authorization="Bearer " + "x" * 40)) is None
    assert shed(scope_of(authorization=f"Bearer {text}")) is not None
