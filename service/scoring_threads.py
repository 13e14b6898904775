"""Scoring off the event loop: a fixed number of threads, and whether they make progress.

In: callables. Out: their results, awaited. torch releases the GIL while it computes, so one thread per core keeps the
loop free for health checks and for reading other requests. torch's own thread count is set in each thread: left to
its default, every scoring thread would start as many OpenMP threads as the machine has cores.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

STALLED_SECONDS = 10.0

Result = TypeVar("Result")


class ScoringThreads:
    """`threads` scoring threads of `torch_threads` torch threads each."""

    def __init__(self, threads: int, torch_threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "scoring", torch.set_num_threads, (torch_threads,))
        self._lock = threading.Lock()
        self._pending = 0
        self._last_progress = time.monotonic()

    async def run(self, job: Callable[[], Result]) -> Result:
        """Runs a job in a scoring thread. If the caller stops waiting before it has begun, it never begins."""
        with self._lock:
            if not self._pending:
                self._last_progress = time.monotonic()
            self._pending += 1
        future = self._executor.submit(job)
        future.add_done_callback(self._finished)
        return await asyncio.wrap_future(future)

    @property
    def is_stalled(self) -> bool:
        """Whether jobs wait and none has ended for STALLED_SECONDS."""
        with self._lock:
            return self._pending > 0 and time.monotonic() - self._last_progress > STALLED_SECONDS

    def close(self) -> None:
        """Waits for the running jobs and ends the threads."""
        self._executor.shutdown()

    def _finished(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1
            self._last_progress = time.monotonic()
