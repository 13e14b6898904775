"""Batches: every answer is the one that its request gets alone, and what is refused, counted and logged is its own."""

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from model.scorer.scorer import Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.items import tiny_items, write_items
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, request_lines, sample
from tests.service.rank.test_request_schema import ROWS, bodies
from tests.service.state.stores import STATE, put_user, sqlite_url, store_at
from training.publish.catalogue import build_catalogue

BATCH = "/v1/rank:batch"
# Float32 products of more rows are added up in another order.
SAME = 1e-6
REQUESTS = "ranking_requests_total"
EXPERIMENT = {
    "name": "values",
    "layer": "first",
    "buckets": {"from": 0, "to": 10_000},
    "start": "2026-01-01",
    "horizon": "24h",
    "realised": {"click": 1.0},
    "arms": {"control": {}, "bold": {"value_model": "bold"}},
}


def of_user(number: int, **more: Any) -> dict[str, Any]:
    user = {**TINY_REQUEST["user"], "user_id": number, "age_days": 3.5 * number}
    return copy.deepcopy({**TINY_REQUEST, "user": user, "request_id": f"r-{number}", **more})


def assert_same(one: Any, other: Any) -> None:
    """Equal, but for the last digits of numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for value, of_other in zip(one, other, strict=True):
            assert_same(value, of_other)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=SAME, abs=SAME)
    else:
        assert one == other


def asked(client: TestClient, requests: list[Any]) -> list[dict[str, Any]]:
    answer = client.post(BATCH, json={"requests": requests})
    assert answer.status_code == 200, answer.text
    answers: list[dict[str, Any]] = answer.json()["answers"]
    return answers


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    for seed in range(2):
        publish_artifact(folder, seed=seed)
    (folder / "tiny" / "labels.yaml").write_text("{stable: 2, canary: {version: 1, share: 0}}")
    with client_of(folder, max_candidates=40) as client:
        yield client


def test_answers_are_those_of_each_request_alone(client: TestClient) -> None:
    requests = [
        of_user(1),
        of_user(2, top_k=2, explain=True),
        of_user(3, candidates=ROWS),
        of_user(4, version="1"),
        of_user(5, user={}),
        of_user(6, candidates={"id": ["a", "a"], "features": {}}),
    ]
    alone = [client.post("/v1/rank", json=request).json() for request in requests]
    for one, together in zip(alone, asked(client, requests), strict=True):
        assert_same(one, together)
    assert alone[3]["model_version"] == "1" != alone[0]["model_version"]
    # Equal candidates of a request have equal bits.
    scores = asked(client, [*requests[:5], requests[5]])[5]["candidates"]["score"]
    assert scores[0] == scores[1]


@settings(max_examples=60)
@given(st.lists(bodies(), min_size=1, max_size=4))
def test_nearly_right_requests_are_answered_or_refused_as_alone(client: TestClient, requests: list[Any]) -> None:
    for number, request in enumerate(requests):
        if isinstance(request.get("request_id"), str):
            request["request_id"] = f"r-{number}"
    alone = [client.post("/v1/rank", json=request) for request in requests]
    if any(one.status_code == 413 for one in alone):
        assert client.post(BATCH, json={"requests": requests}).status_code == 413
        return
    for one, together in zip(alone, asked(client, requests), strict=True):
        assert together.get("status", 200) == one.status_code
        assert_same({**one.json(), "request_id": ""}, {**together, "request_id": ""})


@pytest.mark.parametrize(
    ("body", "status", "path"),
    [
        (b"{", 400, "$"),
        (b"[1]", 422, "$"),
        (b"{}", 422, "requests"),
        (b'{"requests": {}}', 422, "requests"),
        (b'{"requests": []}', 422, "requests"),
        (b'{"requests": [{}], "explain": true}', 422, "explain"),
        (json.dumps({"requests": [of_user(1), of_user(2), of_user(1)]}).encode(), 422, "requests[2].request_id"),
        (json.dumps({"requests": [of_user(n) for n in range(11)]}).encode(), 413, "requests"),  # 44 candidates
        (json.dumps({"requests": [{}] * 51}).encode(), 413, "requests"),
    ],
)
def test_what_is_wrong_with_the_body_refuses_all_of_it(client: TestClient, body: bytes, status: int, path: str) -> None:
    before = sample(client, REQUESTS, endpoint=BATCH, code=str(status)) if status != 400 else 0
    refused = client.post(BATCH, content=body)
    assert refused.status_code == status, refused.text
    assert refused.json()["errors"][0]["path"] == path
    assert sample(client, REQUESTS, endpoint=BATCH, code=str(status)) == before + 1


def test_a_batch_has_the_deadline_and_the_method_of_a_request(client: TestClient) -> None:
    body = json.dumps({"requests": [of_user(1)]})
    assert client.post(BATCH, content=body, headers={"X-Request-Timeout-Ms": "x"}).status_code == 422
    assert client.post(BATCH, content=body, headers={"X-Request-Timeout-Ms": "60000"}).status_code == 200
    assert client.get(BATCH).status_code == 405


def test_a_problem_is_that_of_its_request_and_is_counted_as_one(client: TestClient) -> None:
    requests = [of_user(1), of_user(2, model="nobody"), of_user(3, user={"usr": 1}), 7, of_user(4)]
    counts = {code: sample(client, REQUESTS, endpoint=BATCH, code=code) for code in ("200", "404", "422")}
    answers = asked(client, requests)
    assert [answer.get("status") for answer in answers] == [None, 404, 422, 422, None]
    assert [answer["request_id"] for answer in answers[:3]] == ["r-1", "r-2", "r-3"]
    assert answers[2]["errors"][0]["path"] == "user.usr"
    grown = {code: sample(client, REQUESTS, endpoint=BATCH, code=code) - before for code, before in counts.items()}
    assert grown == {"200": 2, "404": 1, "422": 2}


def test_a_problem_says_when_to_try_again(tmp_path: Path) -> None:
    """In its body, which is all that it has in a batch."""
    with client_of(tmp_path) as client:
        alone = client.post("/v1/rank", json=of_user(1))
        assert (alone.status_code, alone.headers["Retry-After"]) == (503, "1")
        (together,) = asked(client, [of_user(1)])
        assert together == alone.json()
        assert together["retry_after"] == 1
        assert "retry_after" not in client.post("/v1/rank", json=[]).json()


def test_of_a_key_given_twice_the_last_counts_unless_one_is_wrong(client: TestClient) -> None:
    """Alone as in a batch, by both readers of a body."""
    body = json.dumps(of_user(1, top_k=1))
    expected = client.post("/v1/rank", content=body).json()
    right = [
        body.replace('"user": {', '"user": {"age_days": 1}, "user": {'),
        body.replace('"user_id"', '"user_id": "x", "user_id"', 1),  # a value, which the schema alone can refuse
        body.replace('"features": {', '"features": {}, "features": {'),
        body.replace('"top_k": 1', '"top_k": 2, "top_k": 1'),
    ]
    for twice in right:
        assert twice != body
        assert client.post("/v1/rank", content=twice).json() == expected
        assert client.post(BATCH, content=f'{{"requests": [{twice}]}}').json() == {"answers": [expected]}
    wrong = {
        "user": body.replace('"user": {', '"user": 7, "user": {'),
        "candidates": body.replace('"candidates": {', '"candidates": 7, "candidates": {'),
        "features": body.replace('"features": {', '"features": 7, "features": {'),
        "top_k": body.replace('"top_k": 1', '"top_k": "x", "top_k": 1'),
    }
    for path, twice in wrong.items():
        alone = client.post("/v1/rank", content=twice)
        assert alone.status_code == 422
        assert alone.json()["errors"] == [{"path": path, "message": "is there more than once; give it once"}]
        (answer,) = client.post(BATCH, content=f'{{"requests": [{twice}]}}').json()["answers"]
        assert answer["errors"] == alone.json()["errors"]
    whole = client.post(BATCH, content=f'{{"requests": 7, "requests": [{body}]}}')
    assert (whole.status_code, whole.json()["errors"][0]["path"]) == (422, "requests")
    tensors = '{"inputs": 7, "inputs": []}'
    assert "inputs: is there more than once" in client.post("/v2/models/tiny/infer", content=tensors).text


def test_scores_of_one_user_that_are_not_finite_refuse_that_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_artifact(tmp_path)
    request_sums = Scorer.request_sums

    def spoiled(scorer: Scorer, block: Any) -> Any:
        """NaN where a number of the user is that of user 2."""
        sums_BF = request_sums(scorer, block).clone()
        sums_BF[block.ids_BK[:, 0] == spoiled_row] = float("nan")
        return sums_BF

    with client_of(tmp_path) as client:
        scorer = Scorer.load(tmp_path / "tiny" / "1")
        spoiled_row = scorer.encoder.encode_request({"user_id": 2}).block.ids_BK[0, 0]
        expected = asked(client, [of_user(1), of_user(3)])
        monkeypatch.setattr(Scorer, "request_sums", spoiled)
        answers = asked(client, [of_user(1), of_user(2), of_user(3)])
        assert answers[1]["status"] == 500
        assert "not finite" in answers[1]["detail"]
        assert_same(expected, [answers[0], answers[2]])
        assert sample(client, "ranking_requests_rejected_total", reason="not_finite") == 1


def test_users_state_arms_policies_impressions_and_log_lines_are_of_each_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models, log = tmp_path / "models", tmp_path / "log"
    version = publish_artifact(models, user="user_id")
    build_catalogue(version, write_items(tmp_path / "items.parquet", tiny_items(30)))
    beside = {
        "state.yaml": STATE,
        "policies.yaml": "default:\n  filter: ['duration_ms > 0']\n"
        "  select: {explore: {temperature: 1, head: 3, share: 1}}\n",
        "value_models.yaml": "default: {kind: weighted_sum, weights: {click: 1}}\n"
        "bold: {kind: weighted_sum, weights: {like: 1}}\n",
        "experiments.yaml": yaml.safe_dump(
            {"layers": {"first": {"salt": "one", "unit": "user_id"}}, "experiments": [EXPERIMENT]}
        ),
    }
    for name, content in beside.items():
        (models / "tiny" / name).write_text(content)
    store = store_at(tmp_path / "state.db")
    for user in range(6):
        put_user(store, str(user), {"country": "fr", "age_days": 2.0 * user}, {"history": [(3 + user, 1.7e9)]})
    store.close()
    ids = [f"item-{n}" for n in range(8)]
    requests: list[dict[str, Any]] = [
        {
            "request_id": f"r-{user}",
            "user": {"user_id": user, "tab": 1},
            "candidates": {"id": ids[user:]},
            "explain": True,
        }
        for user in range(6)
    ]
    requests[5]["candidates"] = {**TINY_REQUEST["candidates"], "id": [*ids[:3], "new"]}
    given: dict[str, Any] = {"state": sqlite_url(tmp_path / "state.db"), "state_timeout_ms": 10_000}
    key = tmp_path / "user.key"
    key.write_text("k" * 32)
    log.mkdir()
    with client_of(models, **given) as client:
        alone = [client.post("/v1/rank", json=request).json() for request in requests]
    with (
        caplog.at_level(logging.INFO, logger="feedrank"),
        client_of(models, impression_log=log, user_hash_key=key, **given) as client,
    ):
        answers = client.post(BATCH, json={"requests": requests}, headers={"X-Request-Id": "b-1"}).json()["answers"]
        assert sample(client, "ranking_state_lookups_total", model="tiny", result="hit") == 6
        by_arm = [
            sample(client, "ranking_experiment_requests_total", model="tiny", experiment="values", arm=arm, code="200")
            for arm in ("control", "bold")
        ]
    for one, together in zip(alone, answers, strict=True):
        assert_same(one, together)
    arms = [answer["experiments"]["values"] for answer in answers]
    assert by_arm == [arms.count("control"), arms.count("bold")]
    assert min(by_arm) > 0
    lines = {line["request_id"]: line for line in lines_of(log)}
    assert len(lines) == len(requests)
    assert len({line["user_hash"] for line in lines.values()}) == 6
    for answer, arm in zip(answers, arms, strict=True):
        line = lines[answer["request_id"]]
        assert line["experiments"] == {"values": arm}
        assert line["user"]["country"] == "fr"
        answered = [line["candidates"]["id"][row] for row in line["order"]]
        assert answered == answer["candidates"]["id"]
        assert len(line["propensity"]) == len(answered)
    logged = request_lines(caplog)
    of_parts = {one["request_id"]: one for one in logged if one.get("batch") == "b-1"}
    assert of_parts.keys() == lines.keys()
    for answer in answers:
        one = of_parts[answer["request_id"]]
        assert (one["status"], one["state"], one["policy"]) == (200, "hit", "default")
        assert one["experiments"] == answer["experiments"]
    (whole,) = (one for one in logged if one["request_id"] == "b-1")
    assert (whole["requests"], whole["candidates"]) == (6, sum(len(one["candidates"]["id"]) for one in requests))
