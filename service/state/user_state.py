"""The state of one user as a store keeps it: one blob of fields and histories.

In: values that a caller puts, entries that events make. Out: MessagePack, and what is read of it. Merging is
idempotent: an entry that comes again by its identity replaces itself, and one that is older than all that are kept is
dropped again. So events may be read twice.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import xxhash

# Entries that no event made have it.
NO_IDENTITY = 0
MAX_KEY_BYTES = 256
_NAME_BYTES = 16
_FORMAT = 1


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A value of a history, oldest first by `time` in Unix seconds. `identity` is a hash of its event's."""

    value: int | str | float
    time: float
    identity: int = NO_IDENTITY


class UserState(msgspec.Struct, array_like=True, tag=_FORMAT):
    """State of a user: fields by name as they were put, histories by name. Its blob begins with the format's number."""

    fields: dict[str, Any]
    lists: dict[str, list[Entry]]

    def encoded(self) -> bytes:
        """The blob."""
        return _encoder.encode(self)

    @classmethod
    def decoded(cls, blob: bytes | None) -> "UserState":
        """The state of a blob, an empty one of None. Raises ValueError for bytes that are none."""
        if blob is None:
            return cls({}, {})
        try:
            return _decoder.decode(blob)
        except (ValueError, RecursionError):
            raise ValueError("a value of the store is no state of a user") from None


class Hydrated(NamedTuple):
    """The share of a store in a request: `values` of features that the request leaves out, and `entries` of all
    histories. `user` is the key in canonical form. `result` says how the look-up ended, or none where nobody was
    looked up. `covers` are features that the store answers for, whatever it has. `refused` are
    those whose values did not fit."""

    values: dict[str, Any]
    entries: Mapping[str, list[Entry]]
    user: str | None
    result: str
    covers: frozenset[str]
    refused: list[str]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(UserState)


def canonical_key(value: object) -> str | None:
    """The canonical text of a user's key: 17 and "17" are one. None for a null. Raises ValueError for another value."""
    if value is None:
        return None
    if type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("expected the key of a user, a string or an integer")
    size = len(value.encode("utf-8", "surrogatepass"))
    if not 0 < size <= MAX_KEY_BYTES:
        raise ValueError(f"the key of a user has 1 to {MAX_KEY_BYTES} bytes, this one has {size}")
    return value


def store_name(model: str, key: str) -> bytes:
    """Name of a user in a store: a hash of model and key that nobody finds another key for. A list of the store's names
    does not say who its users are."""
    text = f"{model}\0{key}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=_NAME_BYTES).digest()


def identity_of(*parts: str) -> int:
    """Identity of an event by what names it, never NO_IDENTITY."""
    return xxhash.xxh3_64_intdigest("\0".join(parts).encode("utf-8", "surrogatepass")) or 1


def merged(kept: Iterable[Entry], added: Iterable[Entry], keep: int) -> list[Entry]:
    """The newest `keep` entries of both, oldest first. Of those with one identity the one that was added last."""
    anonymous, by_identity = [], {}
    for entry in (*kept, *added):
        if entry.identity == NO_IDENTITY:
            anonymous.append(entry)
        else:
            by_identity[entry.identity] = entry
    everything = [*anonymous, *by_identity.values()]
    everything.sort(key=lambda entry: (entry.time, entry.identity))
    return everything[-keep:]
