"""Compressed bodies of /v1/rank and /v2: taken as what they were, within limits, or refused by name."""

import gzip
import json
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.http.admission import FIXED_WORK, Admission, Ticket
from service.http.content_encoding import unpacked
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of
from tests.service.open_inference.tensors import INFER, Given, binary_body, tensors_of

LIMIT = 20_000
RANK = "/v1/rank"
BODIES = {
    RANK: json.dumps(TINY_REQUEST).encode(),
    INFER: json.dumps({"inputs": [tensor.as_json() for tensor in tensors_of(TINY_REQUEST)]}).encode(),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    publish_artifact(folder)
    with client_of(folder, max_candidates=50, max_body_bytes=LIMIT) as client:
        yield client


def post(client: TestClient, path: str, content: bytes, *encodings: str) -> Any:
    headers = [("Content-Type", "application/json"), *(("Content-Encoding", encoding) for encoding in encodings)]
    return client.post(path, content=content, headers=headers)


def said(response: Any, status: int) -> str:
    """The text of a refusal, in the form of either protocol."""
    assert response.status_code == status, response.text
    content = response.json()
    return str(content.get("detail") or content["error"])


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("GZip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("identity", bytes),
        ("", bytes),
    ],
)
def test_a_compressed_body_is_what_it_was(
    client: TestClient, path: str, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    plain, response = post(client, path, BODIES[path]), post(client, path, compress(BODIES[path]), encoding)
    assert response.status_code == 200, response.text
    ids = ("request_id", "id")
    assert {key: value for key, value in response.json().items() if key not in ids} == {
        key: value for key, value in plain.json().items() if key not in ids
    }


def test_bytes_after_json_are_compressed_with_it(client: TestClient) -> None:
    body, headers = binary_body([Given("video_id", "INT64", range(4))])
    plain = client.post(INFER, content=body, headers=headers)
    headers["Content-Encoding"] = "gzip"
    assert client.post(INFER, content=gzip.compress(body), headers=headers).json() == plain.json()


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "encodings", [("br",), ("zstd",), ("gzip, gzip",), ("gzip", "gzip"), ("identity, gzip",), ("gzip, br",), ("utf-8",)]
)
def test_what_is_not_read_is_415_with_what_is(client: TestClient, path: str, encodings: tuple[str, ...]) -> None:
    response = post(client, path, gzip.compress(BODIES[path]), *encodings)
    assert "gzip, deflate" in said(response, 415)
    assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("path", BODIES)
def test_damage_and_bombs_are_refused(client: TestClient, path: str) -> None:
    right = BODIES[path]
    assert "is not what its" in said(post(client, path, right, "gzip"), 400)
    assert "is not what its" in said(post(client, path, zlib.compress(right), "gzip"), 400)
    assert "ends before" in said(post(client, path, gzip.compress(right)[:-1], "gzip"), 400)
    assert "ends before" in said(post(client, path, b"", "gzip"), 400)
    assert "or after it" in said(post(client, path, gzip.compress(right) + b"x", "gzip"), 400)
    for compress, encoding in ((gzip.compress, "gzip"), (zlib.compress, "deflate")):
        bomb = compress(bytes(19_000_000))
        assert len(bomb) < LIMIT
        tracemalloc.start()
        assert "decompressed" in said(post(client, path, bomb, encoding), 413)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10_000_000
    # A body over the limit is not unpacked at all.
    assert "decompressed" not in said(post(client, path, bytes(LIMIT + 1), "gzip"), 413)
    exactly = right.ljust(LIMIT)
    assert post(client, path, gzip.compress(exactly), "gzip").status_code == 200
    assert "decompressed" in said(post(client, path, gzip.compress(exactly + b" "), "gzip"), 413)


@pytest.mark.parametrize("path", BODIES)
def test_it_counts_as_the_largest_until_a_scoring_thread_has_unpacked_it(
    client: TestClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    admissions: list[Admission] = []
    admit = Admission.admit

    def admitted(self: Admission, size: int | None) -> Ticket:
        admissions.append(self)
        ticket = admit(self, size)
        seen.append((size, self.in_flight))
        return ticket

    def unpack(body: bytes, encoding: str, limit: int) -> bytes:
        seen.append(threading.current_thread().name)
        return unpacked(body, encoding, limit)

    monkeypatch.setattr(Admission, "admit", admitted)
    monkeypatch.setattr("service.responder.unpacked", unpack)
    body = BODIES[path]
    for _ in range(200):
        assert post(client, path, gzip.compress(body), "gzip").status_code == 200
    assert seen[:2] == [(None, 50 + FIXED_WORK), "scoring-0"]
    # So many candidates as it holds are expected of its unpacked size, as if it had come like that.
    admission = admissions[-1]
    ticket = admit(admission, len(body))
    assert admission.in_flight == 4 + FIXED_WORK
    ticket.release()
