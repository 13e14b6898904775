"""API keys: who may score, read metrics, or change what is served.

In: a YAML file of names, scopes and sha256 hashes of keys, and the `Authorization: Bearer` header of a request. Out:
`Keys.check`, which raises Problem 401 (no or wrong key) or 403 (a key without the scope). The file is looked at again
every few seconds, so that a key is added or revoked without a restart; one that does not hold leaves the keys before it
in force, and says so.

Keys are random, 256 bits (`python -m service key`), so one pass of sha256 is enough to keep them: there is nothing to
guess. Without a file scoring and metrics are open, and the admin API is off.
"""

import base64
import hashlib
import hmac
import logging
import math
import secrets
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from model.strict_yaml import StrictModel
from service.errors import Problem
from service.request_log import LOGGER

Right = Literal["score", "metrics", "admin"]
_PREFIX = "feedrank_"
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="feedrank"'}
# What people open in a browser, which knows how to ask for a name and a password: any name, and the key.
STATUS = "/"
BROWSER_CHALLENGE = {"WWW-Authenticate": 'Basic realm="feedrank: any name, and a key as the password"'}
# A longer header is no key of ours, and not worth hashing.
_MAX_KEY = 256

_log = logging.getLogger(f"{LOGGER}.keys")


class Key(StrictModel):
    """One key: who has it, what it opens, and its hash. `admin` opens everything."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    scopes: Annotated[tuple[Right, ...], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class KeyFile(StrictModel):
    """The file."""

    keys: Annotated[tuple[Key, ...], Field(min_length=1)]


class Keys:
    """The keys in force. Raises ValueError where the file does not hold at the start."""

    def __init__(self, path: Path | None, poll_seconds: float = 2.0) -> None:
        self._path = path
        self._poll_seconds = poll_seconds
        self._keys: tuple[Key, ...] = ()
        self._seen: tuple[int, int, int] | None = None
        self._looked = time.monotonic()
        if path is not None:
            self._seen = _fingerprint(path)
            self._keys = KeyFile.from_yaml(path).keys

    def check(self, given: str | None, needed: Right) -> str | None:
        """The name of the key whose Authorization header is `given`, None where nothing is asked. Raises Problem."""
        if self._path is None:
            if needed == "admin":
                raise Problem(403, "the admin API is off: no keys are configured", reason="forbidden")
            return None
        self._look_again(self._path)
        scheme, _, text = (given or "").partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(text) <= _MAX_KEY:
            raise _unauthenticated("a key is needed: Authorization: Bearer KEY")
        digest = hash_of(text)
        found: Key | None = None
        # Every key is compared, in constant time: how long it takes tells nothing about which one, or how much of it.
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            raise _unauthenticated("this key is not known")
        if needed not in found.scopes and "admin" not in found.scopes:
            raise Problem(403, f"key '{found.name}' lacks the scope '{needed}'", reason="forbidden")
        return found.name

    def read_again_soon(self) -> None:
        """Has the file looked at with the next request, before its time."""
        self._looked = -math.inf

    def _look_again(self, path: Path) -> None:
        now = time.monotonic()
        if now - self._looked < self._poll_seconds:
            return
        self._looked = now
        seen = _fingerprint(path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = KeyFile.from_yaml(path).keys
        except ValueError as error:
            _log.error("keys file refused; the keys before it stay in force", extra={"fields": {"reason": str(error)}})
            return
        _log.info("keys read again", extra={"fields": {"names": [key.name for key in self._keys]}})


def needed_for(path: str) -> Right | None:
    """The scope that a path needs; None for what anybody may read: probes and the description of the API."""
    if path.startswith("/v1/admin"):
        return "admin"
    if path in ("/metrics", STATUS):
        return "metrics"
    if path.startswith("/v2/health/"):
        return None
    return "score" if path.startswith(("/v1", "/v2")) else None


def from_browser(given: str | None) -> str | None:
    """An Authorization header as `Keys.check` reads it, where a browser's is one of HTTP Basic: the key is its
    password."""
    scheme, _, text = (given or "").partition(" ")
    if scheme.lower() != "basic" or len(text) > 2 * _MAX_KEY:
        return given
    try:
        password = base64.b64decode(text, validate=True).decode().partition(":")[2]
    except ValueError:
        return None
    return f"Bearer {password}"


def random_key() -> str:
    """A key: 256 random bits, with a prefix by which scanners for leaked secrets find it."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """What the file keeps of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, detail, reason="unauthenticated", headers=_CHALLENGE)


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
