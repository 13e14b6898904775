"""A request that is answered past ASGI, as all of a known length are, and the same one in chunks, which ASGI has."""

import gzip
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.http.keys import hash_of
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.running import RunningService

KEY = "feedrank_of_a_test"
BODY = json.dumps(TINY_REQUEST).encode()
AUTHORIZATION = {"authorization": f"Bearer {KEY}"}
INFER = "/v2/models/tiny/infer"
EVENTS = "/v1/events"
CLICK: dict[str, Any] = {"request_id": "r-1", "type": "click", "id": "v2"}
CLICKS = json.dumps({"events": [CLICK] * 3}).encode()

# By what it is: path, headers, body, and the status of the answer.
REQUESTS: dict[str, tuple[str, dict[str, str], bytes, int]] = {
    "answered": ("/v1/rank", AUTHORIZATION, BODY, 200),
    "its id in the body": ("/v1/rank", AUTHORIZATION, BODY.replace(b"{", b'{"request_id": "mine",', 1), 200),
    "in time": ("/v1/rank", {**AUTHORIZATION, "x-request-timeout-ms": "60000"}, BODY, 200),
    "compressed": ("/v1/rank", {**AUTHORIZATION, "content-encoding": "gzip"}, gzip.compress(BODY), 200),
    "no key": ("/v1/rank", {}, BODY, 401),
    "no encoding": ("/v1/rank", {**AUTHORIZATION, "content-encoding": "br"}, BODY, 415),
    "no deadline": ("/v1/rank", {**AUTHORIZATION, "x-request-timeout-ms": "soon"}, BODY, 422),
    "not JSON": ("/v1/rank", AUTHORIZATION, b"{", 400),
    "no body": ("/v1/rank", AUTHORIZATION, b"", 400),
    "no such model": ("/v1/rank", AUTHORIZATION, BODY.replace(b"{", b'{"model": "absent",', 1), 404),
    "too large": ("/v1/rank", AUTHORIZATION, b" " * 70_000, 413),
    "events": (EVENTS, AUTHORIZATION, CLICKS, 202),
    "events, compressed": (EVENTS, {**AUTHORIZATION, "content-encoding": "gzip"}, gzip.compress(CLICKS), 202),
    "events, not what they say": (EVENTS, {**AUTHORIZATION, "content-encoding": "gzip"}, CLICKS, 400),
    "events, no key": (EVENTS, {}, CLICKS, 401),
    "events, no encoding": (EVENTS, {**AUTHORIZATION, "content-encoding": "br"}, CLICKS, 415),
    "events, not JSON": (EVENTS, AUTHORIZATION, b"{", 400),
    "events, no type": (EVENTS, AUTHORIZATION, CLICKS.replace(b"type", b"kind"), 422),
    "events, too large": (EVENTS, AUTHORIZATION, b" " * 2**21, 413),
    "no such tensor": (INFER, AUTHORIZATION, b'{"inputs": []}', 400),
    "no such model of tensors": ("/v2/models/absent/versions/7/infer", AUTHORIZATION, b'{"inputs": []}', 404),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("direct")
    publish_artifact(folder / "models")
    keys = folder / "keys.yaml"
    key = {"name": "test", "scopes": ["score", "events", "metrics"], "sha256": hash_of(KEY)}
    keys.write_text(json.dumps({"keys": [key]}))
    (folder / "events").mkdir()
    flags = ["--keys-file", str(keys), "--max-body-bytes", "65536", "--event-log", str(folder / "events")]
    with RunningService(folder / "models", *flags) as running:
        yield running.wait_ready()


def ask(service: RunningService, path: str, headers: dict[str, str], body: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers but the date's and those of the form, and body of the answer. A list is sent as chunks."""
    address = urlsplit(str(service.client.base_url))
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        sent = {"x-request-id": "r-1", **headers}
        connection.request("POST", path, body, sent, encode_chunked=isinstance(body, list))
        answer = connection.getresponse()
        shown = {name.lower(): value for name, value in answer.getheaders() if name.lower() != "date"}
        return answer.status, shown, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("what", REQUESTS)
def test_both_ways_give_the_same_answer(what: str, service: RunningService) -> None:
    path, headers, body, status = REQUESTS[what]
    direct = ask(service, path, headers, body)
    chunked = {**headers, "transfer-encoding": "chunked"}
    by_asgi = ask(service, path, chunked, [body] if body else [])
    assert direct[0] == status
    assert direct == by_asgi
    assert direct[1]["x-request-id"] == ("mine" if what == "its id in the body" else "r-1")


def test_a_request_whose_deadline_has_passed_is_504_and_leaves_no_work(service: RunningService) -> None:
    address = urlsplit(str(service.client.base_url))
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    connection.putrequest("POST", "/v1/rank")
    for name, value in {**AUTHORIZATION, "content-length": str(len(BODY)), "x-request-timeout-ms": "1"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    time.sleep(0.05)  # many times what the client has
    connection.send(BODY)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["title"]) == (504, "The deadline has passed")
    connection.close()

    def is_idle() -> bool:
        text = service.client.get("/metrics", headers=AUTHORIZATION).text
        return "\nranking_work_in_flight 0.0" in text and "\nranking_requests_in_flight 0.0" in text

    service.wait_for(is_idle)
