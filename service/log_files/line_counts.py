"""Counts of a writer's lines that outlive it: how many it took, and of how many the log has a line or a loss.

In: a writer's name, and its lock beside the log. Out: a small file in the memory of this host, which has both counts
and the path of that lock. A thread that counts never waits for a disk, and after kill -9 the next writer still finds
how many lines were on their way. They are gone with the host, or with a container that shares no memory with the next
one. A dead writer's counts whose lock is gone, with its log say, are nobody's to read: any service removes them.
"""

import fcntl
import mmap
import os
import stat
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

MEMORY = Path("/dev/shm")  # tmpfs of the host's memory
_BYTES = 16
_NUMBER = struct.Struct("<Q")
_PATH_BYTES = 4096
# So long a writer may take until it has its lock.
_ORPHAN_SECONDS = 24 * 3600.0


class LineCounts:
    """The counts of one writer, which are locked while it lives. `lock_file` is there until they have been read. Raises
    OSError where there is no such memory."""

    def __init__(self, writer: str, lock_file: Path) -> None:
        self._file = _file_of(writer)
        self._lock = threading.Lock()
        self._taken = self._settled = 0
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Now: a page that is not there when it is written to would end the process.
            os.posix_fallocate(descriptor, 0, _BYTES)
            os.pwrite(descriptor, os.fsencode(lock_file.absolute()), _BYTES)
            # For as long as its memory is mapped, by a descriptor that the map has.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._memory = mmap.mmap(descriptor, _BYTES)
        except OSError:
            self._file.unlink()
            raise
        finally:
            os.close(descriptor)

    def add_taken(self, lines: int) -> None:
        """Count lines that are on their way from now on."""
        with self._lock:
            self._taken += lines
            _NUMBER.pack_into(self._memory, 0, self._taken)

    def add_settled(self, lines: int) -> None:
        """Count lines that are in the log, or whose loss is."""
        with self._lock:
            self._settled += lines
            _NUMBER.pack_into(self._memory, _NUMBER.size, self._settled)

    def close(self) -> bool:
        """Take the counts away, where every line is settled. Returns whether they are gone."""
        with self._lock:
            is_settled = self._taken == self._settled
        if is_settled:
            with suppress(FileNotFoundError):
                self._file.unlink()
        return is_settled

    @staticmethod
    def lost_by(writer: str) -> int:
        """Lines that a dead writer had taken and not settled. At most those of its last write are in the log all the
        same. 0 where its counts are gone."""
        try:
            descriptor = os.open(_file_of(writer), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return 0
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                return 0
            content = os.pread(descriptor, _BYTES, 0)
        finally:
            os.close(descriptor)
        if len(content) < _BYTES:
            return 0
        taken, settled = struct.unpack("<QQ", content)
        return max(0, int(taken) - int(settled))

    @staticmethod
    def remove_of(writer: str) -> None:
        """Remove a dead writer's counts."""
        with suppress(OSError):
            _file_of(writer).unlink()

    @staticmethod
    def remove_orphans() -> None:
        """Remove the counts of dead writers of this user that nobody will read."""
        for file in MEMORY.glob(_file_of("*").name):
            with suppress(OSError):  # another's, or a living writer's
                if _is_orphan(file):
                    file.unlink()


def _is_orphan(file: Path) -> bool:
    """True for counts of a dead writer whose lock is gone. Raises OSError where the writer lives."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return False
        if time.time() - status.st_mtime < _ORPHAN_SECONDS:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock_file = os.pread(descriptor, _PATH_BYTES, _BYTES)
    finally:
        os.close(descriptor)
    return not lock_file or not Path(os.fsdecode(lock_file)).exists()


def _file_of(writer: str) -> Path:
    return MEMORY / f"feedrank-log-{writer}.counts"
