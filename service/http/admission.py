"""Admission of requests: the work of a process at one time is bounded in candidates, so that waits are short.

In: the size of a request before its body is read, its candidates once they are known, the time it took. Out: a
`Ticket`, or Problem 429 with the seconds after which the work before it will be done. Work is candidates and, for what
a request costs besides, FIXED_WORK of them. At first it is guessed from the size of the body and the bytes of a
candidate in recent requests. A compressed body counts as the largest request there may be. The guess is corrected when
the body is parsed. The bound is what the scoring threads do in a given time at their recent rate.
"""

import math
import threading

from service.base.errors import Problem

# What a request costs besides its candidates, in candidates (benchmarks/results/serving.md: N = 1 against N = 100).
FIXED_WORK = 50
# Work per second of a thread and bytes of a candidate before any was seen: slow and small, so that a process that has
# not measured yet takes less rather than more.
FIRST_RATE = 20_000.0
FIRST_BYTES = 50.0
# The share of the newest request in what is remembered.
_NEWEST = 0.05
_MOST_SURPRISE = 4.0


def busy(seconds: int) -> Problem:
    """429: there is no room, and may be after so many seconds."""
    detail = "the service is busy, and this request would wait too long"
    return Problem(429, detail, reason="shed", retry_after=seconds)


class Admission:
    """The work of one process. Safe from several threads. `seconds` is the longest wait that is planned for, `largest`
    the most candidates that a request may have."""

    def __init__(self, threads: int, seconds: float, largest: int) -> None:
        self._threads = threads
        self._seconds = seconds
        self._largest = largest
        self._rate = FIRST_RATE
        self._bytes = FIRST_BYTES
        self._in_flight = 0  # whole numbers: what was let in and has ended leaves nothing behind
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """Work that was let in and is not answered."""
        return self._in_flight

    @property
    def limit(self) -> float:
        """Work that the threads do in the time that is planned for."""
        return self._threads * self._rate * self._seconds

    def wait(self, size: int | None) -> int | None:
        """Whole seconds after which a request of this size may be let in, None where it would be now. This is
        decided before its body is read, so that a slow one takes no place meanwhile."""
        with self._lock:
            return self._wait_seconds(self._guessed(size))

    def admit(self, size: int | None) -> "Ticket":
        """Admit a request whose body is there and not parsed. None is a compressed one. Raises Problem 429.

        As many of its size as there are threads, and one that waits, are let in at any size: so large requests
        keep the threads busy too."""
        with self._lock:
            work = self._guessed(size)
            seconds = self._wait_seconds(work)
            if seconds is not None:
                raise busy(seconds)
            self._in_flight += work
        return Ticket(self, work, size)

    def _guessed(self, size: int | None) -> int:
        guess = self._largest if size is None else min(size / self._bytes, self._largest)
        return FIXED_WORK + round(guess)

    def _wait_seconds(self, work: int) -> int | None:
        rate = self._threads * self._rate
        if self._in_flight + work <= max(rate * self._seconds, (self._threads + 1) * work):
            return None
        return max(1, math.ceil(self._in_flight / rate))

    def _set_work(self, ticket: "Ticket", work: int) -> None:
        with self._lock:
            if ticket.is_open:
                self._in_flight += work - ticket.work
            ticket.work = work

    def _release(self, ticket: "Ticket") -> None:
        with self._lock:
            if ticket.is_open:
                ticket.is_open = False
                self._in_flight -= ticket.work

    def _learn_size(self, candidates: int, size: int) -> None:
        with self._lock:
            self._bytes += _NEWEST * (size / candidates - self._bytes)

    def _learn_rate(self, work: float, seconds: float) -> None:
        with self._lock:
            # One request that met a cold process, or a busy machine, is no measure: it may count for a few times longer
            # than was expected, and only where requests go on like that does the rate fall with them.
            expected = work / self._rate
            seconds = min(seconds, _MOST_SURPRISE * expected)
            # A mean of times, as times add up and rates do not.
            self._rate = work / ((1 - _NEWEST) * expected + _NEWEST * seconds)


class Ticket:
    """A request that was let in. Release it, also where it failed. `size` is of its body, as it is parsed.

    A scoring thread may still work for one that is released, as its deadline has passed."""

    def __init__(self, admission: Admission, work: int, size: int | None) -> None:
        self._admission = admission
        self.size = size
        self.work = work
        self.is_open = True

    def set_candidates(self, candidates: int, requests: int = 1) -> None:
        """The body is parsed, and has this many candidates of so many requests."""
        self._admission._set_work(self, FIXED_WORK * requests + candidates)
        if candidates and self.size is not None:
            self._admission._learn_size(candidates, self.size)

    def scored(self, seconds: float) -> None:
        """A scoring thread has answered it in this time."""
        self._admission._learn_rate(self.work, seconds)

    def release(self) -> None:
        """The request is over."""
        self._admission._release(self)
