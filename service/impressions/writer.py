"""The impression log: scored requests written to rotated files by a thread of its own, off unless switched on.

In: impressions, offered after their answers have left. Out: lines in rotated files
(service/log_files/rotated_files.py), which become Parquet once they are closed (service/impressions/convert.py). What
waits to be written is bounded: a disk that is full or slow costs lines, which are counted and logged once a minute,
never a request. Lines of JSON first: what a killed process had written can be read to the last whole line, while a
Parquet file without its end is lost whole. Arrow also stays out of the process that serves.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from service.base.background import nice
from service.base.clock import Clock
from service.base.log import FieldLogger, Throttle
from service.base.record import RequestRecord
from service.impressions.convert import POLL_SECONDS, Conversion
from service.impressions.folder import impression_files
from service.impressions.line import Impression, LineSettings
from service.log_files.rotated_files import RotatedFiles
from service.metrics.metrics import Metrics
from service.models.labels import IMPRESSION_SEED, falls_within
from service.rank.scored_request import ScoredRequest

MAX_HELD_BYTES = 32 * 2**20
DRAIN_SECONDS = 5.0
_FILE_BYTES = 64 * 2**20
_AGE_SECONDS = 3600.0
_WRITE_BYTES = 2**20
_NICENESS = 10
_NO_KEY = "a model knows the user of a request, whose hash needs a key; start the service with --user-hash-key FILE"

_Loss = Literal["dropped", "failed", "no_key"]
_LOSSES: tuple[_Loss, ...] = get_args(_Loss)

_log = FieldLogger("impressions")


class ImpressionLog:
    """The impression log of one worker of `workers`. `take_request` and `offer` never wait for the disk."""

    def __init__(
        self, folder: Path, metrics: Metrics, clock: Clock, settings: LineSettings, *, max_bytes: int, workers: int
    ) -> None:
        # Beside the whole files every worker has one that it writes, and one that a killed worker left. One of the
        # folder is in both kinds while it becomes Parquet.
        file_bytes = min(_FILE_BYTES, max_bytes // (8 * workers))
        self._files = RotatedFiles(
            impression_files(folder),
            clock,
            file_bytes=file_bytes,
            keep_bytes=max_bytes - (2 * workers + 1) * file_bytes,
            age_seconds=_AGE_SECONDS,
            on_removed=metrics.impression_files_removed.inc,
            on_closed=lambda: self._conversion.start(),
        )
        self._conversion = Conversion(folder, metrics.impression_conversions_failed.inc)
        self._clock = clock
        self._settings = settings
        self._written = metrics.impressions.labels("written")
        self._losses = _Losses(metrics)
        self._changed = threading.Condition()
        self._queue: deque[Impression] = deque()
        self._held_bytes = 0
        self._in_hand = 0
        self._is_closing = False
        self._is_given_up = False
        self._thread = threading.Thread(target=self._work, name="impressions", daemon=True)

    def start(self) -> None:
        """Start the writing thread."""
        self._thread.start()

    def take_request(self, record: RequestRecord, request: ScoredRequest) -> None:
        """Log a scored request once its answer has left, where the sample has it.

        The sample goes by a hash of the request id: all who see the same id decide alike. Requests of a model that
        knows their user are refused and counted where there is no key for its hash."""
        if not falls_within(record.request_id, self._settings.share, IMPRESSION_SEED):
            return
        if self._settings.user_hash_key is None and request.encoded.model.scorer.manifest.user is not None:
            self._losses.count("no_key", 1, _NO_KEY)
        else:
            record.after_answer.append(partial(self._enqueue, Impression.of(request, self._clock.now())))

    def _enqueue(self, impression: Impression) -> None:
        """Queue a line, or count it as dropped where too much waits already."""
        with self._changed:
            # One request alone may be over the bound: it is kept anyway.
            has_room = not self._held_bytes or self._held_bytes + impression.held_bytes <= MAX_HELD_BYTES
            is_kept = has_room and not self._is_closing
            if is_kept:
                self._queue.append(impression)
                self._held_bytes += impression.held_bytes
                self._changed.notify()
        if not is_kept:
            self._losses.count("dropped", 1, "the disk is too slow for what is logged")

    def stop(self) -> None:
        """Write what waits, close the file and have it converted, within DRAIN_SECONDS."""
        ends_at = time.monotonic() + DRAIN_SECONDS
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(DRAIN_SECONDS)
        with self._changed:
            left = len(self._queue) + self._in_hand
            self._queue.clear()
            self._is_given_up = True
        if left:
            self._losses.count("dropped", left, f"not written within {DRAIN_SECONDS:g} s at the end")
        self._losses.log_losses()
        self._conversion.finish(ends_at - time.monotonic())

    def _work(self) -> None:
        nice(_NICENESS)
        self._count_failure_of(self._files.tidy_folder)
        self._conversion.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._is_closing, self._seconds_left())
                batch = list(self._queue)
                self._queue.clear()
                self._in_hand = len(batch)
                is_over = self._is_closing and not batch
            self._write(batch)
            if is_over or self._files.seconds_left == 0:
                self._count_failure_of(self._files.close)
            if is_over:
                return

    def _seconds_left(self) -> float | None:
        """Seconds until there is work. None where there is none."""
        seconds = self._files.seconds_left
        if not self._conversion.is_running():
            return seconds
        return POLL_SECONDS if seconds is None else min(POLL_SECONDS, seconds)

    def _write(self, batch: list[Impression]) -> None:
        most = min(_WRITE_BYTES, self._files.file_bytes)
        lines: list[bytes] = []
        size = held = 0
        for impression in batch:
            try:
                line = impression.line(self._settings)
            except Exception:  # the thread must outlive any surprise in a request
                _log.exception("an impression could not be written")
                line = b""
            if line and len(line) <= self._files.file_bytes:
                if lines and size + len(line) > most:
                    self._append(lines, held)
                    lines, size, held = [], 0, 0
                lines.append(line)
                size += len(line)
                held += impression.held_bytes
            else:
                what = f"a line is over the {self._files.file_bytes} bytes of a file" if line else "not JSON"
                self._finish(0, 1, impression.held_bytes, what)
        if lines:
            self._append(lines, held)

    def _append(self, lines: list[bytes], held_bytes: int) -> None:
        written, error = self._files.append(lines)
        self._finish(written, len(lines) - written, held_bytes, "" if error is None else _reason(error))

    def _finish(self, written: int, failed: int, held_bytes: int, reason: str) -> None:
        with self._changed:
            self._held_bytes -= held_bytes
            self._in_hand -= written + failed
            if self._is_given_up:
                return  # counted already
        self._written.inc(written)
        if failed:
            self._losses.count("failed", failed, reason)

    def _count_failure_of(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self._losses.count("failed", 0, _reason(error))


class _Losses:
    """Counts what is lost, and says so at once but not again within a minute."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = {result: metrics.impressions.labels(result) for result in _LOSSES}
        self._lock = threading.Lock()
        self._untold = dict.fromkeys(_LOSSES, 0)
        self._reason = ""
        self._throttle = Throttle()

    def count(self, result: _Loss, lines: int, reason: str) -> None:
        self._metrics[result].inc(lines)
        with self._lock:
            self._untold[result] += lines
            self._reason = reason
            is_due = self._throttle.is_due()
        if is_due:
            self.log_losses()

    def log_losses(self) -> None:
        """Log what has not been logged."""
        with self._lock:
            untold, self._untold = self._untold, dict.fromkeys(_LOSSES, 0)
            reason, self._reason = self._reason, ""
        if reason:
            _log.warning("impressions are not logged", **untold, reason=reason)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
