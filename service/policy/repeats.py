"""Ids of explored requests that came before, with another request or with the same one again.

In: request ids. Out: whether an id is remembered. Each id has a slot by its hash, which the newest of that slot takes:
memory is bounded, an id is forgotten sooner or later, and one that was never there is all but never taken for another.
Workers of one service share the slots, by a file of the folder in which they share metrics.
"""

import mmap
import os
from pathlib import Path

import xxhash

from service.base.log import FieldLogger

NAME = "repeated_ids"
_SLOTS = 1 << 16
_BYTES = 8 * _SLOTS
_log = FieldLogger()


class RepeatedIds:
    """Ids of the workers that share a folder, without one those of this process. Several may call it: at worst a repeat
    at the same moment is not seen."""

    def __init__(self, folder: Path | None = None) -> None:
        memory: mmap.mmap | bytearray = bytearray(_BYTES)
        if folder is not None:
            try:
                memory = _shared(folder / NAME)
            except OSError as error:
                _log.error("repeated request ids are counted by each worker for itself", reason=error.strerror)
        self._hash_of_slot = memoryview(memory).cast("Q")

    def take_id(self, request_id: str, policy_version: str) -> bool:
        """Remember an id. True where it was there, under the same version of a policy: such requests are drawn alike.
        Half of a surrogate pair, which JSON may have, has bytes here."""
        found = xxhash.xxh3_64_intdigest(f"{policy_version}\0{request_id}".encode("utf-8", "surrogatepass"))
        slot = found % _SLOTS
        is_repeated = self._hash_of_slot[slot] == found
        self._hash_of_slot[slot] = found
        return is_repeated


def _shared(file: Path) -> mmap.mmap:
    """Memory of a file, which the first worker makes. Raises OSError."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        # Now: a page that is not there when it is written to would end the process.
        os.posix_fallocate(descriptor, 0, _BYTES)
        return mmap.mmap(descriptor, _BYTES)
    finally:
        os.close(descriptor)
