"""The folder of a log: its files by name, whole ones and open ones.

A log's files begin with its prefix: `<prefix><UTC>-<token>.jsonl`, or `.parquet` once they were converted. Names sort
by time. A file that is being written is hidden and ends in `.part`.
"""

import fcntl
import os
import re
from pathlib import Path
from typing import NamedTuple

LINES, PARQUET = ".jsonl", ".parquet"
_PART = re.compile(rf"\.(.+{re.escape(LINES)})\.part")


class LogFolder(NamedTuple):
    """The files of one log in a folder, which may have others too."""

    path: Path
    prefix: str

    def whole_files(self) -> list[Path]:
        """The closed files, oldest first. Of one in both kinds, which it is for a moment, the Parquet alone."""
        found = {file.stem: file for file in (*self.named(LINES), *self.named(PARQUET))}
        return [found[stem] for stem in sorted(found)]

    def named(self, suffix: str) -> list[Path]:
        """The closed files of one kind, oldest first."""
        return sorted(self.path.glob(f"{self.prefix}*{suffix}"))

    def open_files(self) -> list[Path]:
        """The files that are being written, or that a dead writer left, oldest first."""
        return sorted(
            file
            for file in self.path.iterdir()
            if file.name.startswith(f".{self.prefix}") and closed_name(file) is not None
        )


def closed_name(file: Path) -> Path | None:
    """The file's path once it is closed. None where it is closed already."""
    found = _PART.fullmatch(file.name)
    return None if found is None else file.parent / found.group(1)


def create_locked(file: Path) -> int:
    """A new file of this writer, locked, as a descriptor that appends. Raises OSError."""
    while True:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(file, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Before it was locked, another writer may have taken it for one that a dead writer left, and removed it.
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
