"""Tables mapped and hashed while something else runs: before a worker has imported torch, its tables are verified.

In: the models folder. Out: for a file that is opened later, its mapping and what that hashes to, or None. Nothing is
trusted for it: who takes a mapping compares its hash with the manifest's, and reads where it was hashed. Only the
standard library is imported here, for this runs first of all.
"""

import hashlib
import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

# Below this, hashing takes less than a thread.
_WORTH_BYTES = 2**22

_FileState = tuple[int, int, int, int]


class _Hashed:
    """A mapping that is being hashed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.sha256 = ""
        self.thread = threading.Thread(target=self._hash, name="hashing", daemon=True)
        self.thread.start()

    def _hash(self) -> None:
        self.sha256 = hashlib.sha256(self.mapped).hexdigest()


_begun: dict[_FileState, _Hashed] = {}


def begin(models: Path) -> None:
    """Begins with the tables of every model's newest version. What cannot be read is left to who needs it."""
    with suppress(OSError):
        for family in models.iterdir():
            with suppress(OSError, ValueError):
                newest = max(int(entry.name) for entry in family.iterdir() if entry.name.isdecimal())
                for path in (family / str(newest)).glob("table_*.f32"):
                    if path.stat().st_size >= _WORTH_BYTES:
                        with path.open("rb") as file:
                            _begun[_state(file)] = _Hashed(file)


def take(file: IO[bytes]) -> tuple[mmap.mmap, str] | None:
    """The mapping of an open file and its sha256, waited for; None where it was not begun or has changed since."""
    hashed = _begun.pop(_state(file), None)
    if hashed is None:
        return None
    hashed.thread.join()
    return hashed.mapped, hashed.sha256


def forget() -> None:
    """Lets go of what nobody has taken."""
    _begun.clear()


def _state(file: IO[bytes]) -> _FileState:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
