"""The event log of a worker: events are on the disk before they are accepted.

In: the lines of one request at a time, from the event loop. Out: lines of JSON in the files of a log writer
(service/log_files/log_writer.py), `events-<UTC>-<token>.jsonl`, each event with the time of its receipt. A thread of
its own writes: many requests share one write(2), and a disk that hangs stops neither the event loop nor a scoring
thread. A request is accepted when its lines are written, all of them or none. fsync follows within `sync_seconds`, in
another thread. A log that has reached its bound refuses events until there is room. What is shipped may be removed to
make it, and nothing else ever is.
"""

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue

from service.base.clock import Clock
from service.base.errors import Problem
from service.base.log import FieldLogger, Throttle
from service.log_files import shipped
from service.log_files.folder import LogFolder
from service.log_files.log_writer import LogWriter
from service.log_files.rotated_files import RotatedFiles
from service.metrics.metrics import Metrics

PREFIX = "events-"
# How long a request waits for the disk before it is refused, and how much may wait for it.
WRITE_SECONDS = 2.0
_MAX_HELD_BYTES = 32 * 2**20
_FILE_BYTES = 64 * 2**20
_FULL_SECONDS = 5.0
_STOP_SECONDS = 5.0

_log = FieldLogger("events")


def event_files(folder: Path) -> LogFolder:
    """The files of the event log in a folder."""
    return LogFolder(folder, PREFIX)


# Takes the time of receipt once the lines are written, or why they are not.
Done = Callable[[datetime | Problem], None]


@dataclass(eq=False, slots=True)
class _Block:
    """The lines of one request, and who waits for them, until a time of the event loop's clock."""

    received: datetime
    lines: bytes
    events: int
    deadline: float
    done: Done | None

    @property
    def held_bytes(self) -> int:
        """Bytes of the lines."""
        return len(self.lines)

    def settle(self, problem: Problem | None) -> None:
        """Tell who waits, once. To be called on the event loop."""
        done, self.done = self.done, None
        if done is not None:
            done(self.received if problem is None else problem)


class EventLog(LogWriter[_Block]):
    """The event log of one worker. `append` is called on one event loop."""

    def __init__(
        self,
        folder: Path,
        metrics: Metrics,
        clock: Clock,
        *,
        max_bytes: int,
        sync_seconds: float,
        workers: int = 1,
        is_shipped: bool = False,
    ) -> None:
        files = RotatedFiles(
            event_files(folder),
            clock,
            file_bytes=_FILE_BYTES,
            # So that there is room again before the log is full: each worker has a file open.
            keep_bytes=max(0, max_bytes - (workers + 1) * _FILE_BYTES) if is_shipped else None,
            may_remove=shipped.is_shipped,
        )
        super().__init__(files, clock, "events")
        self._max_bytes = max_bytes
        self._sync_seconds = sync_seconds
        self._results = {result: metrics.event_log.labels(result) for result in ("written", "full", "slow", "failed")}
        self._total_bytes = 0
        self._sync_due: float | None = None
        # Those of the event loop: the blocks that nobody was told of, in their order, and what looks for late ones.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[_Block] = deque()
        self._late: asyncio.TimerHandle | None = None
        self._throttle = Throttle()
        self._error: OSError | None = None
        self._to_sync: SimpleQueue[int | None] = SimpleQueue()
        self._sync_thread = threading.Thread(target=self._sync, name="events-sync", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        super().start()
        self._sync_thread.start()

    def append(self, lines_at: Callable[[datetime], bytes], events: int, done: Done) -> None:
        """Write the lines that `lines_at` makes for a time of receipt. `done` takes that once they are written, or
        Problem 503: the disk fails or is too slow. Raises Problem 503 where the log is full. All lines are written or
        none, and who sends them again does no harm: events have identities."""
        loop = self._loop = asyncio.get_running_loop()
        with self._lock:
            if self._is_closing:
                raise _refused("the service is shutting down", 1)
            if self._total_bytes + self._held_bytes > self._max_bytes:
                self._results["full"].inc(events)
                raise _refused("the event log has reached its bound", _FULL_SECONDS)
            if self._held_bytes > _MAX_HELD_BYTES:
                self._results["slow"].inc(events)
                raise _refused("the disk of the event log is too slow for what comes", 1)
            deadline = loop.time() + WRITE_SECONDS
            block = self._put(lambda received: _Block(received, lines_at(received), events, deadline, done))
        self._waiting.append(block)
        if self._late is None:
            self._late = loop.call_at(deadline, self._refuse_late)
        self._wake_thread()

    def _refuse_late(self) -> None:
        """Refuse what has waited too long. A block that is not in the queue any more is being written: what is sent
        again is undone by its identity."""
        assert self._loop is not None
        self._late = None
        while self._waiting and self._waiting[0].deadline <= self._loop.time():
            block = self._waiting.popleft()
            with self._lock, suppress(ValueError):
                self._queue.remove((block.received, block))
                self._held_bytes -= block.held_bytes
            self._results["slow"].inc(block.events)
            block.settle(_refused(f"the disk of the event log took more than {WRITE_SECONDS:g} s", 1))
        if self._waiting:
            self._late = self._loop.call_at(self._waiting[0].deadline, self._refuse_late)

    def _settle(self, blocks: Sequence[_Block], written: int) -> None:
        """Tell who waits for these blocks that so many of them are written. Runs on the event loop."""
        assert self._loop is not None
        for number, block in enumerate(blocks):
            try:
                block.settle(None if number < written else _refused("the event log cannot be written", 1))
            except Exception as error:  # the fault of one request, of which the others must not suffer
                self._loop.call_exception_handler({"message": "events were not settled", "exception": error})
        while self._waiting and self._waiting[0].done is None:
            self._waiting.popleft()

    def stop(self) -> None:
        """Write what waits, close the file and take the watermark away."""
        self._close(_STOP_SECONDS)
        self._to_sync.put(None)

    def _take_batch(self) -> list[tuple[datetime, _Block]]:
        """Take waiting blocks, as many as one file takes."""
        batch: list[tuple[datetime, _Block]] = []
        size = 0
        while self._queue and size + self._queue[0][1].held_bytes <= _FILE_BYTES:
            batch.append(self._queue.popleft())
            size += batch[-1][1].held_bytes
        return batch

    def _seconds_left(self) -> float:
        seconds = super()._seconds_left()
        if self._total_bytes > self._max_bytes:
            seconds = min(seconds, _FULL_SECONDS)
        if self._sync_due is not None:
            seconds = min(seconds, max(0.0, self._sync_due - time.monotonic()))
        return seconds

    def _write(self, batch: list[tuple[datetime, _Block]]) -> None:
        blocks = [block for _, block in batch]
        if self._watermark is None:  # without one a join would not wait for these lines
            self._tidy_folder()
        done, error = 0, self._error
        if self._watermark is not None:
            done, error = self._files.append([block.lines for block in blocks])
        if done and self._sync_seconds == 0:
            try:
                self._files.sync()
            except OSError as failed:
                done, error = 0, failed
        elif done and self._sync_due is None:
            self._sync_due = time.monotonic() + self._sync_seconds
        with self._lock:
            self._held_bytes -= sum(block.held_bytes for block in blocks)
            self._total_bytes += sum(block.held_bytes for block in blocks[:done])
        self._results["written"].inc(sum(block.events for block in blocks[:done]))
        if error is not None:
            self._results["failed"].inc(sum(block.events for block in blocks[done:]))
            self._fail(error)
        assert self._loop is not None, "it put the blocks into the queue"
        with suppress(RuntimeError):  # the loop has ended, and with it those that waited
            self._loop.call_soon_threadsafe(self._settle, blocks, done)

    def _step(self) -> None:
        if self._sync_due is not None and time.monotonic() >= self._sync_due:
            self._sync_soon()
        if self._total_bytes > self._max_bytes:
            self._tidy_folder()

    def _move_watermark(self) -> None:
        super()._move_watermark()
        if not self._files.is_open:
            self._sync_due = None  # closing a file syncs it

    def _tidy_folder(self) -> None:
        """Tidy the folder and measure the log."""
        super()._tidy_folder()
        try:
            self._total_bytes = self._files.total_bytes
        except OSError as error:
            self._fail(error)

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
                self._fail(error)
            finally:
                os.close(descriptor)

    def _fail(self, error: OSError) -> None:
        self._error = error
        if self._throttle.is_due():
            _log.error("the event log fails", reason=error.strerror or str(error))


def _refused(detail: str, seconds: float) -> Problem:
    return Problem(503, f"{detail}; send the events again", reason="event_log", retry_after=round(seconds))
