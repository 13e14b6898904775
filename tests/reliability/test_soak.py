"""A service at 70 % of its capacity that is given new versions for a long time: it keeps neither files nor memory."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from benchmarks.closed_loop import closed_loop
from deploy.open_loop import message, offer, poisson
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.reliability.sizes import SIZES
from tests.service.running import RunningService

LOAD = 0.7
CAPACITY_SECONDS = 1.0
# Of what creeps: 20 KiB a version, where one that was not let go of would be 700.
MOST_CREPT_MIB = 0.02


def crept(resident_R: NDArray[np.float64]) -> float:
    """By how much memory has grown but for its two largest steps. What a process has once had at the same time it
    keeps, so that a moment with a few more requests is a step of some MiB, whenever it comes. What leaks comes again
    and again, by 132 KiB (malloc) or by 1 MiB (Python's arenas)."""
    steps = np.diff(resident_R)
    return float(steps.sum() - np.sort(steps)[-2:].sum())


@pytest.mark.parametrize(("leak", "unit"), [(0.06, 0.132), (0.1, 1.0), (0.7, 1.0)])
def test_a_leak_is_told_from_a_step(leak: float, unit: float) -> None:
    rounds_R = np.arange(50)
    stepped_R = 292.3 + 9.7 * (rounds_R > 12) + 5.6 * (rounds_R > 40) + 0.008 * rounds_R
    assert crept(stepped_R) < MOST_CREPT_MIB * len(rounds_R)
    assert crept(stepped_R + np.floor(leak * rounds_R / unit) * unit) > MOST_CREPT_MIB * len(rounds_R)


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Runs something beside a block, and waits for it at its end."""
    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_files_threads_and_memory_stay_what_they_are(tmp_path: Path) -> None:
    models, log = tmp_path / "models", tmp_path / "log"
    publish_artifact(models)
    log.mkdir()
    # Every part that writes or waits is on. The queue has no bound, so that nothing is shed by what else runs here.
    flags = ("--threads", "1", "--queue-seconds", "60", "--impression-log", str(log))
    files: list[int] = []
    threads: list[int] = []
    resident: list[int] = []
    with RunningService(models, *flags, "--impression-log-max-bytes", str(2**20)) as service:
        url = str(service.wait_ready().client.base_url)
        asked = [message(url, "/v1/rank", json.dumps(TINY_REQUEST).encode())]
        process = psutil.Process(service.process.pid)
        capacity = asyncio.run(closed_loop(url, asked, CAPACITY_SECONDS, 2)).rate
        for number in range(SIZES.soak_settling + SIZES.soak_rounds):
            due_R = poisson(LOAD * capacity, SIZES.soak_round_seconds, number)
            with beside(lambda seed=number + 1: publish_artifact(models, seed=seed)):  # type: ignore[misc]
                outcome = asyncio.run(offer(url, asked, due_R))
            assert set(outcome.status_R.tolist()) == {200}
            version = str(number + 2)
            service.wait_for(
                lambda version=version: (
                    service.client.get("/v1/models").json()["models"][0]["default_version"]  # type: ignore[misc]
                    == version
                )
            )
            # The last connections close when the service has seen that their clients are gone.
            service.wait_for(lambda: len(process.net_connections()) == 2)  # the port, and this test's client
            if number >= SIZES.soak_settling:
                files.append(process.num_fds())
                threads.append(process.num_threads())
                resident.append(process.memory_info().rss)
    assert len(set(threads)) == 1, threads
    print("open files:", *files)
    # The impression log has a file of its own open or is between two, and lists its folder now and then. The process
    # that makes Parquet of it is there (a pipe of its errors) or is being started (both ends of that pipe and of the
    # one that tells whether it began). These six come and go, and what is left behind adds up.
    assert max(files) - min(files) <= 6, files
    if len(resident) >= 30:  # in fewer rounds a few steps are all there is
        third = len(files) // 3
        assert np.median(files[-third:]) - np.median(files[:third]) <= 1, files
        found = crept(np.array(resident) / 2**20)
        print("resident, MiB:", *(f"{one / 2**20:.1f}" for one in resident), "crept:", found)
        assert found < MOST_CREPT_MIB * len(resident), (found, resident)
