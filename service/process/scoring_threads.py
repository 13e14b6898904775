"""Scoring off the event loop: a fixed number of threads, and whether they make progress.

In: callables. Out: their results, called back on the event loop. torch releases the GIL while it computes, so one
thread per core keeps the loop free for health checks and for reading other requests. torch's own thread count is set in
each thread: left to its default, every scoring thread would start as many OpenMP threads as the machine has cores.

Threads wake each other by writing to an eventfd, which releases the GIL. Locks and queues of the standard library wake
a thread while its waker holds the GIL, so that it runs into that and sleeps again: four switches of threads for a
request that needs two.
"""

import asyncio
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch

STALLED_SECONDS = 10.0
_ONE = (1).to_bytes(8, sys.byteorder)


class Job:
    """A job that was submitted. `settle` takes its result, or None and its error, on the event loop."""

    __slots__ = ("is_cancelled", "run", "settle")

    def __init__(self, run: Callable[[], Any], settle: Callable[[Any, BaseException | None], None]) -> None:
        self.run = run
        self.settle = settle
        self.is_cancelled = False

    def cancel(self) -> None:
        """Stop waiting. A job that has not begun never begins. To be called on the event loop."""
        self.is_cancelled = True

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Settle it, on the event loop."""
        if not self.is_cancelled:
            self.settle(result, error)


class ScoringThreads:
    """`threads` scoring threads of `torch_threads` torch threads each. One event loop submits all jobs."""

    def __init__(self, threads: int, torch_threads: int) -> None:
        self._jobs: deque[Job | None] = deque()
        self._jobs_ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._done: _Done | None = None
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
        job = self.prepare(run, settle)
        self._put(job)
        return job

    def prepare(self, run: Callable[[], Any], settle: Callable[[Any, BaseException | None], None]) -> Job:
        """The same, once it is handed to `begin`, which has to happen."""
        job = Job(run, settle)
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the scoring threads have ended")
            if self._done is None:
                self._done = _Done(asyncio.get_running_loop())
            if not self._pending:
                self._last_progress = time.monotonic()
            self._pending += 1
        return job

    def begin(self, job: Job) -> None:
        """Let a prepared job be run. Called by any thread. After `close` it never is."""
        with self._lock:
            if not self._is_closed:
                self._put(job)

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
        """Wait for the jobs that were given and end the threads. To be called on the event loop."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        for _ in self._threads:
            self._put(None)
        for thread in self._threads:
            thread.join()
        os.close(self._jobs_ready)
        if self._done is not None:
            self._done.close()

    def _put(self, job: Job | None) -> None:
        self._jobs.append(job)
        os.write(self._jobs_ready, _ONE)

    def _work(self, torch_threads: int) -> None:
        torch.set_num_threads(torch_threads)
        # Scores that are not finite are looked for and refused. To say so for each costs as much as adding them up.
        np.seterr(over="ignore", invalid="ignore")
        with torch.inference_mode():
            self._run_jobs()

    def _run_jobs(self) -> None:
        while os.read(self._jobs_ready, len(_ONE)):
            job = self._jobs.popleft()
            if job is None:
                return
            outcome = None if job.is_cancelled else _outcome(job)
            with self._lock:  # before the result is out: a caller then finds no job that waits
                self._pending -= 1
                self._last_progress = time.monotonic()
            if outcome is not None:
                assert self._done is not None
                self._done.put(job, *outcome)
            del job, outcome  # an idle thread keeps no request alive


def _outcome(job: Job) -> tuple[Any, BaseException | None]:
    """Run the job. Its result and its error."""
    try:
        return job.run(), None
    except BaseException as error:
        return None, error


class _Done:
    """Jobs that are done, on their way to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: deque[tuple[Job, Any, BaseException | None]] = deque()
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.add_reader(self._ready, self._finish_jobs)

    def put(self, job: Job, result: Any, error: BaseException | None) -> None:
        """Queue a job for the loop to settle."""
        self._jobs.append((job, result, error))
        os.write(self._ready, _ONE)

    def close(self) -> None:
        """Settle what is there, and nothing more."""
        self._finish_all()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.remove_reader(self._ready)
        os.close(self._ready)

    def _finish_jobs(self) -> None:
        os.read(self._ready, len(_ONE))  # how many there are
        self._finish_all()

    def _finish_all(self) -> None:
        while self._jobs:
            try:
                job, *outcome = self._jobs.popleft()
                job.finish(*outcome)
            except Exception as error:  # the fault of one request, of which the others must not suffer
                self._loop.call_exception_handler({"message": "a job was not settled", "exception": error})
