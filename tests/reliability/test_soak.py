"""A service at 70 % of its capacity that is given new versions for a long time: it keeps neither files nor memory."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from scipy.stats import theilslopes

from deploy.open_loop import closed_loop, message, offer, poisson
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.reliability.sizes import SIZES
from tests.service.running import RunningService

LOAD = 0.7
CAPACITY_SECONDS = 1.0
# What Python's allocator asks of the system at once: over a whole run, less is no growth.
ARENA_MIB = 1.0


class Trend(NamedTuple):
    """What a series grows by from its first to its last value, by the median slope of all pairs (Theil and Sen), the
    95 % interval of that, and how far values lie off the line (median of the distances)."""

    growth: float
    low: float
    high: float
    noise: float


def trend(values_R: NDArray[np.float64]) -> Trend:
    slope, intercept, low, high = theilslopes(values_R, alpha=0.95)
    rounds_R = np.arange(len(values_R))
    span = len(values_R) - 1
    noise = float(np.median(np.abs(values_R - intercept - slope * rounds_R)))
    return Trend(slope * span, low * span, high * span, noise)


def is_growing(values_R: NDArray[np.float64]) -> bool:
    """Whether a series rises beyond its own noise: by the whole interval, and by more than it scatters by (three
    times the median distance, two standard deviations of what is normal) and by more than an arena over all its
    length. In MiB."""
    found = trend(values_R)
    return bool(found.low > 0 and found.growth > max(3 * found.noise, ARENA_MIB))


@pytest.mark.parametrize(("rise", "expected"), [(0.0, False), (0.5, False), (3.0, True), (20.0, True)])
def test_a_trend_is_told_from_noise(rise: float, expected: bool) -> None:
    random = np.random.default_rng(3)
    # `rise` is in standard deviations.
    values_R = 200 + random.normal(0, 1, 60) + np.linspace(0, rise, 60)
    assert is_growing(values_R) is expected


def test_an_arena_that_is_asked_for_once_is_no_trend() -> None:
    values_R = np.full(50, 292.3)
    values_R[12:] += 9.7
    values_R += np.linspace(0, 0.4, 50)
    assert not is_growing(values_R)
    # 60 KiB a version, which come in arenas, are 3 MiB in all.
    assert is_growing(292.3 + np.floor(np.arange(50) * 0.06))


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
    # Every part that writes or waits is on; the queue has no bound, so that nothing is shed by what else runs here.
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
    # The impression log has a file of its own open or is between two, and the process that makes Parquet of them is
    # there (a lock, two pipes) or not: these come and go, and what is left behind adds up.
    assert max(files) - min(files) <= 4, files
    if len(resident) >= 30:  # in fewer rounds the allocator's own steps are larger than any trend
        third = len(files) // 3
        assert np.median(files[-third:]) - np.median(files[:third]) <= 1, files
        found = trend(np.array(resident) / 2**20)
        print("resident, MiB:", *(f"{one / 2**20:.1f}" for one in resident), found)
        assert not is_growing(np.array(resident) / 2**20), (found, resident)
