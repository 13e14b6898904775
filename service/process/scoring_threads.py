"""Scoring off the event loop: a fixed number of threads, and whether they make progress.

In: callables. Out: their results, awaited. torch releases the GIL while it computes, so one thread per core keeps the
loop free for health checks and for reading other requests. torch's own thread count is set in each thread: left to
its default, every scoring thread would start as many OpenMP threads as the machine has cores.

A queue and the loop's own futures: concurrent.futures does the same with a lock, a condition and two futures a job.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch

STALLED_SECONDS = 10.0

Result = TypeVar("Result")


class ScoringThreads:
    """`threads` scoring threads of `torch_threads` torch threads each."""

    def __init__(self, threads: int, torch_threads: int) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._pending = 0
        self._last_progress = time.monotonic()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(torch_threads,), name=f"scoring-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, job: Callable[[], Result]) -> Result:
        """Run a job in a scoring thread. If the caller stops waiting before it has begun, it never begins. Raises
        what the job raises, and RuntimeError after `close`."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the scoring threads have ended")
            if not self._pending:
                self._last_progress = time.monotonic()
            self._pending += 1
            self._jobs.put((job, future))
        return await future

    @property
    def is_full(self) -> bool:
        """True while no thread is free."""
        return self._pending >= len(self._threads)

    @property
    def is_stalled(self) -> bool:
        """True while jobs wait and none has ended for STALLED_SECONDS."""
        with self._lock:
            return self._pending > 0 and time.monotonic() - self._last_progress > STALLED_SECONDS

    def close(self) -> None:
        """Wait for the jobs that were given and end the threads."""
        with self._lock:
            self._is_closed = True
            for _ in self._threads:
                self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, torch_threads: int) -> None:
        torch.set_num_threads(torch_threads)
        # Scores that are not finite are looked for and refused. To say so for each costs as much as adding them up.
        np.seterr(over="ignore", invalid="ignore")
        with torch.inference_mode():
            self._run_jobs()

    def _run_jobs(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, future = given
            settle = None if future.cancelled() else _outcome(job, future)
            with self._lock:  # before the result is out: a caller then finds no job that waits
                self._pending -= 1
                self._last_progress = time.monotonic()
            if settle is not None:
                with suppress(RuntimeError):  # the loop is closed, so nothing waits
                    future.get_loop().call_soon_threadsafe(settle)
            del given, job, future, settle  # an idle thread keeps no request alive


def _outcome(job: Callable[[], Any], future: asyncio.Future[Any]) -> Callable[[], None]:
    """Run the job. What is returned settles its future, on the loop."""
    try:
        return partial(_set_outcome, future, job(), None)
    except BaseException as error:
        return partial(_set_outcome, future, None, error)


def _set_outcome(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():  # the caller has stopped waiting
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
