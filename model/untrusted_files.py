"""The one door to files that others write: model folders, labels, keys, schemas, signatures.

In: a path. Out: its bytes, an open descriptor, or a fingerprint of its state. Links are followed, and only a regular
file is read: opening never blocks on a FIFO, and a size is compared with its limit before anything is read. Every fault
is an OSError whose `strerror` says what is wrong.
"""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

# Labels, value models, keys, certificates, signatures: small enough to be read and compared at every poll.
SMALL_BYTES = 2**20
# Manifests and training files.
DOCUMENT_BYTES = 64 * 2**20
_AT_ONCE_BYTES = 2**20
# A controlling terminal is not acquired, a FIFO without a writer does not block.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class Fingerprint(NamedTuple):
    """State of a file: two that are equal are of the same content. `ctime_ns` shows what a copied mtime hides."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of_status(cls, status: os.stat_result) -> "Fingerprint":
        """The fingerprint in what stat or fstat gave."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


# The name and fingerprint of each of some files.
Fingerprints = tuple[tuple[str, Fingerprint], ...]


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError, also for a file of another kind."""
    _refuse_other_kinds(path, os.stat(path))  # opening a device may already do something
    descriptor = os.open(path, _FLAGS)
    try:
        _refuse_other_kinds(path, os.fstat(descriptor))
        os.set_blocking(descriptor, True)
        return io.BufferedReader(io.FileIO(descriptor, "rb", closefd=True))
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, limit_bytes: int | None = SMALL_BYTES) -> bytes:
    """All bytes of a regular file, without a limit for None. Raises OSError, also where it is over the limit or changes
    meanwhile."""
    with open_regular(path) as file:
        before = fingerprint_of(file)
        if limit_bytes is not None and before.size_bytes > limit_bytes:
            raise OSError(errno.EFBIG, f"{before.size_bytes} bytes, at most {limit_bytes} are read", str(path))
        content = file.read(before.size_bytes)
        after = fingerprint_of(file)
    # A change of the ctime alone is of a link or a mode.
    if len(content) != before.size_bytes or after[:4] != before[:4]:
        raise changed(path)
    return content


def sha256_of(file: BinaryIO) -> str:
    """The sha256 of an open file from its position to its size, by read(2). A file that is cut meanwhile gives another
    hash, where a mapping of it would end the process. Raises OSError."""
    digest, left = hashlib.sha256(), fingerprint_of(file).size_bytes - file.tell()
    buffer = memoryview(bytearray(_AT_ONCE_BYTES))
    # No further than the size at the start: a file that grows as fast as it is read would never end.
    while left > 0 and (num_read := file.readinto(buffer[: min(left, len(buffer))])):  # type: ignore[attr-defined]
        digest.update(buffer[:num_read])
        left -= num_read
    return digest.hexdigest()


def fingerprint_of(file: BinaryIO) -> Fingerprint:
    """The fingerprint of an open file. Raises OSError."""
    return Fingerprint.of_status(os.fstat(file.fileno()))


def fingerprint(path: Path) -> Fingerprint | None:
    """The fingerprint of what a path leads to, None where it leads to nothing that can be seen."""
    try:
        return Fingerprint.of_status(os.stat(path))
    except OSError:
        return None


def fingerprints(paths: Iterable[Path]) -> Fingerprints:
    """Name and fingerprint of every file that is there, in the order of the names."""
    found = ((path.name, fingerprint(path)) for path in sorted(paths))
    return tuple((name, state) for name, state in found if state is not None)


def changed(path: Path) -> OSError:
    """The error of a file that was written to while it was read."""
    return OSError(errno.EAGAIN, "it changed while it was read", str(path))


class PolledFile:
    """A small file that is read at every poll and compared by its bytes, not by its times and inode.

    `content` is what was read last, and stays when the file cannot be read any more. `error` says why it cannot be
    read now, None where it can. A file that never was there is no error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: bytes | None = None
        self.error: str | None = None

    def poll(self) -> bool:
        """Read the file and return whether its content or its error is another than before."""
        before = (self.content, self.error)
        try:
            self.content, self.error = read_bytes(self.path), None
        except OSError as error:
            is_absent = isinstance(error, FileNotFoundError | NotADirectoryError)
            if is_absent and self.content is None and not os.path.lexists(self.path):
                self.error = None
            else:
                self.error = f"{self.path}: {'missing' if is_absent else f'cannot be read ({error.strerror})'}"
        return (self.content, self.error) != before


def _refuse_other_kinds(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "of another kind")
        raise OSError(errno.EINVAL, f"not a regular file but {kind}", str(path))
