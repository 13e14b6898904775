"""The store of users' state, as the service needs one: many blobs by name, read together or changed in one transaction.

In: the URL of a store. Out: a `Store`. What it raises is a StoreError, whose text names neither a password nor a user.
Methods may block, and are called by threads for it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from model.untrusted_files import read_bytes

SQLITE, REDIS = "sqlite", "redis"
_URL_BYTES = 4_096
_SCHEMES = ("sqlite", "redis", "rediss", "unix")


class Written(NamedTuple):
    """A blob that is to be forgotten so many seconds after it is written."""

    blob: bytes
    ttl_seconds: float


# Blobs by name, None where there is none -> what becomes of them, None to delete it. May be called again.
Change = Callable[[Mapping[bytes, bytes | None]], Mapping[bytes, Written | None]]


class StoreError(Exception):
    """The store did not do it. A later try may succeed."""


class StoreTimeoutError(StoreError):
    """The store did not answer in time."""


class StoreFullError(StoreError):
    """The store has no room."""


class Note(NamedTuple):
    """A text that a store keeps beside users, such as how far a log was read."""

    name: str
    text: bytes


class Store(Protocol):
    """A store of blobs."""

    def read(self, names: Sequence[bytes]) -> list[bytes | None]:
        """The blobs of these names, None where there is none. Raises StoreError."""

    def change(self, names: Sequence[bytes], change: Change, note: Note | None = None) -> None:
        """Change blobs in one transaction, together with a note. Raises StoreError, with nothing changed, and what
        `change` raises."""

    def read_note(self, name: str) -> bytes | None:
        """The text of a note, None where there is none. Raises StoreError."""

    def close(self) -> None:
        """Close what the calling thread has open."""


def check_url(url: str) -> str:
    """The scheme of a store's URL. Raises ValueError, which does not repeat the URL: it may have a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("the URL of the store cannot be read; its host or port is wrong") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError("the URL of the store: expected sqlite:///FILE or redis://HOST:PORT/0, or rediss:// for TLS")
    if parts.scheme == SQLITE and (parts.netloc or not parts.path.removeprefix("/")):
        raise ValueError("the URL of the store: expected sqlite:///FILE, four slashes before an absolute path")
    return SQLITE if parts.scheme == SQLITE else REDIS


def read_url_file(path: Path) -> str:
    """The URL in a file: its only line. Raises ValueError, which says nothing of it."""
    try:
        lines = read_bytes(path, _URL_BYTES).decode().split()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text; expected the URL of the state store alone") from None
    if len(lines) != 1:
        raise ValueError(f"{path}: {len(lines)} words; expected the URL of the state store alone")
    return lines[0]
