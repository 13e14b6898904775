"""Events that wait to be sent, without I/O: bounded, sent in batches, each counted once as what became of it.

A batch that was not accepted is sent again with the times and ids that its events were given here, so the service
counts each of them once.
"""

import logging
import random
import re
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import compress
from typing import Any

from feedrank.call import seconds_of
from feedrank.counts import Counter
from feedrank.wire import Event, decode, encode, faults_of

BATCH = 500
# The service takes 1 MiB a request.
_BODY_BYTES = 1_000_000
_SHORTEST_PAUSE, _FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 0.5, 30.0
_PLACE = re.compile(r"events\[(\d+)\]")
# These refuse events as they are. 401, 403 and a 404 that names none are of the service's settings, which change.
_FINAL = (400, 404, 413, 422)

_log = logging.getLogger("feedrank")


class EventQueue:
    """Encoded events in their order. One thread or task takes batches, any may add."""

    def __init__(self, most: int, counter: Counter) -> None:
        self._most = most
        self._counter = counter
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._sent: list[bytes] = []
        self._limit = BATCH
        self._pause = _FIRST_PAUSE
        self._is_closed = False

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting) + len(self._sent)

    def add(self, event: Event | Mapping[str, Any]) -> bool:
        """Add an event. False where there is no room, and it is dropped. Raises ValueError where it is no JSON."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        encoded = encode({"time": now, "event_id": uuid.uuid4().hex, **event})
        if len(encoded) > _BODY_BYTES:
            raise ValueError(f"an event of {len(encoded)} bytes; the service takes {_BODY_BYTES} at most")
        with self._lock:
            has_room = not self._is_closed and len(self._waiting) + len(self._sent) < self._most
            if has_room:
                self._waiting.append(encoded)
        if not has_room:
            self._counter.add("events_dropped")
        return has_room

    def take_batch(self) -> bytes | None:
        """The body of the next batch, None where nothing waits. `settle` has to follow."""
        with self._lock:
            size = 0
            while self._waiting and len(self._sent) < self._limit:
                size += len(self._waiting[0]) + 1
                if self._sent and size > _BODY_BYTES:
                    break
                self._sent.append(self._waiting.popleft())
            return b'{"events":[%b]}' % b",".join(self._sent) if self._sent else None

    def settle(self, status: int, headers: Mapping[str, str], content: bytes) -> float:
        """Take the reply to a batch, status 0 without one. Returns seconds until the next batch may be sent."""
        with self._lock:
            if self._is_closed:
                return 0.0
            batch, self._sent = self._sent, []
            if status == 202:
                self._limit, self._pause = BATCH, _FIRST_PAUSE
                self._counter.add("events_accepted", len(batch))
                return 0.0
            faults = faults_of(decode(content)) if status in _FINAL else []
            named = {int(found[1]) for path, _ in faults if (found := _PLACE.match(path))}
            keeps = [place not in named for place in range(len(batch))]
            if all(keeps) and status in (400, 413, 422):  # no event is named: found by halves
                self._limit = max(len(batch) // 2, 1)
                keeps = keeps if len(batch) > 1 else [False]
            kept = list(compress(batch, keeps))
            self._waiting.extendleft(reversed(kept))
            if status in (400, 413, 422) or len(kept) < len(batch):
                self._count_refused(len(batch) - len(kept), status, faults)
                return 0.0
            pause = seconds_of(headers.get("Retry-After"))
            if pause is None:
                pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
            pause = max(pause, _SHORTEST_PAUSE)
            _log.warning("%d events wait: %s", len(self._waiting), f"status {status}" if status else "no connection")
            return random.uniform(pause, 1.25 * pause)

    def _count_refused(self, number: int, status: int, faults: list[tuple[str, str]]) -> None:
        if number:
            self._counter.add("events_refused", number)
            # Of the first fault the path alone: its message may quote a value.
            _log.error("%d events refused (%d) %s", number, status, faults[0][0] if faults else "")

    def close(self) -> None:
        """Drop and count what still waits, and what was sent without a reply."""
        with self._lock:
            self._is_closed = True
            left = len(self._waiting) + len(self._sent)
            self._waiting.clear()
            self._sent = []
            self._counter.add("events_dropped", left)
        if left:
            _log.error("%d events dropped: the client was closed before they were sent", left)
