"""The impression log: scored requests written to rotated files by a thread of its own, off unless switched on.

In: impressions, offered after their answers have left. Out: lines in the files of a log writer
(service/log_files/log_writer.py), which become Parquet once they are closed (service/impressions/convert.py). What
waits to be written is bounded: a disk that is full or slow costs lines, never a request. What is lost is counted,
logged once a minute, and said by a line of the log itself, also of a writer that was killed. Lines of JSON first: what
a killed process had written can be read to the last whole line, while a Parquet file without its end is lost whole.
Arrow also stays out of the process that serves.
"""

import math
import time
from datetime import datetime
from functools import partial
from pathlib import Path

from service.base.background import nice
from service.base.clock import Clock
from service.base.log import FieldLogger
from service.base.record import RequestRecord
from service.impressions.convert import POLL_SECONDS, Conversion
from service.impressions.folder import impression_files
from service.impressions.line import Impression, LineSettings, loss_line
from service.impressions.losses import Loss, Losses
from service.log_files import shipped
from service.log_files.line_counts import LineCounts
from service.log_files.log_writer import LogWriter
from service.log_files.rotated_files import RotatedFiles
from service.log_files.watermark import DeadWriter, lock_file_of
from service.metrics.metrics import Metrics
from service.models.labels import IMPRESSION_SEED, falls_within
from service.rank.scored_request import ScoredRequest

MAX_HELD_BYTES = 32 * 2**20
DRAIN_SECONDS = 5.0
_FILE_BYTES = 64 * 2**20
_WRITE_BYTES = 2**20
_NICENESS = 10
_NO_KEY = "a model knows the user of a request, whose hash needs a key; start the service with --user-hash-key FILE"
_FULL_SECONDS = 5.0
# What waits so long is written at once: a thread that wakes for every request would cost these.
_GATHER_SECONDS = 0.02
_FULL = "the log has reached its bound, and its files are not shipped yet"
_KILLED = "their writer was killed"

_log = FieldLogger("impressions")


class ImpressionLog(LogWriter[Impression]):
    """The impression log of one worker of `workers`. `take_request` and `offer` never wait for the disk."""

    def __init__(
        self,
        folder: Path,
        metrics: Metrics,
        clock: Clock,
        settings: LineSettings,
        *,
        max_bytes: int,
        workers: int,
        is_shipped: bool = False,
    ) -> None:
        # Beside the whole files every worker has one that it writes, and one that a killed worker left. One of the
        # folder is in both kinds while it becomes Parquet.
        file_bytes = min(_FILE_BYTES, max_bytes // (8 * workers))
        files = RotatedFiles(
            impression_files(folder),
            clock,
            file_bytes=file_bytes,
            keep_bytes=max_bytes - (2 * workers + 1) * file_bytes,
            may_remove=shipped.is_shipped if is_shipped else lambda _: True,
            on_removed=metrics.impression_files_removed.inc,
            on_closed=lambda: self._start_conversion(),
        )
        super().__init__(files, clock, "impressions", _GATHER_SECONDS)
        self._conversion = Conversion(folder, metrics.impression_conversions_failed.inc)
        self._settings = settings
        self._max_bytes = max_bytes if is_shipped else None
        self._is_full = False
        self._measures_at = 0.0
        self._written = metrics.impressions.labels("written")
        self._losses = Losses(metrics)
        self._counts = _new_counts(self._writer, lock_file_of(files.log, self._writer))
        self._in_hand = 0
        self._is_given_up = False

    def take_request(self, record: RequestRecord, request: ScoredRequest) -> None:
        """Log a scored request once its answer has left, where the sample has it.

        The sample goes by a hash of the request id: all who see the same id decide alike. Requests of a model that
        knows their user are refused and counted where there is no key for its hash."""
        if not falls_within(record.request_id, self._settings.share, IMPRESSION_SEED):
            return
        if self._settings.user_hash_key is None and request.encoded.model.user is not None:
            self._count_taken()
            self._losses.count("no_key", 1, _NO_KEY)
        else:
            # Counted before anybody can have the answer: a kill in between costs a line that is counted.
            record.before_answer.append(self._count_taken)
            record.after_answer.append(partial(self._enqueue, Impression.of(request)))

    def stop(self) -> None:
        """Write what waits, close the file and have it converted, within DRAIN_SECONDS."""
        ends_at = time.monotonic() + DRAIN_SECONDS
        self._close(DRAIN_SECONDS)
        with self._lock:
            left = len(self._queue) + self._in_hand
            self._queue.clear()
            self._is_given_up = True
        if left:
            self._losses.count("dropped", left, f"not written within {DRAIN_SECONDS:g} s at the end")
        self._losses.log_losses()
        self._conversion.finish(ends_at - time.monotonic())

    def _count_taken(self) -> None:
        if self._counts is not None:
            self._counts.add_taken(1)

    def _enqueue(self, impression: Impression) -> None:
        """Queue a line, or count it as dropped where too much waits already."""
        with self._lock:
            # One request alone may be over the bound: it is kept anyway.
            has_room = not self._held_bytes or self._held_bytes + impression.held_bytes <= MAX_HELD_BYTES
            is_kept = has_room and not self._is_closing
            if is_kept:
                self._put(lambda _: impression)
        if is_kept:
            self._wake_thread()
        else:
            self._losses.count("dropped", 1, "the disk is too slow for what is logged")

    def _begin(self) -> None:
        nice(_NICENESS)
        LineCounts.remove_orphans()
        super()._begin()
        self._conversion.start()

    def _take_batch(self) -> list[tuple[datetime, Impression]]:
        batch = super()._take_batch()
        self._in_hand = len(batch)
        return batch

    def _seconds_left(self) -> float:
        seconds = super()._seconds_left()
        return min(POLL_SECONDS, seconds) if self._conversion.is_running() else seconds

    def _is_over_bound(self) -> bool:
        """True where the folder is full of what is not shipped. Measured when a file was closed, and again and again
        while it is."""
        if self._max_bytes is not None and time.monotonic() >= self._measures_at:
            try:
                self._is_full = self._files.total_bytes > self._max_bytes
                if self._is_full:
                    self._files.tidy_folder()  # what is shipped by now makes room
            except OSError as error:
                self._fail(error)
            self._measures_at = time.monotonic() + _FULL_SECONDS if self._is_full else math.inf
        return self._is_full

    def _start_conversion(self) -> None:
        """A file was closed."""
        self._measures_at = 0.0
        self._conversion.start()

    def _write(self, batch: list[tuple[datetime, Impression]]) -> None:
        most = min(_WRITE_BYTES, self._files.file_bytes)
        lines: list[bytes] = []
        size = held = 0
        for taken_at, impression in batch:
            try:
                line = impression.line(taken_at, self._settings)
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
        if self._is_over_bound():
            self._finish(0, len(lines), held_bytes, _FULL, "full")
            return
        written, error = self._files.append(lines)
        self._finish(written, len(lines) - written, held_bytes, "" if error is None else _reason(error))

    def _finish(self, written: int, failed: int, held_bytes: int, reason: str, result: Loss = "failed") -> None:
        self._settle(written)
        with self._lock:
            self._held_bytes -= held_bytes
            self._in_hand -= written + failed
            if self._is_given_up:
                return  # counted already
        self._written.inc(written)
        if failed:
            self._losses.count(result, failed, reason)

    def _settle(self, lines: int) -> None:
        if self._counts is not None:
            self._counts.add_settled(lines)

    def _write_losses(self) -> None:
        for reason, lost in self._losses.unwritten():
            self._append_loss(self._clock.now(), lost, reason)
            self._losses.settle(reason, lost)
            self._settle(lost)

    def _write_loss_of(self, dead: DeadWriter, lost: int) -> None:
        self._append_loss(dead.last_time or self._clock.now(), lost, _KILLED)
        self._losses.count_written("killed", lost, _KILLED)

    def _append_loss(self, lost_at: datetime, lost: int, reason: str) -> None:
        _, error = self._files.append([loss_line(lost_at, lost, reason)])
        if error is not None:
            raise error

    def _fail(self, error: OSError) -> None:
        self._losses.count("failed", 0, _reason(error))

    def _may_forget(self) -> bool:
        return self._counts is None or self._counts.close()


def _new_counts(writer: str, lock_file: Path) -> LineCounts | None:
    try:
        return LineCounts(writer, lock_file)
    except OSError as error:
        _log.warning("lines that are lost by a kill will not be counted", reason=_reason(error))
        return None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
