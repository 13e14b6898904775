"""Any body that is posted to /v2 is answered with scores or the protocol's error, never a 5xx."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of
from tests.service.open_inference.tensors import HEADER_LENGTH, INFER, binary_body, tensors_of

RIGHT = [tensor.as_json() for tensor in tensors_of(TINY_REQUEST)]
# Bounded: some seconds in all.
FUZZ = settings(max_examples=100)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner))
NAME = st.sampled_from([one["name"] for one in RIGHT] + ["topics", "position", "nobody", "score", "click"])
DATATYPE = st.sampled_from(["INT64", "BYTES", "FP32", "FP64", "INT32", ""])
PARAMETERS = st.none() | st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "value_model"]),
    st.sampled_from([0, 4, 8, 16, 24, 32, -8, 2**65, True, "default", None]) | SCALARS,
    max_size=2,
)
TENSOR = st.fixed_dictionaries(
    {"name": NAME, "datatype": DATATYPE, "shape": st.lists(st.integers(0, 4), min_size=1, max_size=1) | JSON},
    optional={"data": st.lists(SCALARS, max_size=4) | JSON, "parameters": PARAMETERS},
)
BODIES = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR | st.sampled_from(RIGHT), max_size=6)},
    optional={
        "id": SCALARS,
        "parameters": PARAMETERS,
        "outputs": st.lists(st.fixed_dictionaries({"name": NAME}, optional={"parameters": PARAMETERS}), max_size=3),
    },
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = tmp_path_factory.mktemp("models")
    publish_artifact(folder)
    with client_of(folder, max_candidates=50) as client:
        yield client


def check(client: TestClient, content: bytes, headers: dict[str, str]) -> None:
    response = client.post(INFER, content=content, headers=headers)
    if response.status_code != 200:
        assert response.status_code in (400, 413), (content, response.text)
        assert list(response.json()) == ["error"]


@FUZZ
@given(body=BODIES, binary=st.binary(max_size=64), has_header=st.booleans())
def test_bodies_that_are_nearly_right(
    client: TestClient, body: dict[str, Any], binary: bytes, has_header: bool
) -> None:
    text = json.dumps(body).encode()
    check(client, text + binary, {HEADER_LENGTH: str(len(text))} if has_header else {})


@FUZZ
@given(body=JSON)
def test_any_json(client: TestClient, body: Any) -> None:
    check(client, json.dumps(body).encode(), {})


@FUZZ
@given(data=st.data())
def test_a_right_body_with_bytes_changed(client: TestClient, data: st.DataObject) -> None:
    tensors = tensors_of({"user": TINY_REQUEST["user"], "candidates": {"features": {"tag": ["x"], "video_id": [1]}}})
    body, headers = binary_body(tensors, parameters={"binary_data_output": True})
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(changed) - 1))
        changed[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    check(client, bytes(changed), headers)


@FUZZ
@given(body=st.binary(max_size=200), length=st.none() | st.integers(0, 200))
def test_any_bytes(client: TestClient, body: bytes, length: int | None) -> None:
    check(client, body, {} if length is None else {HEADER_LENGTH: str(length)})


@FUZZ
@given(body=st.binary(max_size=200), encoding=st.sampled_from(["gzip", "deflate"]), is_encoded=st.booleans())
def test_any_compressed_bytes(client: TestClient, body: bytes, encoding: str, is_encoded: bool) -> None:
    if is_encoded:
        body = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    check(client, body, {"Content-Encoding": encoding})
