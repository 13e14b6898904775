"""One next event and its time: one timer of an event loop for all that a connection waits for.

A timer of the loop for each of these would cost more than they: of most nothing comes.
"""

import asyncio
from collections.abc import Callable


class OneTimer:
    """Does what was started last, unless that is replaced or stopped in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.then: Callable[[], None] | None = None
        self.due = 0.0  # in seconds of the loop
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def start(self, seconds: float, then: Callable[[], None]) -> None:
        """Schedule `then` in place of what was to be done before."""
        self.due, self.then = self._loop.time() + seconds, then
        if self._timer is None or self.due < self._timer_due:
            self._set_timer(seconds)

    def stop(self) -> None:
        """Schedule nothing."""
        self.then = None

    def close(self) -> None:
        """End it."""
        self.then = None
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due = self._loop.call_later(seconds, self._call_if_due), self._loop.time() + seconds

    def _call_if_due(self) -> None:
        self._timer = None
        then, left = self.then, self.due - self._loop.time()
        if then is None:
            return
        if left > 0:
            self._set_timer(left)
        else:
            self.then = None
            then()
