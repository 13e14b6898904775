"""Several requests in one call of a client: each has its ranking or its error, and is in the counts once."""

import json
from typing import Any

import pytest

from feedrank import Ranking, RefusedError, UnavailableError
from tests.clients.either_client import KINDS, MakeClient, opened
from tests.clients.scripted_service import GONE, Reply, scripted

REQUESTS: list[dict[str, Any]] = [{"user": {"user_id": n}, "candidates": {"id": ["a", "b"]}} for n in range(4)]
RANKED = {"request_id": "of the server", "candidates": {"id": ["b", "a"], "score": [2, 1]}}
WRONG = {"status": 422, "detail": "wrong", "errors": [{"path": "user.usr", "message": "unknown"}]}
LOADING = {"status": 503, "detail": "loading"}
LONG = 60.0


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> MakeClient:
    return KINDS[request.param]


def reply(*answers: Any) -> Reply:
    return Reply(200, json.dumps({"answers": answers}).encode())


def test_each_request_has_its_ranking_or_its_error(make: MakeClient) -> None:
    with (
        scripted(reply(RANKED, WRONG, LOADING, LOADING)) as service,
        opened(make(service.url, strict=True, key="secret")) as client,
    ):
        given = [{**REQUESTS[0], "request_id": "mine"}, {**REQUESTS[1], "strict": False}, *REQUESTS[2:]]
        fallbacks = [None, ["x"], ["a", "b"], None]
        ranked, wrong, fallen, none = client.rank_batch(given, timeout=LONG, fallbacks=fallbacks)
        counts = client.counts()
    assert ranked == Ranking(["b", "a"], "mine", RANKED)
    assert isinstance(wrong, RefusedError)
    assert (wrong.status, wrong.faults) == (422, [("user.usr", "unknown")])
    assert isinstance(fallen, Ranking)
    assert (fallen.ids, fallen.answer, fallen.reason) == (["a", "b"], None, "status 503")
    assert isinstance(none, UnavailableError)
    assert none.reason == "status 503"
    (received,) = service.received
    ids = ["mine", wrong.request_id, fallen.request_id, none.request_id]
    assert len({*ids, received.headers["X-Request-Id"]}) == 5
    assert received.path == "/v1/rank:batch"
    assert received.headers["Authorization"] == "Bearer secret"
    assert 0 < int(received.headers["X-Request-Timeout-Ms"]) <= 1000 * LONG
    asked = [{"strict": True, **one, "request_id": name} for one, name in zip(given, ids, strict=True)]
    assert received.body == {"requests": asked}
    assert (counts.answered, counts.refused, counts.fallbacks, counts.unavailable) == (1, 1, 1, 1)
    assert counts.reasons == {"status 422": 1, "status 503": 2}
    assert counts.retries == 0


def test_a_batch_is_sent_again_as_it_was(make: MakeClient) -> None:
    with scripted(GONE, reply(*[RANKED] * 4)) as service, opened(make(service.url)) as client:
        rankings = client.rank_batch(REQUESTS, timeout=LONG)
        counts = client.counts()
    first, second = service.received
    assert first.body == second.body
    assert first.headers["X-Request-Id"] == second.headers["X-Request-Id"]
    assert [one.request_id for one in rankings] == [one["request_id"] for one in first.body["requests"]]
    assert (counts.answered, counts.retries, counts.reasons) == (4, 1, {})


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (Reply(503, b"{}"), "status 503"),
        (Reply(504, b"{}"), "status 504"),
        (Reply(200, b"<html>"), "no answer"),
        (reply(RANKED), "no answer"),
        (reply(RANKED, RANKED, RANKED, "x"), "no answer"),
    ],
    ids=["503", "504", "page", "too few", "no object"],
)
def test_without_an_answer_each_request_has_its_fallback(make: MakeClient, last: Reply, reason: str) -> None:
    with scripted(last) as service, opened(make(service.url)) as client:
        ended = client.rank_batch(REQUESTS, timeout=LONG, fallbacks=[["a"], ["b"], ["c"], ["d"]])
        counts = client.counts()
    fallen = [one for one in ended if isinstance(one, Ranking) and one.is_fallback]
    assert [one.ids for one in fallen] == [["a"], ["b"], ["c"], ["d"]][-len(fallen) :]
    assert {one.reason for one in fallen} == {reason}
    assert len(fallen) == (1 if last.body.count(b"score") == 3 else 4)
    assert (counts.answered, counts.fallbacks, counts.reasons) == (4 - len(fallen), len(fallen), {reason: len(fallen)})


def test_what_refuses_all_of_it_is_thrown_and_counted_for_each(make: MakeClient) -> None:
    twice = {"detail": "wrong", "errors": [{"path": "requests[1].request_id", "message": "requests[0] has it too"}]}
    with scripted(Reply(422, json.dumps(twice).encode())) as service, opened(make(service.url)) as client:
        with pytest.raises(RefusedError) as caught:
            client.rank_batch(REQUESTS, timeout=LONG, fallbacks=[["a"]] * 4)
        counts = client.counts()
    assert caught.value.request_id == service.received[0].headers["X-Request-Id"]
    assert caught.value.faults == [("requests[1].request_id", "requests[0] has it too")]
    assert (counts.refused, counts.reasons) == (4, {"status 422": 4})


def test_wrong_arguments_are_told_before_anything_is_sent(make: MakeClient) -> None:
    with scripted(reply()) as service, opened(make(service.url)) as client:
        with pytest.raises(ValueError, match="1 fallbacks for 4 requests"):
            client.rank_batch(REQUESTS, fallbacks=[["a"]])
        with pytest.raises(ValueError, match="no requests"):
            client.rank_batch([])
        with pytest.raises(ValueError, match="above 0"):
            client.rank_batch(REQUESTS, timeout=0)
        assert service.received == []
        assert client.counts().unavailable == 0
