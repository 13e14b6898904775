"""Requests under /v2 that are wrong: each is refused in the protocol's form, naming the tensor."""

import json
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service import app
from service.open_inference import infer as open_inference
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of, sample
from tests.service.open_inference.tensors import HEADER_LENGTH, INFER, Given, binary_body, tensors_of

LIMIT = 20_000
RIGHT = [tensor.as_json() for tensor in tensors_of(TINY_REQUEST)]
TWO = Given("video_id", "INT64", [3, 9])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = tmp_path_factory.mktemp("models")
    publish_artifact(folder)
    with client_of(folder, max_candidates=50, max_body_bytes=LIMIT) as client:
        yield client


def error(response: Any, status: int) -> str:
    """Checks that a response is the protocol's error and returns its text."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    content: dict[str, str] = response.json()
    assert list(content) == ["error"]
    assert content["error"]
    return content["error"]


def tensor(name: str, datatype: Any, shape: Any, data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def with_tensor(name: str, datatype: str, shape: Any, data: Any) -> list[dict[str, Any]]:
    """Two candidates, and one tensor more."""
    return [TWO.as_json(), tensor(name, datatype, shape, data)]


WRONG_INPUTS = [
    ([], "inputs: no candidates"),
    ([tensor("user_id", "INT64", [1], [3])], "inputs: no candidates"),
    ([tensor("video_id", "INT64", [0], [])], "inputs.video_id: expected a shape of one dimension, one candidate"),
    ([tensor("video_id", "INT64", [2, 1], [1, 2])], "inputs.video_id: expected a shape of one dimension"),
    ([tensor("video_id", "INT64", [], [])], "inputs.video_id: expected a shape of one dimension"),
    ([tensor("video_id", "INT64", [-1], [])], "inputs.video_id: expected a shape"),
    ([tensor("video_id", "INT64", [3], [1, 2])], "inputs.video_id: its shape [3] does not fit its 2 values"),
    ([tensor("video_id", "INT64", [2.5], [1, 2])], "inputs[0].shape[0]: expected an integer, got a fraction"),
    ([tensor("video_id", "INT64", "2", [1, 2])], "inputs[0].shape: expected a list, got a string"),
    ([tensor("video_id", 64, [2], [1, 2])], "inputs[0].datatype: expected a string, got an integer"),
    ([tensor("video_id", "INT64", [2], 7)], "inputs[0].data: expected a list, got an integer"),
    ([tensor("video_id", "INT32", [2], [1, 2])], "inputs.video_id: expected datatype INT64, got INT32"),
    ([tensor("video_id", "INT64", [2], [[1], [2]])], "inputs.video_id[0]: expected an integer of INT64"),
    ([tensor("video_id", "INT64", [2], [1, True])], "inputs.video_id[1]: expected an integer"),
    ([tensor("video_id", "INT64", [2], [1, 2**63])], "inputs.video_id[1]: expected an integer"),
    ([tensor("video_id", "INT64", [2], [1, 1.5])], "inputs.video_id[1]: expected an integer"),
    ([tensor("video_id", "INT64", [2], [1, "2"])], "inputs.video_id[1]: expected an integer of INT64 or null"),
    ([TWO.as_json(), TWO.as_json()], "inputs.video_id: given more than once"),
    ([TWO.claim()], "inputs.video_id: has no values"),
    (
        with_tensor("video", "INT64", [2], [1, 2]),
        "inputs.video: the model has no such tensor; did you mean 'video_id'?",
    ),
    (with_tensor("position", "FP32", [1], [1]), "inputs.position: the model has no such tensor"),
    (with_tensor("topics", "INT64", [2], [1, 2]), "inputs.topics: the model has no such tensor"),
    (with_tensor("tag", "BYTES", [2], ["a", 7]), "inputs.tag[1]: expected a string"),
    (with_tensor("tag", "BYTES", [3], ["a", "b", "c"]), "inputs.tag: expected shape [2]"),
    (with_tensor("country", "BYTES", [2], ["de", "fr"]), "inputs.country: expected shape [1]"),
    (with_tensor("duration_ms", "FP32", [2], [1, "4"]), "inputs.duration_ms[1]: expected a finite number"),
    (with_tensor("duration_ms", "FP32", [2], [1, 1e39]), "inputs.duration_ms[1]: expected a finite number of FP32"),
    (with_tensor("duration_ms", "INT64", [2], [1, 2]), "inputs.duration_ms: expected datatype FP32 or FP64, got INT64"),
    (with_tensor("topics.values", "INT64", [1], [7]), "inputs.topics.lengths: missing: topics.values and topics.len"),
    (with_tensor("history.lengths", "INT64", [1], [0]), "inputs.history.values: missing"),
]
WRONG_LISTS: list[tuple[list[Any], list[Any], str]] = [
    ([7, 8], [1, 0], "topics.lengths: expected lengths of 0 or more whose sum is the number of values, 2"),
    ([7, 8], [3, -1], "topics.lengths: expected lengths of 0 or more"),
    ([7, 8], [2**62, 2**62], "topics.lengths: expected lengths of 0 or more"),
    ([7, 8], [1, 1.0], "topics.lengths: expected integers"),
    ([7, 8], [1, 2**64], "topics.lengths: expected integers"),
    ([7, 8], [1, None], "topics.lengths: expected integers"),
    ([7, 8], [1, 1, 0], "topics.lengths: expected shape [2]"),
    ([7, "8"], [1, 1], "topics.values[1]: expected an integer"),
]
WRONG_INPUTS += [
    (
        [TWO.as_json(), Given("topics.values", "INT64", ids).as_json(), Given("topics.lengths", "INT64", n).as_json()],
        f"inputs.{said}",
    )
    for ids, n, said in WRONG_LISTS
]


@pytest.mark.parametrize(("inputs", "said"), WRONG_INPUTS, ids=[said for _, said in WRONG_INPUTS])
def test_a_wrong_tensor_is_named(client: TestClient, inputs: Any, said: str) -> None:
    assert said in error(client.post(INFER, json={"inputs": inputs}), 400)


WRONG_KEYS = [
    ({"inputs": 3}, "inputs: expected a list, got an integer"),
    ({}, "inputs: expected a list, got nothing"),
    ([], "expected an object, got a list"),
    ({"inputs": RIGHT, "id": 7}, "id: expected a string, got an integer"),
    ({"inputs": RIGHT, "parameters": []}, "parameters: expected an object, got a list"),
    ({"inputs": RIGHT, "parameters": {"value_model": 3}}, "parameters.value_model: expected a string"),
    ({"inputs": RIGHT, "parameters": {"value_model": "nope"}}, "parameters.value_model: no such value model"),
    ({"inputs": RIGHT, "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output: expected true"),
    ({"inputs": RIGHT, "outputs": [{"name": "clicks"}]}, "outputs.clicks: the model has no such tensor; did you mean"),
    ({"inputs": RIGHT, "outputs": [{"name": "click"}] * 2}, "outputs.click: asked for more than once"),
    ({"inputs": RIGHT, "outputs": [{"name": "click", "parameters": {"binary_data": "yes"}}]}, "outputs.click.binary"),
    (
        {"inputs": RIGHT, "outputs": [{"name": "click", "parameters": {"classification": 2}}]},
        "outputs.click: classification is not supported",
    ),
    (
        {"inputs": [{**TWO.claim(), "parameters": {"shared_memory_region": "r"}}]},
        "inputs.video_id: shared_memory_region is not supported",
    ),
]


@pytest.mark.parametrize(("body", "said"), WRONG_KEYS, ids=[said for _, said in WRONG_KEYS])
def test_a_wrong_request_is_named_by_its_key(client: TestClient, body: Any, said: str) -> None:
    assert said in error(client.post(INFER, json=body), 400)


def test_every_wrong_tensor_is_named_at_once(client: TestClient) -> None:
    inputs = [TWO.as_json(), tensor("user_id", "INT64", [1], ["x"]), tensor("tag", "BYTES", [1], ["x"])]
    said = error(client.post(INFER, json={"inputs": inputs}), 400)
    assert "inputs.user_id[0]" in said
    assert "inputs.tag" in said


WRONG_BYTES = [
    ("INT64", [2], struct.pack("<q", 3), "video_id: its shape [2] does not fit its 8 bytes, 8 for each value"),
    ("INT64", [2**62], struct.pack("<2q", 3, 9), "video_id"),
    ("BYTES", [2], b"\x04\0\0\0abcd", "tag: its bytes end before the length of value 1"),
    ("BYTES", [2], b"\x01\0\0\0a\x05\0\0\0b", "tag: its bytes end within value 1"),
    ("BYTES", [2], b"\xff\xff\xff\xffa\0\0\0\0", "tag: its bytes end within value 0"),
    ("BYTES", [2], b"\0\0\0\0\0\0\0\0\0", "tag: 1 bytes come after the last value"),
    ("BYTES", [2], b"\x01\0\0\0\xff\0\0\0\0", "tag[0]: expected UTF-8"),
    ("BYTES", [2], b"\x03\0\0\0\xed\xa0\x80\0\0\0\0", "tag[0]: expected UTF-8"),  # half of a surrogate pair
    ("BYTES", [2], b"", "tag: its shape [2] does not fit its 0 bytes"),
    ("FP32", [2], struct.pack("<2f", 1, float("nan")), "duration_ms[1]: expected a finite number of FP32"),
    ("FP64", [2], struct.pack("<2d", float("-inf"), 1), "duration_ms[0]: expected a finite number of FP64"),
]
NAMES = {"INT64": "video_id", "BYTES": "tag", "FP32": "duration_ms", "FP64": "duration_ms"}


@pytest.mark.parametrize(("datatype", "shape", "raw", "said"), WRONG_BYTES, ids=[said for *_, said in WRONG_BYTES])
def test_wrong_bytes_are_refused(client: TestClient, datatype: str, shape: list[int], raw: bytes, said: str) -> None:
    one = {"name": NAMES[datatype], "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    inputs = [one] if datatype == "INT64" else [TWO.as_json(), one]
    text = json.dumps({"inputs": inputs}).encode()
    response = client.post(INFER, content=text + raw, headers={HEADER_LENGTH: str(len(text))})
    assert f"inputs.{said}" in error(response, 413 if shape[0] > 50 else 400)


@pytest.mark.parametrize("given", ["-1", "x", "1.5", "999999999999999999999", "", "²", "100000", "+5"])
def test_a_header_length_that_cannot_be_is_refused(client: TestClient, given: str) -> None:
    body, _ = binary_body([TWO])
    response = client.post(INFER, content=body, headers={HEADER_LENGTH: given.encode()})
    assert f"header {HEADER_LENGTH}" in error(response, 400)


@pytest.mark.parametrize("size", [-1, 15, 17, 2**70, 1.5, True, "16", [16]])
def test_a_binary_size_that_cannot_be_is_refused(client: TestClient, size: Any) -> None:
    text = json.dumps({"inputs": [{**TWO.claim(), "parameters": {"binary_data_size": size}}]}).encode()
    response = client.post(INFER, content=text + TWO.as_bytes(), headers={HEADER_LENGTH: str(len(text))})
    assert "inputs" in error(response, 400)


def test_bytes_that_nothing_claims_and_bytes_without_the_header_are_refused(client: TestClient) -> None:
    body, headers = binary_body([TWO])
    assert "1 bytes after the JSON belong to no input" in error(
        client.post(INFER, content=body + b"x", headers=headers), 400
    )
    assert "not JSON" in error(client.post(INFER, content=body), 400)
    text = body[: int(headers[HEADER_LENGTH])]
    assert HEADER_LENGTH in error(client.post(INFER, content=text), 400)
    both = json.dumps({"inputs": [{**TWO.as_json(), "parameters": {"binary_data_size": 16}}]}).encode()
    response = client.post(INFER, content=both + TWO.as_bytes(), headers={HEADER_LENGTH: str(len(both))})
    assert "has both" in error(response, 400)


def test_limits_are_413(client: TestClient) -> None:
    rejected = sample(client, "ranking_requests_rejected_total", reason="too_many_candidates")
    body, headers = binary_body([Given("video_id", "INT64", range(51))])
    assert "inputs.video_id: more than 50 candidates" in error(client.post(INFER, content=body, headers=headers), 413)
    assert sample(client, "ranking_requests_rejected_total", reason="too_many_candidates") == rejected + 1
    assert "limit" in error(client.post(INFER, content=b" " * (LIMIT + 1)), 413)


@pytest.mark.parametrize("values", [2**40, 2**60])
@pytest.mark.parametrize("datatype", ["INT64", "BYTES"])
def test_nothing_is_allocated_for_a_claim(client: TestClient, values: int, datatype: str) -> None:
    name = {"INT64": "history", "BYTES": "tag"}[datatype]
    claimed = {"name": name, "datatype": datatype, "shape": [values], "parameters": {"binary_data_size": 8}}
    inputs = [claimed, tensor("video_id", "INT64", [1], [3])]
    if datatype == "INT64":
        claimed["name"] = "history.values"
        inputs.append(tensor("history.lengths", "INT64", [1], [values]))
    text = json.dumps({"inputs": inputs}).encode()
    tracemalloc.start()
    said = error(client.post(INFER, content=text + bytes(8), headers={HEADER_LENGTH: str(len(text))}), 400)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert f"inputs.{claimed['name']}" in said
    assert peak < 10_000_000  # bytes. The claim is of a million times as many


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/models/nope/ready", 404),
        ("GET", "/v2/models/tiny/versions/9", 404),
        ("GET", "/v2/models/tiny/versions/9/ready", 404),
        ("POST", "/v2/models/tiny/versions/9/infer", 404),
        ("POST", "/v2/models/nope/infer", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/models/tiny", 405),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/tiny/config", 404),
    ],
)
def test_other_refusals_are_in_the_protocol_s_form(client: TestClient, method: str, path: str, status: int) -> None:
    error(client.request(method, path, json={"inputs": RIGHT} if method == "POST" else None), status)


def test_without_a_model_nothing_is_ready(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert error(client.get("/v2/health/ready"), 503)
        assert error(client.get("/v2/models/tiny/ready"), 404)


def test_a_deadline_that_passes_while_the_request_is_read_spares_the_model(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_read(*arguments: Any) -> Any:
        deadline = time.perf_counter() + 0.02
        while time.perf_counter() < deadline:
            pass
        return read(*arguments)

    read = open_inference.read
    monkeypatch.setattr("service.open_inference.routes.read", slow_read)
    before = sample(client, "ranking_inference_duration_seconds_count")
    error(client.post(INFER, json={"inputs": RIGHT}, headers={"X-Request-Timeout-Ms": "10"}), 504)
    assert sample(client, "ranking_inference_duration_seconds_count") == before
    assert "X-Request-Timeout-Ms" in error(
        client.post(INFER, json={"inputs": RIGHT}, headers={"X-Request-Timeout-Ms": "soon"}), 400
    )


def test_a_draining_service_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services: list[app.Service] = []

    class Collected(app.Service):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            services.append(self)

    monkeypatch.setattr(app, "Service", Collected)
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        services[0].is_draining = True
        for response in (client.get("/v2/health/ready"), client.get("/v2/models/tiny/ready"), client.post(INFER)):
            assert "shutting down" in error(response, 503)
            assert response.headers["retry-after"] == "1"
        assert client.get("/v2/health/live").status_code == 200


HOSTILE: dict[str, Any] = {
    "unknown inputs": [tensor(f"k{n}", "INT64", [1], [1]) for n in range(60_000)],
    "the same input": [TWO.as_json()] * 50_000,
    "many dimensions": [tensor("video_id", "INT64", [1] * 1_500_000, [1])],
    "a long name": [tensor("v" * 4_000_000, "INT64", [1], [1])],
    "a long datatype": [tensor("video_id", "I" * 4_000_000, [1], [1])],
    "one wrong id at the end of a long list": [
        TWO.as_json(),
        tensor("history.values", "INT64", [1_900_001], [1] * 1_900_000 + ["x"]),
        tensor("history.lengths", "INT64", [1], [1_900_001]),
    ],
}


@pytest.mark.parametrize("inputs", HOSTILE.values(), ids=HOSTILE)
def test_the_largest_bodies_are_refused_without_much_work(tmp_path: Path, inputs: Any) -> None:
    publish_artifact(tmp_path)
    content = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
    assert len(content) < 4 * 1024 * 1024  # so the default limits let it in
    with client_of(tmp_path) as client:
        before = time.process_time()
        said = error(client.post(INFER, content=content), 400)
        # CPU time, so a busy machine changes little. Some 0.3 s now.
        assert time.process_time() - before < 3
        assert len(said) < 5_000
