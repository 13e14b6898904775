"""Workers on cores of their own: every share is taken once, and again when its worker is gone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.process.cores import bind_to_a_share
from tests.artifacts import publish_artifact
from tests.service.running import ROOT, RunningService

CORES = os.sched_getaffinity(0)
WORKER = """
import json, os, sys
from pathlib import Path
from service.process.cores import bind_to_a_share
share = bind_to_a_share(Path(sys.argv[1]), int(sys.argv[2]))
assert share is None or share == os.sched_getaffinity(0)
print(json.dumps(None if share is None else sorted(share)), flush=True)
sys.stdin.read()
"""
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="two workers with a core each need two cores")


@contextmanager
def worker(folder: Path, workers: int) -> Iterator[list[int] | None]:
    """The cores of a worker process that lives until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


@needs_two_cores
def test_each_worker_has_cores_of_its_own_and_a_new_one_those_of_the_one_that_died(tmp_path: Path) -> None:
    with worker(tmp_path, 2) as first:
        assert first is not None
        with worker(tmp_path, 2) as second:
            assert second is not None
            assert len(first) == len(second) == len(CORES) // 2
            assert set(first).isdisjoint(second)
            with worker(tmp_path, 2) as third:
                assert third is None
        with worker(tmp_path, 2) as again:
            assert again == second


def test_nothing_is_bound_where_there_is_less_than_a_core_for_each(tmp_path: Path) -> None:
    assert bind_to_a_share(tmp_path, len(CORES) + 1) is None
    assert os.sched_getaffinity(0) == CORES


@needs_two_cores
def test_a_folder_that_takes_no_lock_file_costs_the_binding_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert bind_to_a_share(tmp_path / "absent", 2) is None
    assert os.sched_getaffinity(0) == CORES
    assert caplog.messages == ["no room for the locks of --bind-cores: this worker is not bound"]


@needs_two_cores
def test_workers_of_a_service_say_which_cores_are_theirs(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with RunningService(tmp_path, "--workers", "2", "--bind-cores", "true") as service:
        service.wait_for(lambda: sum(line["message"] == "serving" for line in service.log_lines("feedrank")) == 2)
        told = [line for line in service.log_lines("feedrank") if line["message"] == "serving"]
        first, second = (set(line["cores"]) for line in told)
        assert first
        assert second
        assert first.isdisjoint(second)
        # As many scoring threads as the worker's share has cores, however many the machine has.
        assert {line["scoring_threads"] for line in told} == {len(CORES) // 2}
        assert all(line["omp_num_threads"] for line in told)
