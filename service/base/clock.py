"""The service's clock: UTC, never backwards within a process.

In: nothing. Out: the time of receipts, watermarks and files. Durations are measured by time.monotonic.
"""

import threading
from datetime import UTC, datetime


class Clock:
    """UTC that does not run backwards: where the system's clock is set back it stands until that has caught up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest = datetime.min.replace(tzinfo=UTC)

    def now(self) -> datetime:
        """The time."""
        with self._lock:
            self._latest = max(self._latest, datetime.now(UTC))
            return self._latest


def rfc3339(time: datetime) -> str:
    """A time in UTC as logs have it (RFC 3339), to the millisecond."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
