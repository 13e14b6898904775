"""Watermark of a writer of a log: every line that it took before its watermark is in a closed file.

In: a time from the writer, now and then, idle or not. Out: `<prefix><host>-<token>.watermark`, one JSON object
`{"writer", "watermark", "written"}`, times in RFC 3339. Who reads a log waits until every watermark of its folder has
passed the time that it wants whole. A writer that ends takes its watermark away. One that was killed leaves it: another
writer of the folder takes it away once it has named the dead writer's files. The lock on `.<prefix>...lock` tells which
writers live.
"""

import errno
import fcntl
import json
import os
import re
import socket
import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from model.untrusted_files import read_bytes
from service.base.clock import rfc3339
from service.log_files.folder import LogFolder, create_locked

SUFFIX = ".watermark"
_HOST_CHARACTERS = 63


def new_writer() -> str:
    """A name for a writer that no other has: its host's, and a token."""
    host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())[:_HOST_CHARACTERS]
    return f"{host}-{uuid.uuid4().hex[:8]}"


class Watermark:
    """The watermark of one writer. Raises OSError where the folder cannot be written."""

    def __init__(self, log: LogFolder, writer: str) -> None:
        self.writer = writer
        self._log = log
        self._file = _file_of(log, writer)
        self._lock_file = lock_file_of(log, writer)
        self._lock = create_locked(self._lock_file)

    def move(self, watermark: datetime, written: datetime) -> None:
        """Publish a watermark at the time `written`, whole or not at all. Raises OSError."""
        content = {"writer": self.writer, "watermark": rfc3339(watermark), "written": rfc3339(written)}
        part = _part(self._file)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(content).encode())
        finally:
            os.close(descriptor)
        part.rename(self._file)

    def close(self) -> None:
        """Take the watermark away: all of the writer's lines are in closed files."""
        for file in (self._file, self._lock_file):
            with suppress(FileNotFoundError):
                file.unlink()
        os.close(self._lock)

    def dead_writers(self) -> list["DeadWriter"]:
        """The writers that have ended without taking their watermark away. Each is locked for the caller alone, who
        names their files, takes their watermarks away and gives up the locks."""
        dead = []
        for lock_file in self._log.path.glob(f".{self._log.prefix}*{SUFFIX}.lock"):
            with suppress(OSError):  # another writer's, which lives or was just taken care of
                descriptor = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not os.fstat(descriptor).st_nlink:  # its name may be a living writer's by now
                        raise FileNotFoundError(errno.ENOENT, "taken care of")
                except OSError:
                    os.close(descriptor)
                    raise
                dead.append(DeadWriter(self._log, lock_file, descriptor))
        return dead


class DeadWriter:
    """A writer that is gone, locked."""

    def __init__(self, log: LogFolder, lock_file: Path, descriptor: int) -> None:
        self._lock_file = lock_file
        self._descriptor = descriptor
        self._file = lock_file.with_name(lock_file.name.removeprefix(".").removesuffix(".lock"))
        self.writer = self._file.name.removeprefix(log.prefix).removesuffix(SUFFIX)

    @property
    def last_time(self) -> datetime | None:
        """The last time that it gave a sign of life at. None where it left none that can be read."""
        try:
            written = datetime.fromisoformat(json.loads(read_bytes(self._file))["written"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return written if written.tzinfo is not None else None

    def remove_watermark(self) -> None:
        """Take its watermark away: its files are named."""
        # The lock last: a watermark without one would stay for good.
        for file in (_part(self._file), self._file, self._lock_file):
            with suppress(FileNotFoundError):
                file.unlink()

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._descriptor)


def _part(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def _file_of(log: LogFolder, writer: str) -> Path:
    return log.path / f"{log.prefix}{writer}{SUFFIX}"


def lock_file_of(log: LogFolder, writer: str) -> Path:
    """The file whose lock says that a writer lives, and which is there until all is said of a dead one."""
    return log.path / f".{_file_of(log, writer).name}.lock"
