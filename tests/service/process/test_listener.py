"""The address that the service listens on, the same with one worker and with two, and one line where there is none."""

import errno
import json
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.process.healthcheck import main as healthcheck
from service.process.listener import bound_socket
from tests.artifacts import publish_artifact
from tests.service.running import ROOT, START_SECONDS, RunningService


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


def reaches(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::", ["127.0.0.1", "::1"]),
        ("0::0", ["127.0.0.1", "::1"]),
        ("::1", ["::1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
    ],
)
def test_what_an_address_can_be_reached_by(host: str, reached: list[str]) -> None:
    with bound_socket(host, 0) as listener:
        port = listener.getsockname()[1]
        assert not any(reaches(one, port) for one in ("127.0.0.1", "::1"))  # nobody is told before it listens
        listener.listen()
        assert [one for one in ("127.0.0.1", "::1") if reaches(one, port)] == reached


@needs_ipv6
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_on_every_address_answers_in_both_families_and_to_its_health_check(
    tmp_path: Path, workers: str
) -> None:
    publish_artifact(tmp_path)
    with RunningService(tmp_path, "--host", "::", "--workers", workers) as service:
        assert str(service.client.base_url).startswith("http://[::]:")
        port = str(urlsplit(str(service.client.base_url)).port)
        service.wait_for(lambda: reaches("::1", int(port)))
        for host in ("::", "0.0.0.0", "", "localhost"):
            assert healthcheck([], {"FEEDRANK_HOST": host, "FEEDRANK_PORT": port}) == 0
        (line,) = [line for line in service.log_lines("feedrank") if line["message"] == "starting"]
        assert line["workers"] == int(workers)
        assert service.log.index(json.dumps(line, separators=(",", ":"))) == 0


@needs_ipv6
def test_a_health_check_asks_the_address_that_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as listener:
        port = str(listener.getsockname()[1])
        assert healthcheck([], {"FEEDRANK_HOST": "::1", "FEEDRANK_PORT": port, "FEEDRANK_TLS_CLIENT_CA": "x"}) == 0
        assert healthcheck([], {"FEEDRANK_HOST": "::", "FEEDRANK_PORT": port, "FEEDRANK_TLS_CLIENT_CA": "x"}) == 0
        assert healthcheck([], {"FEEDRANK_PORT": port, "FEEDRANK_TLS_CLIENT_CA": "x"}) == 1
    assert "of 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_address_that_is_not_there_ends_it_with_one_line(tmp_path: Path, workers: str) -> None:
    command = [sys.executable, "-m", "service", "--models", str(tmp_path), "--host", "192.0.2.1", "--workers", workers]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_SECONDS)
    assert ended.returncode == 3
    starting, line = map(json.loads, ended.stderr.splitlines())
    assert starting["message"] == "starting"
    assert (line["message"], line["host"]) == ("cannot listen on --host and --port", "192.0.2.1")
    assert line["reason"]


@pytest.mark.parametrize("host", ["::", "::1", "no.such.host.invalid", "[::1]", "192.0.2.1"])
def test_what_a_host_does_not_have_is_an_error(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = socket.socket

    def without_ipv6(family: int = -1, *arguments: int) -> socket.socket:
        if family == socket.AF_INET6:  # as a kernel without it says
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return ours(family, *arguments)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    with pytest.raises(OSError, match=r"."):
        bound_socket(host, 0)
