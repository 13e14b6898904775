"""The way of log lines to stderr: a bounded queue and a thread that writes, so that nothing waits for their reader.

In: whole lines. Out: the same lines on a descriptor, whole ones in each write. Whoever reads a pipe of 64 KiB and stops
would otherwise stop every thread that logs, and with it scoring, probes and the end of the service. Lines that find the
queue full are dropped and counted, and said once lines are read again.
"""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

MAX_HELD_BYTES = 4 * 2**20
# At the end of the process, for what waits.
FLUSH_SECONDS = 2.0
# Of several processes that write to one pipe, only writes up to this stay whole.
_WRITE_BYTES = select.PIPE_BUF
# After lines the thread rests for so long, and lines that come meanwhile are written together: waking it for each costs
# more than the line.
_REST_SECONDS = 0.02
_LOG_SECONDS = 10.0


class LogQueue:
    """Lines on their way to `descriptor`. `dropped_line` makes the line that says how many were dropped.

    `put` may be called at any time, also by a signal handler or a finaliser that interrupts another `put`."""

    def __init__(self, descriptor: int, dropped_line: Callable[[int], bytes]) -> None:
        self._descriptor = descriptor
        self._dropped_line = dropped_line
        self._dropped = 0
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        # The lock is reentrant. What waited before a fork is the parent's to write, and its thread is not here.
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._lines: deque[bytes] = deque()
        self._held_bytes = 0
        self._untold = 0
        self._thread: threading.Thread | None = None

    def put(self, line: bytes) -> None:
        """Queue a line, or drop it where too much waits already. Never waits."""
        with self._changed:
            if self._held_bytes + len(line) > MAX_HELD_BYTES:
                self._drop(1)
                return
            self._lines.append(line)
            self._held_bytes += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="log", daemon=True)
                self._thread.start()
            self._changed.notify()

    def take_dropped(self) -> int:
        """Lines dropped since the last call, for a counter."""
        with self._changed:
            dropped, self._dropped = self._dropped, 0
        return dropped

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Wait until all is written, but no longer than that."""
        self._closing.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._held_bytes, seconds)

    def _drop(self, lines: int) -> None:
        with self._changed:
            self._dropped += lines
            self._untold += lines

    def _work(self) -> None:
        said_at = -_LOG_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                batch = self._take_batch()
            if not self._write(b"".join(batch)):
                self._drop(len(batch))
            elif self._untold and time.monotonic() - said_at > _LOG_SECONDS:
                said_at = time.monotonic()
                self._write_dropped()
            with self._changed:
                self._held_bytes -= sum(map(len, batch))
                self._changed.notify_all()
                is_last = not self._lines
            if is_last:
                self._closing.wait(_REST_SECONDS)

    def _take_batch(self) -> list[bytes]:
        batch = [self._lines.popleft()]
        size = len(batch[0])
        while self._lines and size + len(self._lines[0]) <= _WRITE_BYTES:
            batch.append(self._lines.popleft())
            size += len(batch[-1])
        return batch

    def _write_dropped(self) -> None:
        with self._changed:
            untold, self._untold = self._untold, 0
        self._write(self._dropped_line(untold))

    def _write(self, content: bytes) -> bool:
        """Writes everything. False where stderr has no reader any more or the disk is full."""
        left = memoryview(content)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # the starter of the service has made it so
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:
                return False
        return True
