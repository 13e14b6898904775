"""Signals to the service as it runs: what each does in one process, in the parent of workers and in the workers."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.http.test_keys import bearer, write_keys
from tests.service.running import RunningService

RELOADED = "SIGHUP: keys, certificates and models are read again"


def processes(service: RunningService) -> set[int]:
    return {service.process.pid, *service.workers()}


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_has_files_read_again_and_no_signal_of_the_kind_ends_or_adds_a_process(
    tmp_path: Path, workers: int
) -> None:
    publish_artifact(tmp_path / "models")
    keys = write_keys(tmp_path / "keys.yaml")
    flags = ("--workers", str(workers), "--poll-seconds", "3600", "--keys-file", str(keys))

    def is_reloaded(times: int) -> bool:
        said = [line for line in service.log_lines("feedrank") if line["message"] == RELOADED]
        return len(said) >= times * workers

    with RunningService(tmp_path / "models", *flags) as service:
        service.wait_ready()
        if workers > 1:
            service.wait_workers(workers)
        before = processes(service)
        write_keys(keys, {"feed": "feedrank_new"})
        (tmp_path / "models/tiny/value_models.yaml").write_text("default: {kind: weighted_sum, weights: {click: -7.0}}")
        for number in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2):
            for process in before:
                os.kill(process, number)
        service.process.send_signal(signal.SIGHUP)
        service.wait_for(lambda: is_reloaded(1))
        for _ in range(4):  # a connection each, so that every worker gets one
            with httpx.Client(base_url=service.client.base_url, trust_env=False, headers=bearer("feedrank_new")) as new:
                service.wait_for(lambda: _has_new_files(new))
                assert new.post("/v1/rank", json=TINY_REQUEST, headers=bearer("feedrank_one")).status_code == 401
        # As a terminal that closes does it: the whole group at once.
        os.killpg(service.process.pid, signal.SIGHUP)
        service.wait_for(lambda: is_reloaded(2))
        assert processes(service) == before
        assert service.stop(signal.SIGQUIT) == 0
        assert not any("Traceback" in line for line in service.log), service.log


def _has_new_files(client: httpx.Client) -> bool:
    """The reload is said before the files are read: until then the key is unknown, and scores are positive."""
    answer = client.post("/v1/rank", json=TINY_REQUEST)
    return answer.status_code == 200 and max(answer.json()["candidates"]["score"]) < 0


def test_an_ignored_sighup_stays_so_and_workers_of_a_killed_parent_finish_and_free_the_port(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    body = json.dumps(TINY_REQUEST).encode()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        service = RunningService(tmp_path, "--workers", "2", "--threads", "1")
    finally:
        signal.signal(signal.SIGHUP, before)
    with service:
        service.wait_workers(2)
        for process in processes(service):
            status = Path(f"/proc/{process}/status").read_text()
            ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn"))
            assert int(ignored, 16) >> (signal.SIGHUP - 1) & 1, process
        address = (service.client.base_url.host, service.client.base_url.port or 0)
        workers = [psutil.Process(pid) for pid in service.workers()]

        def body_with_a_kill_in_the_middle() -> Iterator[bytes]:
            yield body[:50]
            service.process.kill()
            service.process.wait()
            yield body[50:]

        answer = service.client.post("/v1/rank", content=body_with_a_kill_in_the_middle())
        assert answer.status_code == 200
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert alive == []
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
