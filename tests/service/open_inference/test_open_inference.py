"""/v2: the answers are those of /v1/rank, whichever way the tensors come and go."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from model.features.encoder import Column, FeatureEncoder
from model.features.kinds import NumberFeature
from model.scorer.scorer import Scorer
from service.open_inference.infer import read, read_features
from service.open_inference.plan import TensorPlan
from tests.artifacts import TINY_REQUEST, TINY_SCHEMA, publish_artifact
from tests.service.in_process import client_of, sample
from tests.service.open_inference.tensors import HEADER_LENGTH, INFER, Given, binary_body, infer, outputs_of, tensors_of
from tests.service.rank.test_openapi import conforms

TASKS = ("click", "like", "play_time")
WEIGHTS = {"default": {"click": 1.0, "like": -2.5, "play_time": 0.25}, "likes": {"like": 1.0}}
# An answer is FP32, 6e-8 of its size. The model's own arithmetic is the same for the same values.
TOLERANCE = 1e-6
# Without nulls, which only JSON can hold.
WHOLE: dict[str, Any] = {
    "user": TINY_REQUEST["user"],
    "candidates": {
        "id": list("abcd"),
        "features": {
            "video_id": [3, 2**63 - 1, -(2**63), -4],
            "tag": ["x", "", "ünï☃", "a longer tag \x00 with a zero"],
            "topics": [[7], [], [8, 9, 1000, 7, 7], [9]],
            "duration_ms": [8000.0, 31000.5, 0.0, -3.0],
        },
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    publish_artifact(folder)
    value_models = {name: {"kind": "weighted_sum", "weights": weights} for name, weights in WEIGHTS.items()}
    (folder / "tiny" / "value_models.yaml").write_text(yaml.safe_dump(value_models))
    return folder


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[TestClient]:
    with client_of(models) as client:
        yield client


@pytest.fixture(scope="module")
def encoder(models: Path) -> FeatureEncoder:
    return Scorer.load(models / "tiny" / "1").encoder


def ranked(client: TestClient, request: dict[str, Any]) -> dict[str, np.ndarray]:
    """Answers of /v1/rank, put back into request order."""
    response = client.post("/v1/rank", json=request)
    assert response.status_code == 200, response.text
    candidates = response.json()["candidates"]
    order = [candidates["id"].index(identifier) for identifier in request["candidates"]["id"]]
    columns = {**candidates["tasks"], "score": candidates["score"]}
    return {name: np.array(values)[order] for name, values in columns.items()}


def post_binary(client: TestClient, tensors: list[Given], **keys: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The answer to tensors in bytes: its JSON, and its tensors."""
    body, headers = binary_body(tensors, **keys)
    response = client.post(INFER, content=body, headers=headers)
    assert response.status_code == 200, response.text
    size = int(response.headers.get(HEADER_LENGTH, len(response.content)))
    answer = json.loads(response.content[:size])
    return answer, outputs_of(answer, response.content[size:])


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(got) == [*TASKS, "score"]
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=TOLERANCE, atol=TOLERANCE)


def test_scores_are_those_of_rank_in_json_and_in_bytes(client: TestClient) -> None:
    expected = ranked(client, WHOLE)
    assert len(np.unique(expected["score"])) == 4  # else the order of the answer would not be seen
    tensors = tensors_of(WHOLE)
    assert_same(outputs_of(infer(client, tensors)), expected)
    for in_bytes in (False, True):
        answer, got = post_binary(client, tensors, parameters={"binary_data_output": in_bytes})
        assert all(("data" in output) != in_bytes for output in answer["outputs"])
        assert_same(got, expected)


def test_a_null_in_json_is_a_missing_value_as_in_rank(client: TestClient) -> None:
    assert_same(outputs_of(infer(client, tensors_of(TINY_REQUEST))), ranked(client, TINY_REQUEST))


def test_inputs_left_out_take_their_defaults(client: TestClient) -> None:
    few = {"user": {"tab": 1}, "candidates": {"id": ["a", "b"], "features": {"topics": [[7, 8], [9]]}}}
    assert_same(outputs_of(infer(client, tensors_of(few))), ranked(client, few))


@settings(max_examples=20)
@given(data=st.data())
def test_any_request_has_the_same_scores_three_ways(client: TestClient, data: st.DataObject) -> None:
    ids = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9)
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
    texts = st.text(max_size=5)

    def values(feature: dict[str, Any]) -> st.SearchStrategy[Any]:
        one = {"number": numbers}.get(feature["kind"], texts if feature.get("dtype") == "string" else ids)
        return st.lists(one, max_size=5) if feature["kind"] == "id_list" else one

    rows = data.draw(st.integers(1, 5))
    user: dict[str, Any] = {}
    features: dict[str, Any] = {}
    for feature in TINY_SCHEMA["features"]:
        if feature["side"] in ("user", "context"):
            user[feature["name"]] = data.draw(values(feature))
        elif feature["side"] == "candidate":
            features[feature["name"]] = data.draw(st.lists(values(feature), min_size=rows, max_size=rows))
    request = {"user": user, "candidates": {"id": [str(row) for row in range(rows)], "features": features}}
    expected, tensors = ranked(client, request), tensors_of(request)
    assert_same(outputs_of(infer(client, tensors)), expected)
    assert_same(post_binary(client, tensors, parameters={"binary_data_output": True})[1], expected)


def test_json_and_bytes_may_be_mixed_and_bytes_follow_the_order_of_their_inputs(client: TestClient) -> None:
    tensors = tensors_of(WHOLE)
    entries, parts = [], []
    for number, tensor in enumerate(tensors):
        if number % 2:
            entries.append(tensor.as_json())
        else:
            parts.append(tensor.as_bytes())
            entries.append({**tensor.claim(), "parameters": {"binary_data_size": len(parts[-1])}})
    text = json.dumps({"inputs": entries}).encode()
    response = client.post(INFER, content=b"".join([text, *parts]), headers={HEADER_LENGTH: str(len(text))})
    assert_same(outputs_of(response.json()), ranked(client, WHOLE))


@pytest.mark.parametrize("in_bytes", [False, True])
def test_a_number_is_of_the_type_it_is_said_to_be_however_it_is_sent(encoder: FeatureEncoder, in_bytes: bool) -> None:
    # 2^24 + 1 is the first integer that FP32 does not have.
    for datatype, expected in (("FP32", 2.0**24), ("FP64", 2.0**24 + 1)):
        tensor = Given("duration_ms", datatype, [2**24 + 1])
        body, headers = binary_body([tensor])
        if in_bytes:
            inference = read(body, headers[HEADER_LENGTH])
        else:
            inference = read(json.dumps({"inputs": [tensor.as_json()]}).encode(), None)
        (_, columns, rows, *_), _ = read_features(inference, encoder, TensorPlan(encoder), 10)
        assert rows == 1
        assert list(columns["duration_ms"].values) == [expected]


@pytest.mark.parametrize("in_bytes", [False, True])
def test_a_kind_without_a_fast_path_reads_its_own_values_however_they_are_sent(
    encoder: FeatureEncoder, in_bytes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def negated(self: NumberFeature, values: list[float], dtype: None) -> Column:
        return Column(-np.array(values))

    monkeypatch.setattr(NumberFeature, "has_fast_path", False)
    monkeypatch.setattr(NumberFeature, "column", negated)
    tensor = Given("duration_ms", "FP32", [0.5, 2.0])
    body, headers = binary_body([tensor])
    if not in_bytes:
        body, headers = json.dumps({"inputs": [tensor.as_json()]}).encode(), {}
    inference = read(body, headers.get(HEADER_LENGTH))
    (_, columns, *_), _ = read_features(inference, encoder, TensorPlan(encoder), 10)
    assert list(columns["duration_ms"].values) == [-0.5, -2.0]


def test_outputs_are_those_asked_for_in_their_order_each_in_its_form(client: TestClient) -> None:
    asked = [{"name": "score", "parameters": {"binary_data": True}}, {"name": "like"}]
    expected = ranked(client, WHOLE)
    body, headers = binary_body(tensors_of(WHOLE), outputs=asked)
    response = client.post(INFER, content=body, headers=headers)
    assert response.headers["content-type"] == "application/octet-stream"
    size = int(response.headers[HEADER_LENGTH])
    answer = json.loads(response.content[:size])
    got = outputs_of(answer, response.content[size:])
    assert list(got) == ["score", "like"]
    assert ["data" in output for output in answer["outputs"]] == [False, True]
    for name, values in got.items():
        np.testing.assert_allclose(values, expected[name], rtol=TOLERANCE)
    # what an output says of itself comes before what the request says of all
    answer, _ = post_binary(
        client,
        tensors_of(WHOLE),
        parameters={"binary_data_output": True},
        outputs=[{"name": "click", "parameters": {"binary_data": False}}, {"name": "like"}],
    )
    assert ["data" in output for output in answer["outputs"]] == [True, False]


def test_the_value_model_is_a_parameter_and_others_are_passed_over(client: TestClient) -> None:
    parameters = {"value_model": "likes", "priority": 3, "content_type": "np"}
    answer = infer(client, tensors_of(WHOLE), parameters=parameters)
    expected = client.post("/v1/rank", json={**WHOLE, "value_model": "likes"}).json()
    assert answer["parameters"] == {key: expected[key] for key in ("value_model", "value_model_version")}
    assert answer["model_name"] == "tiny"
    assert answer["model_version"] == "1"
    got = outputs_of(answer)
    np.testing.assert_array_equal(got["score"], got["like"])


def test_a_null_is_as_good_as_a_key_left_out(client: TestClient) -> None:
    inputs = [{**tensor.as_json(), "parameters": {"binary_data_size": None}} for tensor in tensors_of(WHOLE)]
    nulls: dict[str, Any] = {"parameters": {"binary_data_output": None, "value_model": None}, "id": None}
    outputs = [{"name": name, "parameters": {"binary_data": None}} for name in (*TASKS, "score")]
    bodies: list[dict[str, Any]] = [{**nulls, "outputs": None}, {**nulls, "outputs": outputs}, {"outputs": []}]
    for body in bodies:
        response = client.post(INFER, json={**body, "inputs": inputs})
        assert_same(outputs_of(response.json()), ranked(client, WHOLE))


@pytest.mark.parametrize("identifier", ["42", "é\n", "", "x" * 500])
def test_the_id_is_echoed(client: TestClient, identifier: str) -> None:
    assert infer(client, tensors_of(WHOLE), id=identifier)["id"] == identifier


def test_an_id_that_can_stand_in_a_header_is_the_request_s(client: TestClient) -> None:
    body = {"id": "r-42", "inputs": [tensor.as_json() for tensor in tensors_of(WHOLE)]}
    assert client.post(INFER, json=body).headers["x-request-id"] == "r-42"
    response = client.post(INFER, json={**body, "id": None}, headers={"X-Request-Id": "h-1"})
    assert response.headers["x-request-id"] == "h-1"
    assert "id" not in response.json()


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies_are_read(client: TestClient, encoding: str, compress: Any) -> None:
    body, headers = binary_body(tensors_of(WHOLE))
    response = client.post(INFER, content=compress(body), headers={**headers, "Content-Encoding": encoding})
    assert_same(outputs_of(response.json()), ranked(client, WHOLE))


def test_health_and_metadata(client: TestClient) -> None:
    assert client.get("/v2").json()["name"] == "feedrank"
    assert "binary_tensor_data" in client.get("/v2").json()["extensions"]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/1/ready"):
        assert client.get(path).status_code == 200
    metadata = client.get("/v2/models/tiny").json()
    assert client.get("/v2/models/tiny/versions/1").json() == metadata
    assert metadata["name"] == "tiny"
    assert metadata["versions"] == ["1"]
    assert metadata["platform"] == "pytorch_torchscript"
    *scores, place = metadata["outputs"]
    assert scores == [{"name": name, "datatype": "FP32", "shape": [-1]} for name in (*TASKS, "score")]
    assert place == {"name": "place", "datatype": "INT64", "shape": [-1], "parameters": {"on_request": True}}
    inputs = {entry["name"]: (entry["datatype"], entry["shape"]) for entry in metadata["inputs"]}
    assert inputs == {
        "user_id": ("INT64", [1]),
        "country": ("BYTES", [1]),
        "history.values": ("INT64", [-1]),
        "history.lengths": ("INT64", [1]),
        "age_days": ("FP32", [1]),
        "tab": ("INT64", [1]),
        "video_id": ("INT64", [-1]),
        "tag": ("BYTES", [-1]),
        "topics.values": ("INT64", [-1]),
        "topics.lengths": ("INT64", [-1]),
        "duration_ms": ("FP32", [-1]),
    }


def test_requests_are_counted_under_their_own_endpoint(client: TestClient) -> None:
    def count(code: str) -> float:
        return sample(client, "ranking_requests_total", endpoint="/v2/models/{name}/infer", code=code)

    before = count("200"), count("400"), sample(client, "ranking_candidates_per_request_sum")
    infer(client, tensors_of(WHOLE), path="/v2/models/tiny/versions/1/infer")
    assert client.post(INFER, json={"inputs": []}).status_code == 400
    after = count("200"), count("400"), sample(client, "ranking_candidates_per_request_sum")
    assert [new - old for old, new in zip(before, after, strict=True)] == [1, 1, 4]
    assert sample(client, "ranking_requests_in_flight") == 0


def test_the_routes_are_described_by_what_they_take_and_answer(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        operation = document["paths"][path]["post"]
        asked = operation["requestBody"]["content"]["application/json"]
        answered = operation["responses"]["200"]["content"]["application/json"]
        assert conforms(asked["example"], asked["schema"], document)
        assert conforms(answered["example"], answered["schema"], document)
        body = {"inputs": [tensor.as_json() for tensor in tensors_of(WHOLE)], "outputs": [{"name": "like"}]}
        assert conforms(body, asked["schema"], document)
        assert conforms(client.post(INFER, json=body).json(), answered["schema"], document)
        refused = client.post(INFER, json={})
        problem = operation["responses"][str(refused.status_code)]["content"][refused.headers["content-type"]]
        assert conforms(refused.json(), problem["schema"], document)
