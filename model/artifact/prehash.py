"""Tables hashed while something else runs: before a worker has imported torch, its tables are verified.

In: the models folder. Out: for a file that is opened later, what it hashes to, or None. Nothing is trusted for it: who
takes a hash compares it with the manifest's. Only the standard library is imported here, for this runs first of all.
"""

import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from model.untrusted_files import Fingerprint, fingerprint_of, open_regular, sha256_of

# Below this, hashing takes less than a thread.
_WORTH_BYTES = 2**22


class _Hashed:
    """A file that is being hashed."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha256: str | None = None
        self._file = file
        self.thread = threading.Thread(target=self._hash, name="hashing", daemon=True)
        self.thread.start()

    def _hash(self) -> None:
        with self._file as file:
            before = fingerprint_of(file)
            try:
                sha256 = sha256_of(file)
            except OSError:  # the reader of the file meets it too, and reports it
                return
            self.sha256 = sha256 if fingerprint_of(file) == before else None


_begun: dict[Fingerprint, _Hashed] = {}


def begin_hashing(models: Path) -> None:
    """Begins with the tables of every model's newest version. What cannot be read is left to who needs it."""
    with suppress(OSError):
        for family in models.iterdir():
            with suppress(OSError, ValueError):
                newest = max(int(entry.name) for entry in family.iterdir() if entry.name.isdecimal())
                for path in (family / str(newest)).glob("table_*.f32"):
                    if path.stat().st_size >= _WORTH_BYTES:
                        file = open_regular(path)
                        found = fingerprint_of(file)  # before its thread begins, which closes it
                        _begun[found] = _Hashed(file)


def take_hash(file: BinaryIO) -> str | None:
    """The sha256 of an open file, once it is there. None where it was not begun or the file has changed since."""
    hashed = _begun.pop(fingerprint_of(file), None)
    if hashed is None:
        return None
    hashed.thread.join()
    return hashed.sha256


def forget_hashes() -> None:
    """Drop the hashes that were not taken."""
    _begun.clear()
