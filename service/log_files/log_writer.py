"""The writing thread of one worker's log: what both logs share, the impressions' and the events'.

In: entries, each with the time that it was taken at, from other threads. Out: lines in rotated files
(service/log_files/rotated_files.py), and a watermark (service/log_files/watermark.py). At least once a minute the file
is closed and the watermark moves, also where nothing came. Files and watermarks of writers that were killed are taken
over. A disk that hangs stops this thread alone.
"""

import math
import os
import select
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from service.base.clock import Clock
from service.log_files.line_counts import LineCounts
from service.log_files.rotated_files import RotatedFiles
from service.log_files.watermark import DeadWriter, Watermark, new_writer

# A file is closed, and the watermark moves, at least so often.
WATERMARK_SECONDS = 45.0
# As often as a simulation looks for it, whose hours are seconds.
REPLACED_SECONDS = 1.0
_ONE = (1).to_bytes(8, sys.byteorder)


class Entry(Protocol):
    """Something to write. `held_bytes` is what keeping it costs."""

    @property
    def held_bytes(self) -> int:
        """Bytes in memory."""


Written = TypeVar("Written", bound=Entry)


class LogWriter(ABC, Generic[Written]):
    """The writer of one log's files in a thread named `name`. A subclass puts entries into the queue, wakes the thread
    and writes them (`_write`). What comes within `gather_seconds` of the first one is written with it.

    The thread sleeps on an eventfd, and who wakes it holds no lock. One that is woken already is not woken again."""

    def __init__(self, files: RotatedFiles, clock: Clock, name: str, gather_seconds: float = 0.0) -> None:
        self._files = files
        self._clock = clock
        self._gather_seconds = gather_seconds
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Not sooner: an entry may come while the writer ends.
        weakref.finalize(self, os.close, self._wake).atexit = False
        self._is_woken = False
        # Entries, and the time each was taken at.
        self._queue: deque[tuple[datetime, Written]] = deque()
        self._held_bytes = 0
        self._is_closing = False
        self._writer = new_writer()
        self._watermark: Watermark | None = None
        self._due = _Due(REPLACED_SECONDS if clock.is_replaced else WATERMARK_SECONDS)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _put(self, entry_at: Callable[[datetime], Written]) -> Written:
        """Queue the entry of this moment, with the lock held. A watermark never passes the time of an entry whose lines
        are in no closed file."""
        taken_at = self._clock.now()
        entry = entry_at(taken_at)
        self._queue.append((taken_at, entry))
        self._held_bytes += entry.held_bytes
        return entry

    def _wake_thread(self) -> None:
        """Have what was queued written, once the lock is free again."""
        if not self._is_woken:
            self._is_woken = True
            os.write(self._wake, _ONE)

    def _close(self, seconds: float) -> None:
        """Write what waits and end the thread, waiting no longer than that."""
        with self._lock:
            self._is_closing = True
        os.write(self._wake, _ONE)
        self._thread.join(seconds)

    @abstractmethod
    def _write(self, batch: list[tuple[datetime, Written]]) -> None:
        """Write entries that were taken from the queue."""

    @abstractmethod
    def _fail(self, error: OSError) -> None:
        """Count and log a failure that belongs to no entry."""

    def _take_batch(self) -> list[tuple[datetime, Written]]:
        """Take entries from the queue, with the lock held."""
        batch = list(self._queue)
        self._queue.clear()
        return batch

    def _seconds_left(self) -> float:
        """Seconds until there is work though nothing comes."""
        return self._due.seconds_left

    def _begin(self) -> None:
        """First work of the thread."""
        self._tidy_folder()

    def _step(self) -> None:
        """Work beside writing."""

    def _write_losses(self) -> None:
        """Write lines that say what is lost, before the file is closed. Raises OSError."""

    def _write_loss_of(self, dead: DeadWriter, lost: int) -> None:
        """Write a line that says how many of a dead writer's lines are lost. Raises OSError."""

    def _work(self) -> None:
        self._begin()
        while True:
            self._wait()
            with self._lock:
                self._is_woken = False
                batch = self._take_batch()
                is_over = self._is_closing and not batch
            if batch:
                self._write(batch)
            self._step()
            if is_over or self._due.has_come():
                self._move_watermark()
            if is_over:
                self._end()
                return

    def _wait(self) -> None:
        """Sleep until there is something to do."""
        if self._queue or self._is_closing:  # a batch had no room for all
            return
        waking = select.poll()
        waking.register(self._wake, select.POLLIN)
        if waking.poll(math.ceil(1000 * self._seconds_left())):
            os.read(self._wake, len(_ONE))
            if self._gather_seconds and not self._is_closing:
                time.sleep(self._gather_seconds)

    def _move_watermark(self) -> None:
        """Close the file and say how far the log is whole."""
        self._due.begin_again()
        try:
            self._write_losses()
            self._files.close()
            with self._lock:
                now = self._clock.now()
                watermark = self._queue[0][0] if self._queue else now
            if self._watermark is not None:
                self._watermark.move(watermark, now)
        except OSError as error:
            self._fail(error)
        self._tidy_folder()

    def _tidy_folder(self) -> None:
        """Publish a first watermark. Name what dead writers left, say what of them is lost, and forget them."""
        try:
            if self._watermark is None:
                self._watermark = Watermark(self._files.log, self._writer)
                now = self._clock.now()
                self._watermark.move(now, now)
            dead = self._watermark.dead_writers()
            is_settled = self._files.tidy_folder()
            for writer in dead:
                self._take_over(writer, is_settled=is_settled)
        except OSError as error:
            self._fail(error)

    def _take_over(self, dead: DeadWriter, *, is_settled: bool) -> None:
        try:
            if is_settled:
                lost = LineCounts.lost_by(dead.writer)
                if lost:
                    # In a closed file before its watermark goes, which keeps the time open that the line is of.
                    self._write_loss_of(dead, lost)
                    self._files.close()
                LineCounts.remove_of(dead.writer)
                dead.remove_watermark()
        finally:
            dead.close()

    def _may_forget(self) -> bool:
        """True where nothing of this writer is left to be said by the next one."""
        return True

    def _end(self) -> None:
        if self._watermark is not None and not self._files.is_open and self._may_forget():
            self._watermark.close()


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
