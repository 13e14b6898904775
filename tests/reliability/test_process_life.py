"""Life of a service's processes while clients ask: no request fails, nothing hangs, memory is bounded."""

import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import httpx
import psutil
import pytest

from service.base.log_queue import MAX_HELD_BYTES
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import program
from tests.reliability.load import Load, Truth, metric
from tests.reliability.sizes import SIZES
from tests.service.http.test_certificates import der, place, trusting
from tests.service.http.test_keys import certificate
from tests.service.metrics.small_disks import fill, small_disk
from tests.service.running import RunningService

# By how much the processes of a service may grow while clients ask: buffers, and one more arena of Python's in each.
MOST_GROWN_MIB = 32
# The same where versions are loaded and let go: what torch keeps for the next one, in two workers.
MOST_GROWN_BY_VERSIONS_MIB = 300
EXPIRY = "ranking_tls_certificate_expiry_timestamp_seconds"


def resident_mib(service: RunningService) -> float:
    """Memory of the parent and its workers."""
    parent = psutil.Process(service.process.pid)
    return float(sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True))) / 2**20)


@pytest.mark.parametrize("workers", ["1", "2"] if SIZES.unread_answers > 10_000 else ["2"])
def test_a_reader_of_the_log_that_stops_stops_nothing(tmp_path: Path, workers: str) -> None:
    truth = Truth(publish_artifact(tmp_path))
    flags = ("--workers", workers, "--threads", "1", "--queue-seconds", "60")
    with RunningService(tmp_path, *flags) as service:
        service.wait_ready()
        service.reads.clear()
        with Load(service.client.base_url, clients=3) as load:
            load.wait_for_more(100)
            before = resident_mib(service)
            load.wait_for_more(SIZES.unread_answers)
            # By worker: each warms up its own heap, and answers that all of them share out would count once.
            most = MAX_HELD_BYTES / 2**20 + MOST_GROWN_MIB
            assert resident_mib(service) < before + int(workers) * most
        assert {answer.status for answer in load.answers} == {200}
        assert {truth.check(answer) for answer in load.answers[::100]} == {"1"}
        assert service.client.get("/healthz").status_code == 200
        if SIZES.unread_answers > 10_000:
            service.wait_for(lambda: metric(service.client, "ranking_log_lines_dropped_total") > 0)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=90) == 0
        service.reads.set()
        service.wait()
        assert len(service.log_lines("feedrank.requests")) > 100


def test_a_full_disk_ends_no_worker_and_none_that_replaces_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of TMPDIR, where two workers keep their metrics. A new version needs room for its own."""
    truth = Truth(publish_artifact(tmp_path / "models"))
    with small_disk(tmp_path / "disk", 4 * 2**20) as disk:
        monkeypatch.setenv("TMPDIR", str(disk))
        flags = ("--workers", "2", "--threads", "1", "--queue-seconds", "60")
        with RunningService(tmp_path / "models", *flags) as service:
            service.wait_workers(2)
            before, resident = service.workers(), resident_mib(service)
            filler = fill(disk)
            with Load(service.client.base_url, clients=2) as load:
                for seed in range(1, SIZES.rotations + 1):
                    version = publish_artifact(tmp_path / "models", seed=seed)
                    truth.know(version)
                    load.wait_for(lambda answer, name=version.name: truth.check(answer) == name)  # type: ignore[misc]
                assert metric(service.client, "ranking_metrics_folder_free_bytes") == 0
            assert {answer.status for answer in load.answers} == {200}
            assert service.workers() == before
            assert resident_mib(service) < resident + MOST_GROWN_BY_VERSIONS_MIB
            service.client.close()
            os.kill(min(before), signal.SIGKILL)
            service.wait_workers(2, besides=[min(before)])
            service.client = httpx.Client(base_url=service.client.base_url, timeout=60, trust_env=False)
            with Load(service.client.base_url, clients=2) as load:
                load.wait_for_more(100)
            assert {answer.status for answer in load.answers} == {200}
            assert {truth.check(answer) for answer in load.answers} == {version.name}
            filler.unlink()
            # What waited in memory is seen again, of the worker that began on the full disk too.
            service.wait_for(lambda: metric(service.client, "ranking_workers", state="ready") == 2)
            assert service.stop(signal.SIGTERM) == 0
            assert not any("Traceback" in line for line in service.log), service.log


@contextmanager
def asking(address: str, context: ssl.SSLContext) -> Iterator[list[int]]:
    """Clients over TLS meanwhile, a connection for each request, and the statuses of their answers."""
    statuses: list[int] = []
    is_over = Event()

    def ask() -> None:
        while not is_over.is_set():
            answer = httpx.post(f"{address}/v1/rank", json=TINY_REQUEST, verify=context, timeout=60, trust_env=False)
            statuses.append(answer.status_code)

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(ask) for _ in range(2)]
        try:
            yield statuses
        finally:
            is_over.set()
    for client in clients:
        client.result()


def shown_at(address: httpx.URL) -> bytes:
    """The certificate that a new connection is shown."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((address.host, address.port or 443)))


def test_certificates_rotate_under_load(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    old = certificate(tmp_path, "old", days=2)
    served = (tmp_path / "tls.pem", tmp_path / "tls.key")
    place(served, old)
    flags = ("--workers", "2", "--threads", "1", "--queue-seconds", "60", "--keep-alive-seconds", "3600")
    files = ("--tls-certificate", str(served[0]), "--tls-key", str(served[1]))
    with RunningService(tmp_path / "models", *flags, *files) as service:
        service.wait_workers(2)
        newest = old
        # httpx would close a connection that was idle for 5 s.
        kept_open = httpx.Limits(keepalive_expiry=None)
        context = trusting(old[0])
        with httpx.Client(base_url=service.client.base_url, verify=context, limits=kept_open, trust_env=False) as kept:
            assert kept.get("/healthz").status_code == 200
            resident = resident_mib(service)
            for rotation in range(SIZES.rotations):
                before, newest = newest, certificate(tmp_path, f"new-{rotation}", days=3 + rotation)
                rotate(service, served, newest, trusting(before[0], newest[0]))
            assert kept.get("/healthz").status_code == 200  # the first connection lives on
            assert resident_mib(service) < resident + MOST_GROWN_MIB
            assert metric(kept, EXPIRY) == expiry_of(newest[0])
        assert service.stop(signal.SIGTERM) == 0
        assert not any("hunter2" in line for line in service.log)


def rotate(service: RunningService, served: tuple[Path, Path], newest: tuple[str, str], known: ssl.SSLContext) -> None:
    """Put a new pair in place while clients ask, then a bad one, which changes nothing."""
    address, expected = service.client.base_url, der(newest[0])
    with asking(str(address), known) as statuses:
        service.wait_for(lambda: len(statuses) > 4)
        place(served, newest)
        service.wait_for(lambda: shown_at(address) == expected)
        # The metric is that of the worker whose certificate ends first: both have taken this one up.
        with httpx.Client(base_url=address, verify=known, trust_env=False) as client:
            service.wait_for(lambda: metric(client, EXPIRY) == expiry_of(newest[0]))
        refused = len(refusals(service))
        served[0].write_text("hunter2")
        service.wait_for(lambda: len(refusals(service)) >= refused + 2)
        assert shown_at(address) == expected
    assert set(statuses) == {200}


def refusals(service: RunningService) -> list[dict[str, object]]:
    """Log lines of the workers about a certificate without its key."""
    lines = service.log_lines("feedrank.certificates")
    return [line for line in lines if "not a certificate and its key in PEM" in str(line.get("reason"))]


def expiry_of(file: str) -> float:
    """Unix time of a certificate's end, as openssl says it."""
    command = [program("openssl", "openssl"), "x509", "-enddate", "-noout", "-in", file]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(ssl.cert_time_to_seconds(said.strip().removeprefix("notAfter=")))
