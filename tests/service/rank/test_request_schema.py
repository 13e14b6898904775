"""The schema of a model's request says yes to what the service answers, and no to what it refuses, as far as it can."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.artifacts import TINY_REQUEST, TINY_SCHEMA, publish_artifact
from tests.items import tiny_items, write_items
from tests.service.in_process import client_of
from tests.service.state.stores import STATE, sqlite_url
from training.publish.catalogue import build_catalogue

ROUTE = "/v1/models/tiny/request-schema"
INT64 = range(-(2**63), 2**63)
MANY = {**TINY_REQUEST, "candidates": {"id": ["a"] * 21, "features": {}}}
ROWS = [
    {"id": name, "features": {key: values[row] for key, values in TINY_REQUEST["candidates"]["features"].items()}}
    for row, name in enumerate(TINY_REQUEST["candidates"]["id"])
]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([2**53 + 1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 10**40, 2.0, -1.5, 1e300])
    | st.sampled_from(["", "de", "7", "-3", "-0", "+3", "03", "3.0", " 3", "7\n", str(2**63 - 1), "x" * 300])
)
VALUES: st.SearchStrategy[Any] = SCALARS | st.lists(SCALARS, max_size=3) | st.just({})
FEATURES = [feature["name"] for feature in TINY_SCHEMA["features"]]
NAMES = st.sampled_from([*FEATURES, "video"])
OPTIONS = st.dictionaries(
    st.sampled_from(["request_id", "top_k", "explain", "strict", "model", "value_model", "politics"]),
    SCALARS | st.sampled_from(["tiny", "default", "r-1", "r\n"]),
    max_size=2,
)


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """The golden request with one or two things changed."""
    body: dict[str, Any] = json.loads(
        json.dumps({**TINY_REQUEST, "candidates": draw(st.sampled_from([TINY_REQUEST["candidates"], ROWS]))})
    )
    candidates = body["candidates"]
    features = candidates["features"] if isinstance(candidates, dict) else candidates[1]["features"]
    for _ in range(draw(st.integers(1, 2))):
        where = draw(st.sampled_from(["user", "features", "cell", "options", "candidates"]))
        name = draw(NAMES)
        if where == "user":
            body["user"][name] = draw(VALUES)
        elif (
            where == "cell" and isinstance(candidates, dict) and features.get(name) and isinstance(features[name], list)
        ):
            features[name][draw(st.integers(0, 3)) % len(features[name])] = draw(VALUES)
        elif where == "features":
            features[name] = draw(VALUES | st.lists(VALUES, min_size=4, max_size=4))
        elif where == "candidates":
            body["candidates"] = draw(
                VALUES | st.just({"id": ["a"]}) | st.lists(st.fixed_dictionaries({"id": SCALARS}))
            )
        else:
            body |= draw(OPTIONS)
    return body


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    publish_artifact(folder)
    with client_of(folder, max_candidates=20) as client:
        yield client


@pytest.fixture(scope="module")
def schema(client: TestClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get(ROUTE).json()
    return document


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema)


def is_beyond_words(body: Mapping[str, Any]) -> bool:
    """True for what docs/types.md says that a schema does not tell: integers written as fractions, strings of digits
    beyond 64 bits, columns of several lengths, names of value models."""
    if body.get("value_model") not in (None, "default"):
        return True
    candidates = body["candidates"]
    if isinstance(candidates, dict) and isinstance(candidates.get("id"), list):
        columns = [column for column in candidates.get("features", {}).values() if isinstance(column, list)]
        if {len(column) for column in columns} - {len(candidates["id"])}:
            return True
    scalars = list(leaves(body))
    return any(
        (isinstance(value, float) and value.is_integer())
        or (isinstance(value, str) and value.lstrip("-").isdecimal() and int(value) not in INT64)
        for value in scalars
    )


def leaves(value: Any) -> Iterator[Any]:
    """Scalars of a JSON value."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


@settings(max_examples=500)
@given(bodies())
def test_what_the_service_answers_is_valid_and_what_it_refuses_is_not(
    client: TestClient, validator: jsonschema_rs.Draft202012Validator, body: dict[str, Any]
) -> None:
    answer = client.post("/v1/rank", json=body)
    if answer.status_code == 200:
        assert validator.is_valid(body), list(validator.iter_errors(body))
    else:
        # Too many candidates are 413, another model 404.
        assert answer.status_code in (404, 413, 422)
        assert is_beyond_words(body) or not validator.is_valid(body), answer.text


def test_golden_requests_are_valid_in_both_shapes(
    schema: dict[str, Any], validator: jsonschema_rs.Draft202012Validator
) -> None:
    jsonschema_rs.meta.validate(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["examples"] == [{"model": "tiny", **TINY_REQUEST}]
    for body in (TINY_REQUEST, {**TINY_REQUEST, "candidates": ROWS}, schema["examples"][0]):
        assert validator.is_valid(body)
    assert not validator.is_valid(MANY)  # of 21 where 20 may come
    assert not validator.is_valid({**TINY_REQUEST, "model": "other"})


def test_values_are_described_by_what_the_version_saw(schema: dict[str, Any]) -> None:
    user, features = (schema["$defs"][name]["properties"] for name in ("User", "Features"))
    # By hand: of the golden request's rows, which the reference is made of. The third of four durations is missing: 0.
    assert "at least 80 % of the rows at export had 0 to 31,000" in features["duration_ms"]["description"]
    assert "Null is 0" in features["duration_ms"]["description"]
    assert "at export had 12.5" in user["age_days"]["description"]
    assert "known ids: de, fr" in user["country"]["description"]
    assert "the latest 3 are kept" in user["history"]["description"]
    assert "position" not in user | features  # it is training_only


def test_a_version_and_an_etag(client: TestClient) -> None:
    plain = client.get(ROUTE)
    assert plain.headers["content-type"] == "application/schema+json"
    tag = plain.headers["etag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}"):
        same = client.get(ROUTE, headers={"If-None-Match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert client.get(ROUTE, headers={"If-None-Match": '"other"'}).status_code == 200
    for version in ("1", "stable"):
        named = client.get(ROUTE, params={"version": version})
        assert named.json()["examples"][0]["version"] == version
        assert named.json()["$defs"] == plain.json()["$defs"]
        assert client.post("/v1/rank", json=named.json()["examples"][0]).status_code == 200
    for missing in (f"{ROUTE}?version=9", "/v1/models/nobody/request-schema"):
        refused = client.get(missing)
        assert (refused.status_code, refused.headers["content-type"]) == (404, "application/problem+json")


def test_a_key_of_the_state_store_and_a_catalogue_widen_the_request(tmp_path: Path) -> None:
    keyed = STATE.replace("key: user_id", "key: visitor")
    version = publish_artifact(tmp_path / "models")
    build_catalogue(version, write_items(tmp_path / "items.parquet", tiny_items(5)))
    (tmp_path / "models" / "tiny" / "state.yaml").write_text(keyed)
    with client_of(tmp_path / "models", state=sqlite_url(tmp_path / "state.db")) as client:
        validator = jsonschema_rs.Draft202012Validator(client.get(ROUTE).json())
        ids = ["item-0", "item-1"]
        for key in ("u-1", 17, None, "", "x" * 300, [1], True):
            body = {"user": {"visitor": key}, "candidates": {"id": ids}}
            answer = client.post("/v1/rank", json=body)
            assert validator.is_valid(body) == (answer.status_code == 200), (key, answer.text)
        body = {"user": {}, "candidates": [{"id": name} for name in ids]}
        assert validator.is_valid(body)
        assert client.post("/v1/rank", json=body).status_code == 200
