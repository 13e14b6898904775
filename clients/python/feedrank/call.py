"""One call of the service on its way, without I/O: its deadline, its body, and the decision after each reply.

Either client sends what a `Call` says and hands it the reply. It is sent twice at most, under one request id.
"""

import random
import re
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from feedrank.counts import Counter
from feedrank.wire import decode

# Of 10 requests one may be sent again. The reserve lets what is in flight through when a connection breaks.
_REQUESTS_A_RETRY, _RESERVE = 10, 10
_JITTER_SECONDS = 0.05
_HEADER_ID = re.compile(r"[!-~]{1,128}")


class Budget:
    """Retries that may still be made: a tenth of the requests, and a reserve."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tenths = _RESERVE * _REQUESTS_A_RETRY

    def earn(self) -> None:
        """Count a request."""
        with self._lock:
            self._tenths = min(self._tenths + 1, _RESERVE * _REQUESTS_A_RETRY)

    def spend(self) -> bool:
        """Take a retry. False where there is none."""
        with self._lock:
            if self._tenths < _REQUESTS_A_RETRY:
                return False
            self._tenths -= _REQUESTS_A_RETRY
            return True


class SecondsLeft(dict[str, float]):
    """Timeouts of httpx that shrink: connecting, writing and reading each have what is left when they begin."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def get(self, key: str, default: Any = None) -> float:
        """Seconds until the deadline, for whatever phase."""
        return max(self._deadline - time.monotonic(), 0.001)


class Call:
    """A request to the service until its end, whatever it asks: its body, and the decision after each reply.

    `request_id` is of the request itself, which a batch has beside those of its requests. `timeout` is in seconds.
    Raises ValueError for one that is not above 0.
    """

    def __init__(
        self, path: str, request_id: str, body: bytes, timeout: float, budget: Budget, counter: Counter
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout!r}; seconds above 0 are needed")
        self.path = path
        self.body = body
        self.status = 0
        self.document: dict[str, Any] = {}
        self.reason = ""
        self.request_id = request_id
        self.counter = counter
        self._deadline = time.monotonic() + timeout
        self._budget = budget
        self._is_retry = False
        budget.earn()

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.monotonic()

    @property
    def timeouts(self) -> SecondsLeft:
        """Timeouts of the next try."""
        return SecondsLeft(self._deadline)

    def headers(self) -> dict[str, str]:
        """Headers of the next try, which tell the service how much time is left."""
        headers = {"Content-Type": "application/json", "X-Request-Timeout-Ms": str(max(1, int(self.left * 1000)))}
        if _HEADER_ID.fullmatch(self.request_id):
            headers["X-Request-Id"] = self.request_id  # the service logs it for what it refuses unread, too
        return headers

    def take_reply(self, status: int, headers: Mapping[str, str], content: bytes) -> float | None:
        """Seconds until the retry after a reply, None where it is the last."""
        self.status, self.document = status, decode(content)
        self.reason = reason_of(status)
        retry_after = seconds_of(headers.get("Retry-After"))
        if status == 503 or (status == 429 and retry_after is not None):
            return self._pause(retry_after or 0.0)
        return None

    def take_error(self, error: httpx.RequestError | TimeoutError) -> float | None:
        """Seconds until the retry after a try without a reply, None where it is the last."""
        self.status, self.document = 0, {}
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            self.reason = "timeout"
            return None
        if not isinstance(error, httpx.TransportError):
            self.reason = "no answer"
            return None
        self.reason = "connection"
        return self._pause(0.0)

    def _pause(self, retry_after: float) -> float | None:
        # Clients that were told the same second, or that lost the same server, do not come back together.
        pause = retry_after + random.uniform(0, max(min(_JITTER_SECONDS, self.left / 4), retry_after / 4))
        if self._is_retry or pause >= self.left:
            return None
        if not self._budget.spend():
            self.counter.add("over_budget")
            return None
        self._is_retry = True
        self.counter.add("retries")
        return pause


def reason_of(status: int) -> str:
    """Why a reply of this status is no ranking."""
    return "no answer" if status == 200 else f"status {status}"


def new_id() -> str:
    """A new request id."""
    return uuid.uuid4().hex


def seconds_of(retry_after: str | None) -> float | None:
    """The seconds of a Retry-After, which has them or a date. None where there is none that can be read."""
    if retry_after is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", retry_after):
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
        return max((until - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return None


def checked_address(base_url: str) -> str:
    """The service's address without a slash at its end. Raises ValueError."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url is {base_url!r}; it must look like http://ranking:8080")
    return base_url.rstrip("/")


def key_headers(key: str | None) -> dict[str, str]:
    """The header of an API key. Raises ValueError, without the key."""
    if key is None:
        return {}
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError("key has characters that no header takes; give it without spaces and line breaks")
    return {"Authorization": f"Bearer {key}"}
