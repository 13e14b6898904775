"""The health check of the image: against a real service over TLS, and against servers that are not well."""

import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.process.healthcheck import main
from tests.artifacts import publish_artifact
from tests.service.http.test_keys import certificate
from tests.service.running import RunningService


def test_a_real_service_over_tls_and_then_no_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_artifact(tmp_path / "models")
    served, key = certificate(tmp_path, "service")
    with RunningService(tmp_path / "models", "--tls-certificate", served, "--tls-key", key) as service:
        port = str(urlsplit(str(service.client.base_url)).port)
        assert main([], {"FEEDRANK_PORT": port, "FEEDRANK_TLS_CERTIFICATE": served}) == 0
        # Where clients need a certificate, that the port is open is all it can say.
        assert main([], {"FEEDRANK_PORT": port, "FEEDRANK_TLS_CERTIFICATE": served, "FEEDRANK_TLS_CLIENT_CA": "x"}) == 0
        assert main([], {"FEEDRANK_PORT": port}) == 1  # plain HTTP to a TLS port
    assert main([], {"FEEDRANK_PORT": port}) == 1
    assert "no answer on port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0, ""),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", 1, "/healthz answered 503"),
        (b"what?\r\n", 1, "no answer on port"),
    ],
)
def test_what_a_server_answers(answer: bytes, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        assert main([], {"FEEDRANK_PORT": str(listener.getsockname()[1])}) == status
        thread.join()
    assert said in capsys.readouterr().err
