"""Look-ups of users in the store, by a thread of their own: neither the event loop nor a scoring thread waits for it.

In: names of users. Out: their states, or that they came too late. Waiting look-ups are read together, in one call of
the store. A look-up that is not there in time has ended, and what comes after is dropped. When look-ups fail one after
another, for longer than a pause of the process takes, the breaker opens: none is begun, until the store answers the
thread in time again.
"""

import asyncio
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from service.base.log import FieldLogger, Throttle
from service.metrics.state_metrics import LOOKUP_RESULTS, StateMetrics
from service.state.store import Store, StoreError, StoreTimeoutError
from service.state.user_state import UserState

MOST_WAITING = 256
FAILURES_TO_OPEN = 5
FAILING_SECONDS = 0.1
PROBE_SECONDS = 0.5
_TOGETHER = 64
_STOP_SECONDS = 2.0
_NOBODY = b"\0" * 16
_ONE = (1).to_bytes(8, sys.byteorder)

HIT, MISS, UNREADABLE, TIMEOUT, ERROR = LOOKUP_RESULTS

_log = FieldLogger("state")


class Lookup:
    """One look-up. `result` is None until it has ended, and `state` what was found. Times are of time.perf_counter."""

    __slots__ = ("key", "model", "name", "on_end", "result", "started", "state", "until")

    def __init__(self, model: str, key: str, name: bytes, started: float, until: float) -> None:
        self.model = model
        self.key = key
        self.name = name
        self.started = started
        self.until = until
        self.result: str | None = None
        self.state: UserState | None = None
        self.on_end: Callable[[], object] | None = None


class Lookups:
    """The look-ups of one worker. `seconds` is what each of them may take."""

    def __init__(self, store: Store, seconds: float, metrics: StateMetrics) -> None:
        self._store = store
        self._seconds = seconds
        self._metrics = metrics
        # As the scoring threads': what waits, and an eventfd that wakes the thread without the interpreter's lock held.
        self._queue: deque[Lookup] = deque()
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._ready, select.POLLIN)
        self._is_stopping = False
        self._lock = threading.Lock()
        # Failures in a row, and when the first of them was.
        self._failures = 0
        self._failing_since = 0.0
        self._is_open = False
        self._throttle = Throttle()
        self._thread = threading.Thread(target=self._work, name="state", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. A store that hangs is not waited for."""
        self._is_stopping = True
        os.write(self._ready, _ONE)
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            os.close(self._ready)

    @property
    def is_open(self) -> bool:
        """True while the breaker lets no look-up through."""
        return self._is_open

    def begin(self, model: str, key: str, name: bytes, deadline: float | None) -> Lookup:
        """Begin a look-up, of any thread. It ends at the deadline at the latest."""
        now = time.perf_counter()
        until = now + self._seconds
        lookup = Lookup(model, key, name, now, until if deadline is None else min(until, deadline))
        if self._is_open or len(self._queue) >= MOST_WAITING:
            self._end(lookup, ERROR, is_of_store=False)
        else:
            self._queue.append(lookup)
            os.write(self._ready, _ONE)
        return lookup

    def has_ended(self, lookup: Lookup) -> bool:
        """True for a look-up with its result, which is a timeout where its time is over."""
        if lookup.result is None and time.perf_counter() >= lookup.until:
            self._end(lookup, TIMEOUT)
        return lookup.result is not None

    def call_at_end(self, lookup: Lookup, call: Callable[[], object]) -> None:
        """Call once, when a look-up has ended: now, or by the thread where it ends. Called on the event loop, whose
        timer ends a look-up that the store does not answer."""
        with self._lock:
            has_ended = lookup.result is not None
            if not has_ended:
                lookup.on_end = call
        if has_ended:
            call()
        else:
            seconds = max(0.0, lookup.until - time.perf_counter())
            asyncio.get_running_loop().call_later(seconds, self._end, lookup, TIMEOUT)

    def _end(self, lookup: Lookup, result: str, state: UserState | None = None, *, is_of_store: bool = True) -> None:
        """End a look-up, if it has not ended. One that never reached the store says nothing of it."""
        now = time.perf_counter()
        with self._lock:
            if lookup.result is not None:
                return
            lookup.state, lookup.result = state, result
            has_opened = is_of_store and self._opens_after(result, now)
        if has_opened:
            self._metrics.breaker_open.set(1)
            _log.error("the state store fails; what it has of users takes defaults until it answers again")
        self._metrics.count_lookup(lookup.model, result, now - lookup.started)
        if lookup.on_end is not None:
            lookup.on_end()

    def _opens_after(self, result: str, now: float) -> bool:
        """Count a result, and return whether it is the one that opens the breaker. The lock is held."""
        if result in (HIT, MISS, UNREADABLE):
            self._failures = 0
            return False
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        must_open = self._failures >= FAILURES_TO_OPEN and now - self._failing_since >= FAILING_SECONDS
        has_opened = must_open and not self._is_open
        self._is_open = self._is_open or must_open
        return has_opened

    def _close_breaker(self) -> None:
        with self._lock:
            self._failures, self._is_open = 0, False
        self._metrics.breaker_open.set(0)
        _log.info("the state store answers again")

    def _work(self) -> None:
        while not self._is_stopping:
            is_woken = self._poll.poll(1000 * PROBE_SECONDS if self._is_open else None)
            if is_woken:
                os.read(self._ready, len(_ONE))
            while batch := self._take_batch():
                self._read(batch)
            if self._is_open and not self._is_stopping:
                self._probe()
        self._store.close()

    def _take_batch(self) -> list[Lookup]:
        """Look-ups that wait and still have time, at most so many as are read together."""
        batch: list[Lookup] = []
        while self._queue and len(batch) < _TOGETHER:
            lookup = self._queue.popleft()
            if not self.has_ended(lookup):
                batch.append(lookup)
        return batch

    def _read(self, batch: list[Lookup]) -> None:
        try:
            blobs = self._store.read([lookup.name for lookup in batch])
        except StoreError as error:
            self._log_fault(error)
            for lookup in batch:
                self._end(lookup, TIMEOUT if isinstance(error, StoreTimeoutError) else ERROR)
            return
        for lookup, blob in zip(batch, blobs, strict=True):
            try:
                state = None if blob is None else UserState.decoded(blob)
            except ValueError:
                self._end(lookup, UNREADABLE)
            else:
                self._end(lookup, MISS if state is None else HIT, state)

    def _probe(self) -> None:
        """Close the breaker where the store answers in time."""
        started = time.perf_counter()
        try:
            self._store.read([_NOBODY])
        except StoreError as error:
            self._log_fault(error)
            return
        if time.perf_counter() - started <= self._seconds:
            self._close_breaker()

    def _log_fault(self, error: StoreError) -> None:
        if self._throttle.is_due():
            _log.warning("the state store cannot be read", reason=str(error))
