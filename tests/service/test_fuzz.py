"""Any body that is posted is answered with scores or with a problem that names a place, never with a 5xx."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of

# Values near what is right find more than noise does: right names, wrong types, edges of int64 and of floats.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["de", "a", "default", "tiny", "1", "\u0000", "\ud83d\ude00", 2**63 - 1, -(2**63), 1e308])
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner))
USER_NAMES = st.sampled_from([*TINY_REQUEST["user"], "video_id", "position", "nobody"])
CANDIDATE_NAMES = st.sampled_from([*TINY_REQUEST["candidates"]["features"], "tab", "nobody"])
USER = st.dictionaries(USER_NAMES, SCALARS | st.lists(SCALARS, max_size=4), max_size=4)
IDS = st.lists(st.text(max_size=3), min_size=2, max_size=2)
COLUMN = st.lists(SCALARS | st.lists(SCALARS, max_size=3), min_size=2, max_size=2)
COLUMNS = st.fixed_dictionaries({"id": IDS, "features": st.dictionaries(CANDIDATE_NAMES, COLUMN | JSON, max_size=4)})
ROW = st.fixed_dictionaries(
    {"id": st.text(max_size=3) | SCALARS, "features": st.dictionaries(CANDIDATE_NAMES, SCALARS)}
)
BODIES = st.fixed_dictionaries(
    {"user": USER, "candidates": COLUMNS | st.lists(ROW, max_size=3) | JSON},
    optional=dict.fromkeys(("request_id", "model", "version", "value_model", "top_k", "explain", "surprise"), SCALARS),
)
# Bounded: some seconds in all. Examples share one service, so function-scoped state is none of hypothesis' concern.
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = tmp_path_factory.mktemp("models")
    publish_artifact(folder)
    with client_of(folder, max_body_bytes=5_000, max_candidates=20) as client:
        yield client


def _check(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/rank", content=body)
    assert response.status_code in (200, 400, 404, 413, 422), (body, response.text)
    content: dict[str, Any] = response.json()
    if response.status_code == 200:
        candidates = content["candidates"]
        scores = candidates["score"] if isinstance(candidates, dict) else [row["score"] for row in candidates]
        assert scores == sorted(scores, reverse=True)
        return
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == content["request_id"]
    if len(body) <= 5_000:
        assert all(fault["path"] and fault["message"] for fault in content["errors"])
        assert content["errors"]


@FUZZ
@given(body=BODIES)
def test_bodies_that_are_nearly_right(client: TestClient, body: dict[str, Any]) -> None:
    _check(client, json.dumps(body).encode())


@FUZZ
@given(body=JSON)
def test_any_json(client: TestClient, body: Any) -> None:
    _check(client, json.dumps(body).encode())


@FUZZ
@given(data=st.data())
def test_a_right_body_with_bytes_changed(client: TestClient, data: st.DataObject) -> None:
    body = bytearray(json.dumps(TINY_REQUEST).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(body) - 1))
        body[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    _check(client, bytes(body))


@FUZZ
@given(body=st.binary(max_size=200))
def test_any_bytes(client: TestClient, body: bytes) -> None:
    _check(client, body)
