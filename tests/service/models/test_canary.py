"""The canary's share goes by the request's user: on both wires, in every worker, over restarts and growing shares."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from model.buckets import bucket_of
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of, samples
from tests.service.open_inference.tensors import INFER, Given, binary_body, tensors_of
from tests.service.running import RunningService

SHARE = 0.3
USERS = range(60)
WIRES = ("columns", "rows", "tensors", "bytes")
CANDIDATES = {"id": ["a", "b"], "features": {"video_id": [3, 9], "duration_ms": [8000, 31000]}}
ROWS = [{"id": "a", "features": {"video_id": 3}}, {"id": "b", "features": {"video_id": 9}}]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions whose users `user_id` names, then one whose users `country` names, a string."""
    models = tmp_path_factory.mktemp("published")
    for user in ("user_id", "user_id", "country"):
        publish_artifact(models, user=user)
    return models


@pytest.fixture
def models(tmp_path: Path, published: Path) -> Path:
    models = shutil.copytree(published, tmp_path / "models")
    put_labels(models, f"{{stable: 1, canary: {{version: 2, share: {SHARE}}}}}")
    return models


@pytest.fixture
def client(models: Path) -> Iterator[TestClient]:
    with client_of(models) as client:
        yield client


def put_labels(models: Path, text: str) -> None:
    (models / "tiny" / "labels.yaml").write_text(text)


def version_of(client: Any, user: dict[str, Any], *, wire: str = "columns", request_id: str | None = None) -> str:
    """The version that answers."""
    request: dict[str, Any] = {"user": user, "candidates": CANDIDATES}
    if wire in ("columns", "rows"):
        named = {} if request_id is None else {"request_id": request_id}
        candidates = ROWS if wire == "rows" else CANDIDATES
        answer = client.post("/v1/rank", json={"user": user, "candidates": candidates, **named})
    elif wire == "tensors":
        inputs = [tensor.as_json() for tensor in tensors_of(request)]
        answer = client.post(INFER, json={"inputs": inputs, "id": request_id})
    else:
        body, headers = binary_body(tensors_of(request), id=request_id)
        answer = client.post(INFER, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model_version"])


def expected(user: str, share: float = SHARE) -> str:
    return "2" if bucket_of("tiny/2", user) < share * 10_000 else "1"


def choices(client: TestClient) -> dict[str, float]:
    """Decided choices by what decided."""
    found = samples(client, "ranking_canary_choices_total")
    return {dict(labels)["unit"]: value for labels, value in found.items()}


def test_a_user_has_one_version_on_every_wire_and_by_any_request_id(client: TestClient) -> None:
    versions = {user: expected(str(user)) for user in USERS}
    assert set(versions.values()) == {"1", "2"}
    for user, version in versions.items():
        wire = WIRES[user % len(WIRES)]
        assert version_of(client, {"user_id": user}, wire=wire, request_id=f"r-{user}") == version
    assert choices(client) == {"user": len(USERS), "request_id": 0}
    one = next(user for user, version in versions.items() if version == "2")
    assert {version_of(client, {"user_id": one}, wire=wire) for wire in WIRES} == {"2"}
    # An int64 id may be a string of its digits.
    assert version_of(client, {"user_id": str(one)}, wire="rows") == "2"
    assert version_of(client, {"user_id": str(one)}) == "2"


def test_a_user_that_is_a_string_is_one_on_every_wire(models: Path) -> None:
    put_labels(models, "{stable: 3, canary: {version: 2, share: 0.5}}")
    with client_of(models) as client:
        for country in ("de", "fr", "", "Zoë 用户", "another", "x" * 300):
            assert bucket_of("tiny/2", country) != 5000
            version = "2" if bucket_of("tiny/2", country) < 5000 else "3"
            assert {version_of(client, {"country": country}, wire=wire) for wire in WIRES} == {version}


@pytest.mark.parametrize("user", [{}, {"user_id": None}, {"tab": 1}])
def test_without_a_user_the_request_id_decides(client: TestClient, user: dict[str, Any]) -> None:
    wires = ("columns", "rows") if None in user.values() else WIRES
    for number in USERS:
        request_id = f"request-{number}"
        wire = wires[number % len(wires)]
        assert version_of(client, user, wire=wire, request_id=request_id) == expected(request_id)
    assert choices(client) == {"user": 0, "request_id": len(USERS)}


def test_a_null_in_a_tensor_is_no_user(client: TestClient) -> None:
    tensors = [Given("user_id", "INT64", [None]), Given("video_id", "INT64", [3])]
    answer = client.post(INFER, json={"id": "r-1", "inputs": [tensor.as_json() for tensor in tensors]})
    assert answer.json()["model_version"] == expected("r-1")
    assert choices(client) == {"user": 0, "request_id": 1}


@pytest.mark.parametrize("value", [True, 1.5, [17], {"id": 17}, 2**63])
def test_a_user_that_is_none_is_refused_as_ever(client: TestClient, value: Any) -> None:
    answer = client.post("/v1/rank", json={"user": {"user_id": value}, "candidates": CANDIDATES})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == "user.user_id"
    tensor = {"name": "user_id", "datatype": "INT64", "shape": [1], "data": [value]}
    answer = client.post(INFER, json={"inputs": [tensor, Given("video_id", "INT64", [3]).as_json()]})
    assert answer.status_code == 400
    assert "user_id" in answer.json()["error"]


def test_what_names_a_version_is_not_chosen_for(client: TestClient) -> None:
    for version in ("1", "2", "stable", "canary"):
        client.post("/v1/rank", json={**TINY_REQUEST, "version": version})
    client.get("/v2/models/tiny")
    client.get("/v2/models/tiny/ready")
    assert choices(client) == {"user": 0, "request_id": 0}


def test_a_larger_share_keeps_those_who_are_in_it(models: Path) -> None:
    before: set[int] = set()
    for share in (0.0, 0.1, 0.35, 0.8, 1.0):
        put_labels(models, f"{{stable: 1, canary: {{version: 2, share: {share}}}}}")
        with client_of(models) as client:
            inside = {user for user in USERS if version_of(client, {"user_id": user}) == "2"}
        assert before <= inside
        assert abs(len(inside) - share * len(USERS)) <= 4 * math.sqrt(len(USERS) * share * (1 - share))
        before = inside
    assert before == set(USERS)


def test_users_keep_their_version_over_workers_and_restarts(models: Path) -> None:
    """By the rule as it is documented, in processes of their own."""
    for workers in ("2", "1"):
        with RunningService(models, "--workers", workers) as service:
            service.wait_ready()
            for user in USERS:
                # A connection for each request, so that both workers answer.
                headers = {"Connection": "close"}
                body = {"user": {"user_id": user}, "candidates": CANDIDATES}
                answer = service.client.post("/v1/rank", json=body, headers=headers).raise_for_status().json()
                assert answer["model_version"] == expected(str(user))


def test_the_next_canary_has_other_users(models: Path) -> None:
    """Else the same few would try every version."""
    users = [str(user) for user in range(20_000)]
    first = {user for user in users if bucket_of("tiny/2", user) < 3000}
    second = {user for user in users if bucket_of("tiny/3", user) < 3000}
    mean = 0.09 * len(users)
    assert abs(len(first & second) - mean) <= 4 * math.sqrt(mean * 0.91)
