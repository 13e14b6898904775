"""A clock that a simulation turns: `FEEDRANK_CLOCK` names a file or a URL that gives one RFC 3339 time.

In: a path, read at every call, or http://HOST:PORT/PATH of a loopback host, read every 50 ms at most. Out: a `Clock`
that says this time. Where it cannot be read, the last time stands, and `error` says why.
"""

import http.client
import ipaddress
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from model.untrusted_files import read_bytes
from service.base.clock import Clock
from service.base.log import FieldLogger, Throttle

_URL_SECONDS = 0.05
_TIMEOUT_SECONDS = 0.2
# After a failure, so that a server that hangs does not stop every request.
_FAILED_SECONDS = 1.0
_MOST_BYTES = 64

_log = FieldLogger("clock")


class ReplacedClock(Clock):
    """A clock that reads its time. Raises ValueError where `source` is not of this host or gives no time."""

    is_replaced = True

    def __init__(self, source: str) -> None:
        super().__init__()
        self._source = source
        self._url = urlsplit(source) if "://" in source else None
        if self._url is not None:
            _check_url(self._url, source)
        self._throttle = Throttle()
        self._read_at = time.monotonic()
        self._wait_seconds = 0.0 if self._url is None else _URL_SECONDS
        try:
            self._latest = self._given_time()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(f"{source}: {_reason(error)}") from None

    def _read_time(self) -> datetime:
        now = time.monotonic()
        if now - self._read_at < self._wait_seconds:
            return self._latest
        self._read_at = now
        try:
            given, self.error = self._given_time(), None
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.error, self._wait_seconds = _reason(error), _FAILED_SECONDS
            if self._throttle.is_due():
                _log.error("the clock cannot be read; the last time stands", reason=self.error)
            return self._latest
        self._wait_seconds = 0.0 if self._url is None else _URL_SECONDS
        return given

    def _given_time(self) -> datetime:
        """Raise OSError, ValueError or HTTPException where there is none."""
        content = read_bytes(Path(self._source), _MOST_BYTES) if self._url is None else _answer(self._url)
        try:
            given = datetime.fromisoformat(content.decode().strip())
        except ValueError:
            raise ValueError("it gives no RFC 3339 time, such as 2026-11-29T20:15:03.120Z") from None
        if given.tzinfo is None:
            raise ValueError("it gives a time without its zone; end it in Z")
        return given.astimezone(UTC)


def is_loopback(host: str | None) -> bool:
    """True for this very host, by its name or an address of IPv4 or IPv6."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _check_url(url: SplitResult, source: str) -> None:
    if url.scheme != "http":
        raise ValueError(f"{source}: a clock is a file, or http:// of this host")
    if not is_loopback(url.hostname):
        raise ValueError(f"{source}: not a loopback host; a clock is replaced for simulations on one host alone")


def _answer(url: SplitResult) -> bytes:
    """Body of a GET, without proxies and redirects."""
    assert url.hostname is not None, "checked"
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", f"{url.path or '/'}{'?' if url.query else ''}{url.query}")
        response = connection.getresponse()
        content = response.read(_MOST_BYTES + 1)
        if response.status != http.client.OK or len(content) > _MOST_BYTES:
            raise ValueError(f"it answers {response.status} with {len(content)} bytes or more, not one time")
        return content
    finally:
        connection.close()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
