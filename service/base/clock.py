"""The service's clock: UTC, never backwards within a process.

In: nothing, or what replaces the system's clock in a simulation. Out: the time of receipts, impressions, watermarks and
files. Durations are measured by time.monotonic.
"""

import threading
from datetime import UTC, datetime


class Clock:
    """UTC that does not run backwards: where the system's clock is set back it stands until that has caught up."""

    # A clock of a simulation runs hours while seconds pass.
    is_replaced = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest = datetime.min.replace(tzinfo=UTC)
        # Why the time cannot be read, None where it can.
        self.error: str | None = None

    def now(self) -> datetime:
        """The time."""
        with self._lock:
            self._latest = max(self._latest, self._read_time())
            return self._latest

    def _read_time(self) -> datetime:
        return datetime.now(UTC)


def rfc3339(time: datetime) -> str:
    """A time in UTC as logs have it (RFC 3339), to the millisecond."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
