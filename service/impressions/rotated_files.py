"""Lines in files of bounded size and age, and a bound on what the files of a folder take together.

In: encoded lines. Out: `<folder>/impressions-<UTC>-<token>.jsonl`, readable by their owner alone, in the order of
their names. A file gets that name when it is full or old, so a reader meets whole lines only. Until then it is hidden,
ends in `.part` and is locked by its writer. What a writer leaves that died without closing is cut after its last whole
line and named by the next one. Several processes may write to one folder, each by one thread. What is closed may become
Parquet (service/impressions/to_parquet.py): the same name but for its end, bounded with the others.
"""

import fcntl
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

PREFIX = "impressions-"
LINES, PARQUET = ".jsonl", ".parquet"
_PART = re.compile(rf"\.({re.escape(PREFIX)}.+{re.escape(LINES)})\.part")
_BLOCK = 65_536


def whole_files(folder: Path) -> list[Path]:
    """The files that are closed, oldest first. Of one in both kinds, which it is for a moment, the Parquet alone."""
    found = {file.stem: file for file in (*named(folder, LINES), *named(folder, PARQUET))}
    return [found[stem] for stem in sorted(found)]


def named(folder: Path, suffix: str) -> list[Path]:
    """The closed files of one kind, oldest first."""
    return sorted(folder.glob(f"{PREFIX}*{suffix}"))


def open_files(folder: Path) -> list[Path]:
    """The files that are being written, or that a dead writer left, oldest first."""
    return sorted(file for file in folder.iterdir() if closed_name(file) is not None)


def closed_name(file: Path) -> Path | None:
    """The file's path once it is closed. None where it is closed already."""
    found = _PART.fullmatch(file.name)
    return None if found is None else file.parent / found.group(1)


class RotatedFiles:
    """The files of one writer. Whole files of the folder beyond `keep_bytes` are removed, the oldest first, and
    `on_removed` is called with their number. At most `file_bytes` come on top of them for each writer. `on_closed` is
    called when a file has been closed."""

    def __init__(
        self,
        folder: Path,
        *,
        file_bytes: int,
        keep_bytes: int,
        age_seconds: float,
        on_removed: Callable[[int], None],
        on_closed: Callable[[], None],
    ) -> None:
        self.file_bytes = file_bytes
        self._folder = folder
        self._keep_bytes = keep_bytes
        self._age_seconds = age_seconds
        self._on_removed = on_removed
        self._on_closed = on_closed
        self._descriptor: int | None = None
        self._name = ""
        self._size = 0
        self._ends_at = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the file is old. None where there is none."""
        return None if self._descriptor is None else max(0.0, self._ends_at - time.monotonic())

    def append(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Writes lines, together at most `file_bytes`. Returns how many a reader will find, and what stopped the
        others."""
        data = b"".join(lines)
        assert len(data) <= self.file_bytes, "more than a file may hold"
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
            whole = data.rfind(b"\n", 0, done) + 1
            self._size += whole
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:  # half a line stays at its end: it is left for `settle` to cut
                self._abandon()
            return data.count(b"\n", 0, whole), error
        self._size += done
        return len(lines), None

    def close(self) -> None:
        """Names the file, so that readers see it, and tidies the folder. Raises OSError."""
        if self._descriptor is not None:
            try:
                os.fsync(self._descriptor)
                _publish(self._part, self._descriptor, self._folder / self._name)
            finally:
                self._abandon()
            self._on_closed()
        self.settle()

    def settle(self) -> None:
        """Names what dead writers left, and removes the oldest files beyond the bound. Raises OSError."""
        for part in sorted(self._folder.iterdir()):
            if (whole := closed_name(part)) is not None:
                with suppress(OSError):  # another writer's: at work, just taken care of, or not ours to touch
                    self._take_over(part, whole)
        sizes = {}
        files = [*named(self._folder, LINES), *named(self._folder, PARQUET)]
        for file in sorted(files, key=lambda file: file.stem):
            with suppress(FileNotFoundError):
                sizes[file] = file.stat().st_size
        excess, removed = sum(sizes.values()) - self._keep_bytes, 0
        for file, size in sizes.items():
            if excess <= 0:
                break
            with suppress(FileNotFoundError):  # another writer of the folder was faster
                file.unlink()
                removed += 1
            excess -= size
        if removed:
            self._on_removed(removed)

    @property
    def _part(self) -> Path:
        return self._folder / f".{self._name}.part"

    def _open(self) -> None:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        self._name = f"{PREFIX}{now}-{uuid.uuid4().hex[:8]}{LINES}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._part, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Before it was locked, another writer may have taken it for one that was left.
            if self._part.stat().st_ino != os.fstat(descriptor).st_ino:
                raise FileNotFoundError(2, "the new file is gone")
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._size = descriptor, 0
        self._ends_at = time.monotonic() + self._age_seconds

    def _abandon(self) -> None:
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
