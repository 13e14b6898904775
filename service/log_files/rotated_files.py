"""Lines in files of bounded size, and a bound on what the files of a log take together.

In: blocks of encoded lines. Out: files of a `LogFolder`, readable by their owner alone, in the order of their names. A
file gets its name when it is full or its writer closes it, so a reader meets whole lines only. Until then it is hidden,
ends in `.part` and is locked by its writer. What a writer leaves that died without closing is cut after its last whole
line and named by the next one. Several processes may write to one folder, each by one thread. What is closed may become
Parquet: the same name but for its end, bounded with the others.
"""

import fcntl
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

from service.base.clock import Clock
from service.log_files import shipped
from service.log_files.folder import LINES, PARQUET, LogFolder, closed_name, create_locked

_BLOCK = 65_536


class RotatedFiles:
    """The files of one writer. Whole files of the log beyond `keep_bytes` are removed, the oldest first but for those
    that `may_remove` denies, and `on_removed` is called with their number. At most `file_bytes` come on top of them for
    each writer. None keeps them all. `on_closed` is called when a file has been closed."""

    def __init__(
        self,
        log: LogFolder,
        clock: Clock,
        *,
        file_bytes: int,
        keep_bytes: int | None,
        may_remove: Callable[[Path], bool] = lambda _: True,
        on_removed: Callable[[int], None] = lambda _: None,
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        self.file_bytes = file_bytes
        self.log = log
        self._clock = clock
        self._keep_bytes = keep_bytes
        self._may_remove = may_remove
        self._on_removed = on_removed
        self._on_closed = on_closed
        self._descriptor: int | None = None
        self._name = ""
        self._size = 0

    @property
    def total_bytes(self) -> int:
        """Bytes of all files of the log, open ones included. Raises OSError."""
        total = 0
        for file in (*self.log.named(LINES), *self.log.named(PARQUET), *self.log.open_files()):
            with suppress(FileNotFoundError):
                total += file.stat().st_size
        return total

    def append(self, blocks: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Writes blocks of whole lines, together at most `file_bytes`. Returns how many blocks a reader will find, and
        what stopped the others, of which it will find nothing."""
        data = b"".join(blocks)
        assert len(data) <= self.file_bytes, "more than a file may have"
        try:
            if self._descriptor is not None and self._size + len(data) > self.file_bytes:
                self.close()
            if self._descriptor is None:
                self._open()
        except OSError as error:
            return 0, error
        assert self._descriptor is not None
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, memoryview(data)[done:])
        except OSError as error:
            ends = [end for end in accumulate(map(len, blocks)) if end <= done]
            self._size += ends[-1] if ends else 0
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:  # part of a block stays at its end: of a line it is left for `tidy_folder` to cut
                self._close_unnamed()
            return len(ends), error
        self._size += done
        return len(blocks), None

    @property
    def is_open(self) -> bool:
        """True while there is a file that has no name yet."""
        return self._descriptor is not None

    def sync(self) -> None:
        """Brings what is written to the disk. Raises OSError."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def descriptor_copy(self) -> int | None:
        """A duplicate of the open file's descriptor, for fsync by another thread. None where no file is open."""
        return None if self._descriptor is None else os.dup(self._descriptor)

    def close(self) -> None:
        """Name the file, so that readers see it, and tidy the folder. Raises OSError."""
        if self._descriptor is not None:
            try:
                os.fsync(self._descriptor)
                _publish(self._part, self._descriptor, self.log.path / self._name)
            finally:
                self._close_unnamed()
            self._on_closed()
        self.tidy_folder()

    def tidy_folder(self) -> bool:
        """Name what dead writers left, and remove the oldest files beyond the bound. Returns whether everything that
        is left has a name. Raises OSError."""
        is_settled = True
        for part in self.log.open_files():
            if (whole := closed_name(part)) is not None:
                try:
                    self._take_over(part, whole)
                except (BlockingIOError, FileNotFoundError):  # another writer's: at work, or just taken care of
                    continue
                except OSError:  # not ours to touch
                    is_settled = False
        if self._keep_bytes is not None:
            self._remove_oldest(self._keep_bytes)
        return is_settled

    def _remove_oldest(self, keep_bytes: int) -> None:
        sizes = {}
        files = [*self.log.named(LINES), *self.log.named(PARQUET)]
        for file in sorted(files, key=lambda file: file.stem):
            with suppress(FileNotFoundError):
                sizes[file] = file.stat().st_size
        excess, removed = sum(sizes.values()) - keep_bytes, 0
        for file, size in sizes.items():
            if excess <= 0:
                break
            if not self._may_remove(file):
                continue
            with suppress(FileNotFoundError):  # another writer of the folder was faster
                file.unlink()
                removed += 1
            if not any(file.with_suffix(suffix).exists() for suffix in (LINES, PARQUET)):
                shipped.forget(file)
            excess -= size
        if removed:
            self._on_removed(removed)

    @property
    def _part(self) -> Path:
        return self.log.path / f".{self._name}.part"

    def _open(self) -> None:
        now = self._clock.now().strftime("%Y%m%dT%H%M%S.%f")
        self._name = f"{self.log.prefix}{now}-{uuid.uuid4().hex[:8]}{LINES}"
        self._descriptor, self._size = create_locked(self._part), 0

    def _close_unnamed(self) -> None:
        assert self._descriptor is not None
        descriptor, self._descriptor = self._descriptor, None
        os.close(descriptor)

    @staticmethod
    def _take_over(part: Path, whole: Path) -> None:
        descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, _end_of_last_line(descriptor))
            _publish(part, descriptor, whole)
        finally:
            os.close(descriptor)


def _publish(part: Path, descriptor: int, whole: Path) -> None:
    if os.fstat(descriptor).st_size:
        part.rename(whole)
    else:
        part.unlink()


def _end_of_last_line(descriptor: int) -> int:
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
