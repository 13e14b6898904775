"""Workers that die, hang or never start: processes that do as told, by a clock of the test's, and a real one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from service.process import supervisor as supervisor_module
from service.process.supervisor import MOST_PAUSE_SECONDS, Supervisor
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import free_port
from tests.reliability.load import metric
from tests.service.running import RunningService


class Worker:
    """Stands in for a worker process: does as `made` says."""

    made: Callable[["Worker"], None]

    def __init__(self, *_: Any) -> None:
        self.is_up, self.is_serving, self.answers, self.ignores_end = True, False, True, False
        self.pid, self.exitcode = 1, -9
        self.process = SimpleNamespace(is_alive=lambda: self.is_up, join=lambda _=None: None, kill=self.kill)

    def start(self) -> None:
        type(self).made(self)

    def ping(self, _: float) -> bool:
        return self.answers

    def is_ready(self, _: float) -> bool:
        return self.answers and self.is_serving

    def kill(self) -> None:
        self.is_up = False

    def join(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(supervisor_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> Supervisor:
    """Of two workers that serve as soon as they are started."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(supervisor_module, "Worker", Worker)
    monkeypatch.setattr(Worker, "made", lambda worker: setattr(worker, "is_serving", True), raising=False)
    supervisor = Supervisor(uvicorn.Config("none", workers=2), [], end_seconds=1.0)
    supervisor.init_processes()
    return supervisor


def workers_of(supervisor: Supervisor) -> list[Any]:
    return list(supervisor.processes)


def test_a_worker_that_had_served_is_replaced_at_once(supervisor: Supervisor) -> None:
    supervisor.keep_subprocess_alive()
    for _ in range(20):
        first, second = workers_of(supervisor)
        first.is_up = False
        supervisor.keep_subprocess_alive()
        replaced, kept = workers_of(supervisor)
        assert (replaced.is_up, kept) == (True, second)
        supervisor.keep_subprocess_alive()


def test_a_worker_that_answers_no_ping_is_killed_and_replaced(supervisor: Supervisor) -> None:
    supervisor.keep_subprocess_alive()
    first, _ = workers_of(supervisor)
    first.answers = False
    supervisor.keep_subprocess_alive()
    assert not first.is_up
    assert workers_of(supervisor)[0] is not first


def test_workers_that_die_before_they_serve_are_started_ever_more_rarely(
    supervisor: Supervisor, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.keep_subprocess_alive()
    starts: list[float] = []

    def dies(worker: Worker) -> None:
        starts.append(clock.now)
        worker.is_up = False

    monkeypatch.setattr(Worker, "made", dies)
    workers_of(supervisor)[0].is_up = False
    while clock.now < 1200:
        supervisor.keep_subprocess_alive()
        clock.now += 0.5
    # At once, then after 1, 2, 4, 8, 16 s, then every 30 s: each pause up to two polls longer than that.
    pauses = [late - early for early, late in pairwise(starts)]
    expected = [1, 2, 4, 8, 16, *[MOST_PAUSE_SECONDS] * (len(pauses) - 5)]
    assert len(pauses) > 7
    assert all(pause <= found <= pause + 1 for pause, found in zip(expected, pauses, strict=True)), pauses
    monkeypatch.setattr(Worker, "made", lambda worker: setattr(worker, "is_serving", True))
    clock.now += MOST_PAUSE_SECONDS
    supervisor.keep_subprocess_alive()
    assert all(worker.is_up for worker in workers_of(supervisor))
    assert not supervisor.should_exit.is_set()


def test_a_worker_that_is_slow_to_start_is_left_alone_and_one_that_never_does_is_not(
    supervisor: Supervisor, clock: SimpleNamespace
) -> None:
    first, _ = workers_of(supervisor)
    first.answers = False  # it imports
    supervisor.keep_subprocess_alive()
    clock.now += 50
    supervisor.keep_subprocess_alive()
    assert first.is_up
    clock.now += 50
    supervisor.keep_subprocess_alive()
    assert not first.is_up


def test_a_service_none_of_whose_workers_can_start_ends_with_status_1(supervisor: Supervisor) -> None:
    for worker in workers_of(supervisor):
        worker.is_up, worker.exitcode = False, STARTUP_FAILURE
    supervisor.keep_subprocess_alive()
    assert supervisor.should_exit.is_set()
    assert supervisor.exit_status == 1


def test_a_worker_that_does_not_end_is_killed(supervisor: Supervisor) -> None:
    supervisor.join_all()
    assert [worker.is_up for worker in workers_of(supervisor)] == [False, False]


def test_a_stopped_worker_of_a_real_service_is_replaced(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with RunningService(tmp_path, "--workers", "2", "--threads", "1") as service:
        service.wait_workers(2)
        victim = min(service.workers())
        os.kill(victim, signal.SIGSTOP)
        service.wait_workers(2, besides=[victim])
        service.client.close()
        service.client = type(service.client)(base_url=service.client.base_url, timeout=30, trust_env=False)
        assert service.client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
        assert any(line["message"].startswith("worker died") for line in service.log_lines("feedrank.workers"))
        assert metric(service.client, "ranking_worker_restarts_total") == 1
        service.wait_for(lambda: metric(service.client, "ranking_workers", state="ready") == 2)
        assert metric(service.client, "ranking_workers") == 2


def test_a_worker_whose_event_loop_hangs_is_replaced() -> None:
    port = free_port()
    command = [sys.executable, "-m", "tests.service.hanging", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            assert [next(parent.stdout) for _ in range(2)] == ["worker serves\n"] * 2
            before = {child.pid for child in psutil.Process(parent.pid).children()}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
                with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):  # its process is killed
                    http.get("/hang")
                assert next(parent.stdout).startswith("worker died")
                assert next(parent.stdout) == "worker serves\n"
                after = {child.pid for child in psutil.Process(parent.pid).children()}
                assert (len(after), len(before - after)) == (len(before), 1)
                assert http.get("/").status_code == 200
        finally:
            parent.terminate()
        assert parent.wait(30) == 0
