"""A job of the page in a thread of its own, one at a time over all workers.

In: a function, and a folder that workers share, None of a single one. Out: its result on the event loop. The thread has
the lowest priority, and gives up the interpreter's lock often.
"""

import asyncio
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch

from service.base.background import nice, short_intervals
from service.base.errors import Problem

T = TypeVar("T")
_NICENESS = 19
_FILE = "play.lock"


class OneJob:
    """Jobs of one process."""

    def __init__(self, shared: Path | None) -> None:
        self._shared = shared
        self._mine = threading.Lock()

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`. Raises Problem 429 while another job runs, and what `work` raises."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(result)  # type: ignore[arg-type]
            else:
                done.set_exception(error)

        def act() -> None:
            nice(_NICENESS)
            torch.set_num_threads(1)  # of this thread's own work
            result, failure = None, None
            try:
                with self._alone(), short_intervals():
                    result = work()
            except BaseException as error:
                failure = error
            with suppress(RuntimeError):  # the loop has ended with the service
                loop.call_soon_threadsafe(settle, result, failure)

        threading.Thread(target=act, name="play", daemon=True).start()
        return await done

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep every other job out. Raises Problem 429 where one is in."""
        if not self._mine.acquire(blocking=False):
            raise _busy()
        try:
            if self._shared is None:
                yield
                return
            descriptor = os.open(self._shared / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                _lock(descriptor)
                yield
            finally:
                os.close(descriptor)
        finally:
            self._mine.release()


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy() from None


def _busy() -> Problem:
    return Problem(429, "a comparison is running; try again when it has ended", headers={"Retry-After": "2"})
