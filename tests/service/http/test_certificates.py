"""TLS files that change while the service runs: new connections have what is valid, and what is not changes nothing."""

import logging
import os
import pickle
import shutil
import ssl
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.http.certificates import Certificates
from service.settings import Settings
from tests.deploy.programs import wait_for
from tests.service.http.test_keys import certificate
from tests.service.in_process import sample


def shown_by(context: ssl.SSLContext, client: ssl.SSLContext) -> bytes:
    """The certificate that a handshake shows, in DER. Event loops make connections this way."""
    ends = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2)]
    server_side = context.wrap_bio(*ends[0], server_side=True)
    client_side = client.wrap_bio(*ends[1], server_hostname="127.0.0.1")
    waiting = {client_side: ends[1], server_side: ends[0]}
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                del waiting[side]
            except ssl.SSLWantReadError:
                pass  # for what the other side has yet to say
            ends[0][0].write(ends[1][1].read())
            ends[1][0].write(ends[0][1].read())
    shown = client_side.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def trusting(*files: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for file in files:
        context.load_verify_locations(file)
    return context


def der(file: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(file).read_text())


def place(served: tuple[Path, Path], pair: tuple[str, str]) -> None:
    for target, source in zip(served, pair, strict=True):
        shutil.copy(source, target.with_suffix(".next"))
        target.with_suffix(".next").rename(target)


def test_new_connections_have_the_newest_valid_pair(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = certificate(tmp_path, "old"), certificate(tmp_path, "new", days=9)
    client = trusting(old[0], new[0])
    served = (tmp_path / "tls.pem", tmp_path / "tls.key")
    place(served, old)
    certificates = Certificates(*served, None)
    of_parent = pickle.dumps(certificates)
    context = certificates.server_context()
    assert shown_by(context, client) == der(old[0])
    expired = certificates.expires_at

    def refused() -> int:
        return sum(record.levelname == "ERROR" for record in caplog.records)

    # The certificate alone: half of a rotation. Then what is nothing, what is not there, and what would hang.
    shutil.copy(new[0], served[0])
    certificates.poll()
    certificates.poll()
    assert refused() == 1, "once for each state of the files"
    for content in (b"", b"hunter2", b"x" * (2**20 + 1)):
        served[0].write_bytes(content)
        certificates.poll()
    served[0].unlink()
    certificates.poll()
    os.mkfifo(served[0])
    certificates.poll()
    assert refused() == 6
    assert shown_by(context, client) == der(old[0])
    assert certificates.expires_at == expired
    assert "hunter2" not in caplog.text
    # A worker that is started now has what its parent had.
    assert shown_by(pickle.loads(of_parent).server_context(), client) == der(old[0])
    served[0].unlink()
    place(served, new)
    with caplog.at_level(logging.INFO):
        certificates.poll()
    assert "TLS files read again" in caplog.text
    assert shown_by(context, client) == der(new[0])
    assert certificates.expires_at == expired + 7 * 86400


def test_metrics_tell_when_it_expires_and_that_newer_files_are_refused(tmp_path: Path) -> None:
    served = certificate(tmp_path, "service")
    certificates = Certificates(Path(served[0]), Path(served[1]), None)
    certificates.server_context()
    settings = Settings(models=tmp_path, threads=1, poll_seconds=0.02)
    with TestClient(create_app(settings, certificates)) as client:
        expiry = "ranking_tls_certificate_expiry_timestamp_seconds"
        wait_for(lambda: sample(client, expiry) == certificates.expires_at)
        assert certificates.expires_at > time.time()
        Path(served[0]).write_text("")
        wait_for(lambda: sample(client, "ranking_file_error", model="", file="tls") == 1)
        assert "TLS files" in client.get("/").text


def test_authorities_of_clients_are_read_again_too(tmp_path: Path) -> None:
    served, first, second = (certificate(tmp_path, name) for name in ("service", "first", "second"))
    authorities = tmp_path / "authorities.pem"
    shutil.copy(first[0], authorities)
    certificates = Certificates(Path(served[0]), Path(served[1]), authorities)
    context = certificates.server_context()
    clients = {}
    for name, pair in (("first", first), ("second", second)):
        clients[name] = trusting(served[0])
        clients[name].maximum_version = ssl.TLSVersion.TLSv1_2  # in 1.3 a client hears of it after its handshake
        clients[name].load_cert_chain(*pair)
    shown_by(context, clients["first"])
    with pytest.raises(ssl.SSLError):
        shown_by(context, clients["second"])
    shutil.copy(second[0], authorities)
    certificates.poll()
    shown_by(context, clients["second"])
    with pytest.raises(ssl.SSLError):
        shown_by(context, clients["first"])
