"""Clients that are slow, idle or endless: cut off with a reason, while others are answered."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.running import RunningService

SECONDS = 0.4  # of the limits below
BODY = json.dumps(TINY_REQUEST).encode()
HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    models = tmp_path_factory.mktemp("models")
    publish_artifact(models)
    flags = ("--header-seconds", str(SECONDS), "--body-seconds", str(SECONDS), "--header-bytes", "16384")
    with RunningService(models, *flags) as running:
        yield running.wait_ready()


def connect(service: RunningService) -> socket.socket:
    address = urlsplit(str(service.client.base_url))
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port or 80), timeout=30)


def rest(connection: socket.socket) -> bytes:
    """Bytes that the service sends until it closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:  # it closed while bytes of ours were on their way
        pass
    return b"".join(parts)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_headers_that_trickle_end_in_408(service: RunningService) -> None:
    with connect(service) as connection:
        started = time.monotonic()
        connection.sendall(HEAD)
        for _ in range(1000):
            try:
                connection.sendall(b"x")
            except OSError:
                break
            time.sleep(0.01)  # a slow client is what is tested
        assert status_of(rest(connection)) == 408
        assert time.monotonic() - started >= SECONDS
    assert service.client.get("/healthz").status_code == 200


def test_endless_headers_end_in_431(service: RunningService) -> None:
    with connect(service) as connection:
        connection.sendall(HEAD)
        try:
            for number in range(100_000):
                connection.sendall(b"x-%d: " % number + b"y" * 1000 + b"\r\n")
        except OSError:
            pass
        else:
            pytest.fail("100 MB of headers were taken")
        answer = rest(connection)
    # The answer may be lost where the client's own unread bytes reset the connection. That it is cut off may not.
    assert not answer or status_of(answer) == 431


def test_body_that_trickles_ends_in_408_and_is_counted(service: RunningService) -> None:
    with connect(service) as connection:
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY[:-1])
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert status_of(head) == 408
    assert b"application/problem+json" in head
    assert json.loads(body)["detail"] == f"the body took more than {SECONDS:g} s to arrive"
    assert 'ranking_requests_rejected_total{reason="slow_body"} 0.0' not in service.client.get("/metrics").text


def test_client_that_sends_on_after_its_refusal_is_cut_off(service: RunningService) -> None:
    with connect(service) as connection:
        connection.sendall(HEAD + b"content-length: 50000000\r\n\r\n")
        give_up = time.monotonic() + 30
        try:
            while time.monotonic() < give_up:
                connection.sendall(b" " * 10)
                time.sleep(0.01)  # a slow client is what is tested
            pytest.fail("it was let send on")
        except OSError:
            pass


def test_idle_connection_outlives_the_limit_on_headers(service: RunningService) -> None:
    head = HEAD + b"content-length: %d\r\n\r\n" % len(BODY)
    with connect(service) as connection:
        time.sleep(2 * SECONDS)  # idle is what is tested: before the first request and between two
        for _ in range(2):
            connection.sendall(head + BODY)
            answer = b""
            while not answer.endswith(b"}}}"):
                answer += connection.recv(65536)
            assert status_of(answer) == 200
            time.sleep(2 * SECONDS)


def test_pipelined_requests_are_answered_one_after_the_other(service: RunningService) -> None:
    one = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    with connect(service) as connection:
        connection.sendall(one * 40)
        answer = b""
        while answer.count(b"HTTP/1.1 200 OK") < 40 or not answer.endswith(b"}}}"):
            part = connection.recv(65536)
            assert part
            answer += part


def test_many_slow_clients_do_not_keep_others_from_an_answer(service: RunningService) -> None:
    with ExitStack() as stack:
        for number in range(200):
            connection = stack.enter_context(connect(service))
            connection.sendall(HEAD if number % 2 else HEAD + b"content-length: 1000\r\n\r\n")
        for _ in range(20):
            assert service.client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
