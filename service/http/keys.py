"""API keys: who may score, read metrics, or change what is served.

In: a YAML file of names, scopes and sha256 hashes of keys, and the `Authorization: Bearer` header of a request. Out:
`Keys.check`, which raises Problem 401 (no or wrong key) or 403 (a key without the scope). The file is polled every few
seconds, so that a key is added or revoked without a restart. One that is not valid, or goes away, leaves the keys
before it in force, and says so.

Keys are random, 256 bits (`python -m service key`), so one pass of sha256 is enough to keep them: there is nothing to
guess. Without a file scoring and metrics are open, and the admin API and state of users by HTTP are off.
"""

import base64
import hashlib
import hmac
import math
import re
import secrets
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from model.strict_yaml import StrictModel
from model.untrusted_files import PolledFile
from service.base.errors import Problem
from service.base.log import FieldLogger

Right = Literal["score", "events", "state", "play", "metrics", "admin"]
_PREFIX = "feedrank_"
_USER = re.compile(r"/v1/models/[^/]+/users/")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="feedrank"'}
# What people open in a browser, which knows how to ask for a name and a password: any name, and the key.
STATUS = "/"
BROWSER_CHALLENGE = {"WWW-Authenticate": 'Basic realm="feedrank: any name, and a key as the password"'}
# A longer header is no key of ours, and not worth hashing.
_MAX_KEY = 256

_log = FieldLogger("keys")


class Key(StrictModel):
    """One key: who has it, what it opens, and its hash. `admin` opens everything."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    scopes: Annotated[tuple[Right, ...], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class KeyFile(StrictModel):
    """The file."""

    keys: Annotated[tuple[Key, ...], Field(min_length=1)]


class Keys:
    """The keys in force. Raises ValueError where the file is not valid at the start."""

    def __init__(self, path: Path | None, poll_seconds: float = 2.0) -> None:
        self._path = path
        self._poll_seconds = poll_seconds
        self._keys: tuple[Key, ...] = ()
        # Why the file is not in force as it is now, None where it is.
        self.error: str | None = None
        self._file = None if path is None else PolledFile(path)
        self._polled = time.monotonic()
        if self._file is not None:
            self._file.poll()
            self._keys = self._read(self._file)

    def allows(self, given: str | None, needed: Right) -> bool:
        """True where the key of an Authorization header has the scope that is needed."""
        try:
            self.check(given, needed)
        except Problem:
            return False
        return True

    def check(self, given: str | None, needed: Right) -> str | None:
        """The name of the key whose Authorization header is `given`, None where no keys are set. Raises Problem."""
        if self._path is None:
            if needed in ("admin", "state"):
                what = "the admin API" if needed == "admin" else "state of users by HTTP"
                raise Problem(403, f"{what} is off: no keys are configured (--keys-file)", reason="forbidden")
            return None
        scheme, text = _credentials(given)
        if scheme != "bearer" or not 0 < len(text) <= _MAX_KEY:
            raise _unauthenticated("a key is needed: Authorization: Bearer KEY")
        digest = hash_of(text)
        found: Key | None = None
        # Every key is compared, in constant time: the time says nothing about which one, or how much of it.
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            raise _unauthenticated("this key is not known")
        if needed not in found.scopes and "admin" not in found.scopes:
            raise Problem(403, f"key '{found.name}' lacks the scope '{needed}'", reason="forbidden")
        return found.name

    def read_again_soon(self) -> None:
        """Read the file at the next poll, before its time."""
        self._polled = -math.inf

    def poll(self) -> None:
        """Read the file if the last time is long ago. A bad or missing one leaves the keys in force. May block."""
        now = time.monotonic()
        if self._file is None or now - self._polled < self._poll_seconds:
            return
        self._polled = now
        if not self._file.poll():
            return
        try:
            self._keys, self.error = self._read(self._file), None
        except ValueError as error:
            self.error = str(error)
            _log.error("keys file refused; the keys before it stay in force", reason=self.error)
            return
        _log.info("keys read again", names=[key.name for key in self._keys])

    def _read(self, file: PolledFile) -> tuple[Key, ...]:
        if file.error is not None or file.content is None:
            raise ValueError(file.error or f"{file.path}: missing")
        return KeyFile.from_bytes(file.content, str(file.path)).keys


def needed_for(path: str) -> Right | None:
    """The scope that a path needs. None for what anybody may read: probes and the description of the API."""
    if path.startswith("/v1/admin"):
        return "admin"
    if path in ("/metrics", STATUS):
        return "metrics"
    if path == "/v1/events":
        return "events"
    if _USER.match(path):
        return "state"
    if path.startswith("/v1/play/"):
        return "play"
    if path.startswith("/v2/health/"):
        return None
    return "score" if path.startswith(("/v1", "/v2")) else None


def from_browser(given: str | None) -> str | None:
    """An Authorization header as `Keys.check` reads it, where a browser's is one of HTTP Basic: the key is its
    password."""
    scheme, text = _credentials(given)
    if scheme != "basic" or len(text) > 2 * _MAX_KEY:
        return given
    try:
        password = base64.b64decode(text, validate=True).decode().partition(":")[2]
    except ValueError:
        return None
    return f"Bearer {password}"


def _credentials(given: str | None) -> tuple[str, str]:
    """The scheme, in small letters, and what follows after any number of blanks (RFC 9110, 11.4)."""
    scheme, _, text = (given or "").partition(" ")
    return scheme.lower(), text.lstrip(" ")


def random_key() -> str:
    """A key: 256 random bits, with a prefix by which scanners for leaked secrets find it."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Hash of a key, as the file keeps it."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, detail, reason="unauthenticated", headers=_CHALLENGE)
