"""Counts of a client since it was made: every request and every event is in one of them."""

import threading
from dataclasses import dataclass, field, replace


@dataclass
class Counts:
    """Requests by their end, and events by theirs."""

    answered: int = 0
    """By the service."""
    fallbacks: int = 0
    """By the caller's fallback."""
    unavailable: int = 0
    """Ended in UnavailableError."""
    refused: int = 0
    """Ended in RefusedError."""
    retries: int = 0
    over_budget: int = 0
    """Retries that were left out, as there had been too many for the requests made."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why requests were not answered: `timeout`, `connection`, `status 503` and the like, or `no answer`."""
    events_accepted: int = 0
    events_dropped: int = 0
    """There was no room, or the client was closed before they were sent."""
    events_refused: int = 0
    """The service refuses them as they are."""
    events_waiting: int = 0


class Counter:
    """The counts of one client, changed by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()

    def add(self, name: str, number: int = 1, *, reason: str | None = None) -> None:
        """Add to the count of a name, and to that of a reason."""
        with self._lock:
            setattr(self._counts, name, getattr(self._counts, name) + number)
            if reason is not None:
                self._counts.reasons[reason] = self._counts.reasons.get(reason, 0) + 1

    def snapshot(self, events_waiting: int) -> Counts:
        """A copy."""
        with self._lock:
            return replace(self._counts, reasons=dict(self._counts.reasons), events_waiting=events_waiting)
