"""Scoring off the event loop: a fixed number of threads, and whether they make progress.

In: callables. Out: their results, called back or awaited. torch releases the GIL while it computes, so one thread per
core keeps the loop free for health checks and for reading other requests. torch's own thread count is set in each
thread: left to its default, every scoring thread would start as many OpenMP threads as the machine has cores.

A queue and one callback on the loop: concurrent.futures does the same with a lock, a condition and two futures a job.
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


class Job:
    """A job that was submitted. `settle` takes its result, or None and its error, on the event loop."""

    __slots__ = ("is_cancelled", "loop", "run", "settle")

    def __init__(self, run: Callable[[], Any], settle: Callable[[Any, BaseException | None], None]) -> None:
        self.run = run
        self.settle = settle
        self.loop = asyncio.get_running_loop()
        self.is_cancelled = False

    def cancel(self) -> None:
        """Stop waiting. A job that has not begun never begins. To be called on the event loop."""
        self.is_cancelled = True

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Settle it, on the event loop."""
        if not self.is_cancelled:
            self.settle(result, error)


class ScoringThreads:
    """`threads` scoring threads of `torch_threads` torch threads each."""

    def __init__(self, threads: int, torch_threads: int) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
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

    def submit(self, run: Callable[[], Any], settle: Callable[[Any, BaseException | None], None]) -> Job:
        """Run a function in a scoring thread, then `settle` on the running event loop. Raises RuntimeError after
        `close`."""
        job = Job(run, settle)
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the scoring threads have ended")
            if not self._pending:
                self._last_progress = time.monotonic()
            self._pending += 1
        self._jobs.put(job)
        return job

    async def run(self, function: Callable[[], Result]) -> Result:
        """Run a function in a scoring thread. If the caller stops waiting before it has begun, it never begins. Raises
        what it raises, and RuntimeError after `close`."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        job = self.submit(function, partial(_set_outcome, future))
        try:
            return await future
        except asyncio.CancelledError:
            job.cancel()
            raise

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
        while (job := self._jobs.get()) is not None:
            outcome = None if job.is_cancelled else _outcome(job)
            with self._lock:  # before the result is out: a caller then finds no job that waits
                self._pending -= 1
                self._last_progress = time.monotonic()
            if outcome is not None:
                with suppress(RuntimeError):  # the loop is closed, so nothing waits
                    job.loop.call_soon_threadsafe(job.finish, *outcome)
            del job, outcome  # an idle thread keeps no request alive


def _outcome(job: Job) -> tuple[Any, BaseException | None]:
    """Run the job. Its result and its error."""
    try:
        return job.run(), None
    except BaseException as error:
        return None, error


def _set_outcome(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
