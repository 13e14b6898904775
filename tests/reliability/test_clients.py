"""Clients of all kinds beside a load of usual ones: each is answered or refused by name, and others notice nothing."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import program
from tests.reliability.load import Answer, Load, Truth, metric
from tests.reliability.sizes import SIZES
from tests.service.running import RunningService

MIB = 1024 * 1024
BOUND_MIB = 16  # of unfinished requests, below
# What may come on top of it: buffers of sockets, and what the allocator keeps of the load beside.
SLACK_MIB = 48
HEAD = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = json.dumps(TINY_REQUEST).encode()
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
JAVA = Path(__file__).with_name("HttpClientPosts.java")


class Served:
    """A running service and what it must answer."""

    def __init__(self, service: RunningService, truth: Truth) -> None:
        self.service = service
        self.truth = truth
        self.address = (service.client.base_url.host, service.client.base_url.port or 80)
        self._process = psutil.Process(service.process.pid)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=60)

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """Usual clients ask meanwhile, and none of their requests fails. Resident memory stays within its bound."""
        with Load(self.service.client.base_url, clients=2) as load:
            load.wait_for_more(10)
            before = self._process.memory_info().rss
            yield
            load.wait_for_more(10)
            grown = self._process.memory_info().rss - before
        assert {answer.status for answer in load.answers} == {200}
        assert {self.truth.check(answer) for answer in load.answers} == {"1"}
        assert grown < (BOUND_MIB + SLACK_MIB) * MIB


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("models")
    truth = Truth(publish_artifact(models))
    # A queue without a bound: how busy this machine is besides must not decide what is shed.
    flags = ("--threads", "1", "--queue-seconds", "60", "--body-seconds", "600", "--header-seconds", "600")
    with RunningService(models, *flags, "--max-unfinished-bytes", str(BOUND_MIB * MIB)) as service:
        yield Served(service.wait_ready(), truth)
        assert service.client.get("/readyz").status_code == 200
        assert not [line for line in service.log if '"level":"error"' in line or "Unsupported upgrade" in line]


def rest(connection: socket.socket) -> bytes:
    """Answer until the connection ends."""
    parts = []
    with suppress(ConnectionResetError):  # it ended while bytes of ours were on their way
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_the_jdks_client_is_answered_every_time(served: Served, tmp_path: Path) -> None:
    program("javac", "default-jdk-headless")  # compiles the file that `java` is given
    body = tmp_path / "request.json"
    body.write_bytes(BODY)
    url = f"{served.service.client.base_url}/v1/rank"
    command = ["java", "-Xmx128m", str(JAVA), url, str(body), str(SIZES.posts)]
    with served.beside_others():
        ran = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)
    assert ran.returncode == 0, ran.stderr
    answers = ran.stdout.splitlines()
    assert len(answers) == 2 * SIZES.posts
    for line in answers:
        status, _, text = line.partition(" ")
        assert status == "200", line
        assert served.truth.check(Answer(200, {}, text.encode())) == "1"


def test_a_client_that_half_closes_gets_its_answer(served: Served) -> None:
    with served.beside_others():
        for number in range(SIZES.posts):
            with served.connect() as connection:
                connection.sendall(REQUEST * (1 + number % 3))
                connection.shutdown(socket.SHUT_WR)
                answers = rest(connection).split(b"HTTP/1.1 ")[1:]
            assert len(answers) == 1 + number % 3
            for answer in answers:
                head, _, body = answer.partition(b"\r\n\r\n")
                assert head.startswith(b"200 "), answer
                assert served.truth.check(Answer(200, {}, body)) == "1"


def test_trailers_without_end_are_cut_off(served: Served) -> None:
    before = metric(served.service.client, "ranking_connections_ended_total", reason="large_headers")
    line = b"X-Trailer: " + b"y" * 8000 + b"\r\n"
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
    with served.beside_others(), ExitStack() as stack:
        connections = [stack.enter_context(served.connect()) for _ in range(4)]
        for connection in connections:
            connection.sendall(chunked)
        cut_off = 0
        for connection in connections:
            try:
                for _ in range(SIZES.trailer_mebibytes * MIB // len(line)):
                    connection.sendall(line)
            except OSError:
                cut_off += 1
            answer = rest(connection) if cut_off else b""
            assert not answer or answer.startswith(b"HTTP/1.1 431")
        assert cut_off == len(connections)
    after = metric(served.service.client, "ranking_connections_ended_total", reason="large_headers")
    assert after == before + 4


def test_bodies_without_end_hold_no_more_than_their_bound(served: Served) -> None:
    """As many as there are take 3 MiB each and end nothing. Those that give way get an answer that says so."""
    size = 3 * MIB
    with served.beside_others(), ExitStack() as stack:
        connections = [stack.enter_context(served.connect()) for _ in range(SIZES.held_connections)]
        for connection in connections:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (size + 1) + bytes(size))
        client = served.service.client
        served.service.wait_for(
            lambda: (
                metric(client, "ranking_requests_rejected_total", reason="no_room")
                >= SIZES.held_connections - BOUND_MIB * MIB // size - 1
            )
        )
        assert metric(client, "ranking_unfinished_request_bytes") <= BOUND_MIB * MIB + MIB
        assert metric(client, "ranking_connections") >= SIZES.held_connections
    served.service.wait_for(lambda: metric(served.service.client, "ranking_unfinished_request_bytes") == 0)
    served.service.wait_for(lambda: metric(served.service.client, "ranking_requests_in_flight") == 0)
