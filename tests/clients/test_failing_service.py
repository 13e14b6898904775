"""Clients against servers that fail: one retry in its budget and its deadline, and every end counted."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
import pytest

from feedrank import Client, RefusedError, UnavailableError
from tests.clients.either_client import KINDS, EitherClient, MakeClient, opened, wait_for
from tests.clients.node_client import NodeClient
from tests.clients.scripted_service import ANSWER, GONE, Reply, ScriptedService, scripted
from tests.service.running import ROOT

REQUEST: dict[str, Any] = {"user": {"user_id": 2**63 - 1}, "candidates": {"id": ["a", "b"]}}
BUSY = Reply(503, b'{"detail": "draining"}')
LONG = 60.0  # seconds: no deadline of a test's own, however slow the machine
EVENT = {"request_id": "r-1", "type": "click", "id": "a"}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> MakeClient:
    return KINDS[request.param]


def sent(make: MakeClient, number: int) -> int | str:
    """An id beyond 2^53 on the wire. JavaScript has no JSON number for it."""
    return str(number) if make is NodeClient else number


def test_a_request_goes_out_as_it_is_on_one_connection(make: MakeClient) -> None:
    with scripted(ANSWER) as service, opened(make(service.url + "/", key="secret", strict=True)) as client:
        rankings = [client.rank(REQUEST, timeout=LONG) for _ in range(20)]
        given = client.rank({**REQUEST, "request_id": "mine", "strict": False}, timeout=LONG)
        counts = client.counts()
    assert {tuple(ranking.ids) for ranking in rankings} == {("b", "a")}
    assert given.request_id == "mine"
    assert given.answer is not None
    assert given.answer["candidates"]["score"] == [2, 1]
    assert len({request.connection for request in service.received}) == 1
    assert len({request.body["request_id"] for request in service.received}) == 21
    expected = {**REQUEST, "user": {"user_id": sent(make, 2**63 - 1)}}
    for ranking, received in zip(rankings, service.received, strict=False):
        assert received.body == {**expected, "request_id": ranking.request_id, "strict": True}
        assert received.headers["X-Request-Id"] == ranking.request_id
        assert received.headers["Authorization"] == "Bearer secret"
        assert 0 < int(received.headers["X-Request-Timeout-Ms"]) <= 1000 * LONG
    assert service.received[-1].body == {**expected, "request_id": "mine", "strict": False}
    assert (counts.answered, counts.retries, counts.reasons) == (21, 0, {})


@pytest.mark.parametrize("first", [GONE, BUSY], ids=["connection", "503"])
def test_one_retry_under_the_same_request_id(make: MakeClient, first: Reply) -> None:
    with scripted(first, ANSWER) as service, opened(make(service.url)) as client:
        ranking = client.rank(REQUEST, timeout=LONG)
        counts = client.counts()
    assert ranking.ids == ["b", "a"]
    assert [request.body["request_id"] for request in service.received] == [ranking.request_id] * 2
    assert (counts.answered, counts.retries) == (1, 1)


@pytest.mark.parametrize("reply", [GONE, BUSY], ids=["connection", "503"])
def test_the_fallback_after_two_tries(make: MakeClient, reply: Reply) -> None:
    with scripted(reply) as service, opened(make(service.url)) as client:
        ranking = client.rank(REQUEST, timeout=LONG, fallback=["a", "b"])
        with pytest.raises(UnavailableError):
            client.rank(REQUEST, timeout=LONG)
        counts = client.counts()
    reason = "connection" if reply is GONE else "status 503"
    assert (ranking.ids, ranking.is_fallback, ranking.answer, ranking.reason) == (["a", "b"], True, None, reason)
    assert len(service.received) == 4
    assert (counts.fallbacks, counts.unavailable, counts.retries, counts.reasons) == (1, 1, 2, {reason: 2})


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for_within_the_deadline(make: MakeClient, status: int) -> None:
    with scripted(Reply(status, headers={"Retry-After": "1"}), ANSWER) as service, opened(make(service.url)) as client:
        assert not client.rank(REQUEST, timeout=LONG).is_fallback
    first, second = service.received
    assert second.time - first.time >= 1
    left = [int(request.headers["X-Request-Timeout-Ms"]) for request in service.received]
    assert left[0] - left[1] >= 1000


@pytest.mark.parametrize(
    "reply",
    [
        Reply(503, headers={"Retry-After": "61"}),
        Reply(429, headers={"Retry-After": "Fri, 31 Dec 2199 23:59:59 GMT"}),
        Reply(429),
        Reply(500),
        Reply(504),
        Reply(200, b"<html>a proxy's page</html>"),
        Reply(200, b'{"candidates": [{"id": 1}]}'),
        Reply(302, headers={"Location": "/login"}),
    ],
    ids=lambda reply: f"{reply.status} {reply.headers or reply.body!r}",
)
def test_these_replies_are_not_tried_again(make: MakeClient, reply: Reply) -> None:
    with scripted(reply) as service, opened(make(service.url)) as client:
        assert client.rank(REQUEST, timeout=LONG, fallback=["a"]).ids == ["a"]
        counts = client.counts()
    assert len(service.received) == 1
    assert (counts.fallbacks, counts.retries) == (1, 0)
    assert counts.reasons == {"no answer" if reply.status == 200 else f"status {reply.status}": 1}


@pytest.mark.parametrize("reply", [Reply(hangs=True), Reply(200, b"{", drips=True)], ids=["silent", "drips"])
def test_a_slow_server_is_left_at_the_deadline(make: MakeClient, reply: Reply) -> None:
    """Neither reply ever ends."""
    with scripted(reply) as service, opened(make(service.url)) as client:
        ranking = client.rank(REQUEST, timeout=0.3, fallback=["a"])
        counts = client.counts()
    assert (ranking.reason, counts.retries, len(service.received)) == ("timeout", 0, 1)


def test_a_refusal_is_raised_with_its_faults(make: MakeClient) -> None:
    problem = b'{"detail": "wrong", "errors": [{"path": "user.usr_id", "message": "unknown"}]}'
    with scripted(Reply(422, problem)) as service, opened(make(service.url)) as client:
        with pytest.raises(RefusedError, match=r"user\.usr_id: unknown") as caught:
            client.rank(REQUEST, timeout=LONG, fallback=["a"])
        counts = client.counts()
    assert (caught.value.status, caught.value.faults) == (422, [("user.usr_id", "unknown")])
    assert (counts.refused, counts.fallbacks, counts.retries, len(service.received)) == (1, 0, 0, 1)


def test_retries_keep_to_their_budget() -> None:
    """A tenth of the requests and ten more, beside a count in fractions."""
    tokens, retries = Fraction(10), 0
    for _ in range(200):
        tokens = min(tokens + Fraction(1, 10), Fraction(10))
        if tokens >= 1:
            tokens, retries = tokens - 1, retries + 1
    with scripted(BUSY) as service, Client(service.url) as client:
        for _ in range(200):
            assert client.rank(REQUEST, timeout=LONG, fallback=["a"]).is_fallback
        counts = client.counts()
    assert 20 < retries <= 30
    assert (counts.retries, counts.over_budget, counts.fallbacks) == (retries, 200 - retries, 200)
    assert len(service.received) == 200 + retries


@pytest.mark.parametrize("make", [Client, KINDS["asyncio"]], ids=["sync", "asyncio"])
def test_a_body_that_cannot_be_unpacked_is_no_answer(make: MakeClient) -> None:
    with scripted(Reply(200, b"no gzip", {"Content-Encoding": "gzip"})) as service, opened(make(service.url)) as client:
        assert client.rank(REQUEST, timeout=LONG, fallback=["a"]).reason == "no answer"


@pytest.mark.parametrize("value", [float("inf"), 2.0**60])
def test_javascript_refuses_numbers_that_it_would_change(value: float) -> None:
    with opened(NodeClient("http://ranking")) as client, pytest.raises(ValueError, match="age: "):
        client.rank({"user": {"age": value}})


def test_no_service_at_all(make: MakeClient) -> None:
    with scripted(ANSWER) as service:
        url = service.url
    with opened(make(url)) as client:
        assert client.rank(REQUEST, timeout=LONG, fallback=["a"]).reason == "connection"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Client("ranking:8080"), "http://ranking:8080"),
        (lambda: Client("http://ranking", key="se\ncret"), "characters that no header takes"),
        (lambda: Client("http://ranking").rank(REQUEST, timeout=0), "seconds above 0"),
        (lambda: Client("http://ranking").rank({"user": {"age": float("nan")}}), "not JSON compliant"),
        (lambda: Client("http://ranking").event({**EVENT, "time": datetime.now(UTC)}), "a datetime is no JSON"),
    ],
)
def test_wrong_arguments_are_refused_in_words(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "cret" not in str(caught.value)


def events_of(service: ScriptedService) -> list[list[dict[str, Any]]]:
    """The events of each request."""
    return [request.body["events"] for request in service.received]


def ended(client: EitherClient) -> bool:
    """True once no event waits."""
    return client.counts().events_waiting == 0


def test_events_are_sent_again_as_they_were(make: MakeClient) -> None:
    with (
        scripted(GONE, Reply(503, headers={"Retry-After": "0"}), Reply(202)) as service,
        opened(make(service.url, flush_seconds=0.01)) as client,
    ):
        assert client.event({**EVENT, "event_id": "mine", "user": 2**62 + 1})
        wait_for(lambda: ended(client))
        counts = client.counts()
    first, second, third = events_of(service)
    assert first == second == third
    assert first[0]["event_id"] == "mine"
    assert first[0]["user"] == sent(make, 2**62 + 1)
    assert first[0]["time"]
    assert (counts.events_accepted, counts.events_dropped, counts.events_refused) == (1, 0, 0)


@pytest.mark.parametrize("names", [True, False])
def test_a_wrong_event_costs_no_other(make: MakeClient, names: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the refusal names it, and where it does not."""
    accepted: list[str] = []

    def reply(self: ScriptedService, handler: Any, request: Any) -> None:
        events = request.body["events"]
        wrong = [place for place, event in enumerate(events) if event["id"] == "wrong"]
        if not wrong:
            accepted.extend(event["id"] for event in events)
        self._replies = [
            Reply(422, b'{"errors": [{"path": "events[%d].id"}]}' % wrong[0] if names else b"{}")
            if wrong
            else Reply(202)
        ]
        original(self, handler, request)

    original = ScriptedService.reply
    monkeypatch.setattr(ScriptedService, "reply", reply)
    with scripted(ANSWER) as service, opened(make(service.url, flush_seconds=0.2)) as client:
        for name in ("a", "wrong", "b", "wrong", "c"):
            client.event({**EVENT, "id": name})
        wait_for(lambda: ended(client))
        counts = client.counts()
    assert accepted == ["a", "b", "c"]
    assert (counts.events_accepted, counts.events_refused, counts.events_dropped) == (3, 2, 0)


def test_events_beyond_the_bound_are_dropped_and_counted(make: MakeClient) -> None:
    with scripted(Reply(hangs=True)) as service:
        client = make(service.url, most_events=5, flush_seconds=0.01)
        assert [client.event(EVENT) for _ in range(8)] == [True] * 5 + [False] * 3
        wait_for(lambda: client.counts().events_waiting == 5 and bool(service.received))
        assert client.counts().events_dropped == 3
        if isinstance(client, Client):
            client.close(timeout=0.1)
            counts = client.counts()
            assert not client.event(EVENT)
            assert client.counts().events_dropped == 9
            assert (counts.events_dropped, counts.events_accepted, counts.events_waiting) == (8, 0, 0)
        else:
            client.close(timeout=0.1)


def test_a_program_that_ends_without_close_has_sent_its_events() -> None:
    code = f"import feedrank, sys; feedrank.Client(sys.argv[1], flush_seconds=3600).event({EVENT})"
    with scripted(Reply(202)) as service:
        environment = {"PYTHONPATH": str(ROOT / "clients/python")}
        subprocess.run([sys.executable, "-c", code, service.url], env=environment, check=True)
    ((event,),) = events_of(service)
    assert event["id"] == "a"


def test_arrays_of_numpy_are_columns() -> None:
    ids = np.array([2**63 - 1, -(2**63)])
    with scripted(ANSWER) as service, Client(service.url) as client:
        client.rank({"user": {"age": np.float32(0.5)}, "candidates": {"features": {"item": ids}}}, timeout=LONG)
    assert service.received[0].body["user"] == {"age": 0.5}
    assert service.received[0].body["candidates"] == {"features": {"item": [2**63 - 1, -(2**63)]}}


def test_a_client_of_the_callers_stays_open() -> None:
    with scripted(ANSWER) as service, httpx.Client(trust_env=False) as http:
        with Client(service.url, http=http) as client:
            client.rank(REQUEST, timeout=LONG)
        assert http.post(service.url, json={}).status_code == 200
