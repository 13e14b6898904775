"""The event log of a worker: events are on the disk before they are accepted.

In: the lines of one request at a time, from the event loop. Out: lines of JSON in rotated files
(service/log_files/rotated_files.py), `events-<UTC>-<token>.jsonl`, each event with the time of its receipt. A thread of
its own writes: many requests share one write(2), and a disk that hangs stops neither the event loop nor a scoring
thread. A request is accepted when its lines are written, all of them or none. fsync follows within `sync_seconds`, in
another thread. Nothing is ever removed here: a log that has reached its bound refuses events until there is room.
"""

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue

from service.base.clock import Clock
from service.base.errors import Problem
from service.base.log import FieldLogger, Throttle
from service.log_files.folder import LogFolder
from service.log_files.rotated_files import RotatedFiles
from service.log_files.watermark import Watermark
from service.metrics.metrics import Metrics

PREFIX = "events-"
# How long a request waits for the disk before it is refused, and how much may wait for it.
WRITE_SECONDS = 2.0
_MAX_HELD_BYTES = 32 * 2**20
_FILE_BYTES = 64 * 2**20
# A file is closed, and the watermark moves, at least so often.
_WATERMARK_SECONDS = 30.0
# As often as a simulation looks for it, whose hours are seconds.
_REPLACED_SECONDS = 1.0
_FULL_SECONDS = 5.0
_STOP_SECONDS = 5.0

_log = FieldLogger("events")


def event_files(folder: Path) -> LogFolder:
    """The files of the event log in a folder."""
    return LogFolder(folder, PREFIX)


@dataclass(eq=False, slots=True)
class _Block:
    """The lines of one request, and who waits for them."""

    received: datetime
    lines: bytes
    events: int
    written: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


class EventLog:
    """The event log of one worker. `append` is called on the event loop."""

    def __init__(self, folder: Path, metrics: Metrics, clock: Clock, *, max_bytes: int, sync_seconds: float) -> None:
        self._folder = event_files(folder)
        self._clock = clock
        self._max_bytes = max_bytes
        self._sync_seconds = sync_seconds
        seconds = _REPLACED_SECONDS if clock.is_replaced else _WATERMARK_SECONDS
        self._files = RotatedFiles(self._folder, clock, file_bytes=_FILE_BYTES, keep_bytes=None, age_seconds=seconds)
        self._results = {result: metrics.event_log.labels(result) for result in ("written", "full", "slow", "failed")}
        self._changed = threading.Condition()
        self._queue: deque[_Block] = deque()
        self._held_bytes = 0
        self._total_bytes = 0
        self._is_closing = False
        self._watermark: Watermark | None = None
        self._due = _Due(seconds)
        self._sync_due: float | None = None
        self._throttle = Throttle()
        self._error: OSError | None = None
        self._to_sync: SimpleQueue[int | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="events", daemon=True)
        self._sync_thread = threading.Thread(target=self._sync, name="events-sync", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._thread.start()
        self._sync_thread.start()

    async def append(self, lines_at: Callable[[datetime], bytes], events: int) -> datetime:
        """Write the lines that `lines_at` makes for a time of receipt, and return that once they are written. Raises
        Problem 503: the log is full, or the disk fails or is too slow. All lines are written or none, and who sends
        them again does no harm: events have identities."""
        loop = asyncio.get_running_loop()
        with self._changed:
            if self._is_closing:
                raise _refused("the service is shutting down", 1)
            if self._total_bytes + self._held_bytes > self._max_bytes:
                self._results["full"].inc(events)
                raise _refused("the event log has reached its bound", _FULL_SECONDS)
            if self._held_bytes > _MAX_HELD_BYTES:
                self._results["slow"].inc(events)
                raise _refused("the disk of the event log is too slow for what comes", 1)
            # Under the lock: a watermark never passes a receipt whose lines are not in a closed file.
            received = self._clock.now()
            block = _Block(received, lines_at(received), events, loop.create_future(), loop)
            self._queue.append(block)
            self._held_bytes += len(block.lines)
            self._changed.notify()
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await block.written
        except TimeoutError:
            # Not in the queue any more, it is being written: what is sent again is undone by its identity.
            with self._changed, suppress(ValueError):
                self._queue.remove(block)
                self._held_bytes -= len(block.lines)
            self._results["slow"].inc(events)
            raise _refused(f"the disk of the event log took more than {WRITE_SECONDS:g} s", 1) from None
        return received

    def stop(self) -> None:
        """Write what waits, close the file and take the watermark away."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(_STOP_SECONDS)
        self._to_sync.put(None)

    def _work(self) -> None:
        self._tidy_folder()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._is_closing, self._seconds_left())
                batch = self._taken()
                is_over = self._is_closing and not batch
            self._write(batch)
            if self._sync_due is not None and time.monotonic() >= self._sync_due:
                self._sync_soon()
            if is_over or self._due.has_come():
                self._move_watermark()
            if is_over:
                self._end()
                return

    def _taken(self) -> list[_Block]:
        """Waiting blocks, as many as one file takes."""
        batch: list[_Block] = []
        size = 0
        while self._queue and size + len(self._queue[0].lines) <= _FILE_BYTES:
            batch.append(self._queue.popleft())
            size += len(batch[-1].lines)
        return batch

    def _seconds_left(self) -> float:
        """Seconds until there is work."""
        seconds = self._due.seconds_left
        if self._total_bytes > self._max_bytes:
            seconds = min(seconds, _FULL_SECONDS)
        if self._sync_due is not None:
            seconds = min(seconds, max(0.0, self._sync_due - time.monotonic()))
        return seconds

    def _write(self, batch: list[_Block]) -> None:
        if not batch:
            return
        if self._watermark is None:  # without one a join would not wait for these lines
            self._tidy_folder()
        done, error = 0, self._error
        if self._watermark is not None:
            done, error = self._files.append([block.lines for block in batch])
        if done and self._sync_seconds == 0:
            try:
                self._files.sync()
            except OSError as failed:
                done, error = 0, failed
        elif done and self._sync_due is None:
            self._sync_due = time.monotonic() + self._sync_seconds
        with self._changed:
            self._held_bytes -= sum(len(block.lines) for block in batch)
            self._total_bytes += sum(len(block.lines) for block in batch[:done])
        self._results["written"].inc(sum(block.events for block in batch[:done]))
        if error is not None:
            self._results["failed"].inc(sum(block.events for block in batch[done:]))
            self._log_failure(error)
        for number, block in enumerate(batch):
            problem = None if number < done else _refused("the event log cannot be written", 1)
            with suppress(RuntimeError):  # the loop has ended, and with it those that waited
                block.loop.call_soon_threadsafe(_set_outcome, block.written, problem)

    def _move_watermark(self) -> None:
        """Close the file and says how far the log is whole."""
        self._due.begin_again()
        try:
            self._files.close()
            self._sync_due = None  # closing a file syncs it
            with self._changed:
                now = self._clock.now()
                watermark = self._queue[0].received if self._queue else now
            if self._watermark is not None:
                self._watermark.move(watermark, now)
        except OSError as error:
            self._log_failure(error)
        self._tidy_folder()

    def _tidy_folder(self) -> None:
        """Name what dead writers left, forget their watermarks, and measure the log."""
        try:
            if self._watermark is None:
                self._watermark = Watermark(self._folder)
                now = self._clock.now()
                self._watermark.move(now, now)
            dead = self._watermark.dead_writers()
            is_settled = self._files.tidy_folder()
            for writer in dead:
                writer.forget(is_settled=is_settled)
            self._total_bytes = self._files.total_bytes
        except OSError as error:
            self._log_failure(error)

    def _sync_soon(self) -> None:
        self._sync_due = None
        descriptor = self._files.descriptor_copy()
        if descriptor is not None:
            self._to_sync.put(descriptor)

    def _sync(self) -> None:
        while (descriptor := self._to_sync.get()) is not None:
            try:
                os.fsync(descriptor)
            except OSError as error:
                self._log_failure(error)
            finally:
                os.close(descriptor)

    def _end(self) -> None:
        if self._watermark is not None and not self._files.is_open:
            self._watermark.close()

    def _log_failure(self, error: OSError) -> None:
        self._error = error
        if self._throttle.is_due():
            _log.error("the event log fails", reason=error.strerror or str(error))


class _Due:
    """A time that comes again and again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.begin_again()

    def begin_again(self) -> None:
        self._at = time.monotonic() + self._seconds

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._at - time.monotonic())

    def has_come(self) -> bool:
        return self.seconds_left == 0


def _set_outcome(written: asyncio.Future[None], problem: Problem | None) -> None:
    if written.done():
        return
    if problem is None:
        written.set_result(None)
    else:
        written.set_exception(problem)


def _refused(detail: str, seconds: float) -> Problem:
    headers = {"Retry-After": f"{seconds:.0f}"}
    return Problem(503, f"{detail}; send the events again", reason="event_log", headers=headers)
