"""Time limits of tests by what a test does, not by the clock alone: a busy machine makes it longer and not wrong.

In: the timeout of pytest-timeout, in seconds. Out: a test is ended when its processes (this one and those that it
started) take less CPU time than a share of that within that time, as one that waits for ever does, or when they took
a multiple of it in all, as one that loops for ever does. Fixtures that compile or train wait as long as they work.
"""

import signal
import threading
import time
from typing import Any

import psutil
import pytest
from pytest_timeout import timeout_sigalrm

# CPU time of a timeout's wall time: an idle service takes a tenth of it, one of 15 busy programs on a core twice that.
SHARE = 0.03
MULTIPLE = 4.0
CHECKS = 10


class Progress:
    """The CPU time that this process and its descendants take, checked from time to time."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.total = self.since = 0.0
        self.last = cpu_seconds()
        self.marked = time.monotonic()

    def fault(self) -> str | None:
        """The fault by now, None while there is progress."""
        now = cpu_seconds()
        # A child that nobody waited for takes its time along.
        spent, self.last = max(0.0, now - self.last), now
        self.total += spent
        self.since += spent
        if self.total > MULTIPLE * self.timeout:
            return f"{self.total:.0f} s of CPU time"
        if self.since >= SHARE * self.timeout:
            self.since, self.marked = 0.0, time.monotonic()
        elif time.monotonic() - self.marked >= self.timeout:
            return f"{self.since:.1f} s of CPU time in the last {self.timeout:.0f} s"
        return None


def cpu_seconds() -> float:
    """CPU time of this process, its descendants and those of them that have ended."""
    this = psutil.Process()
    total = 0.0
    for process in [this, *this.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """pytest-timeout's hook: its timer asks for progress. None leaves a test without signals to its own timer."""
    if settings.method != "signal" or threading.current_thread() is not threading.main_thread():
        return None
    progress = Progress(settings.timeout)

    def check(number: int, frame: object) -> None:
        __tracebackhide__ = True
        fault = progress.fault()
        if fault is not None:
            item.add_report_section("timeout", "progress", fault)
            timeout_sigalrm(item, settings)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    signal.signal(signal.SIGALRM, check)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout / CHECKS, settings.timeout / CHECKS)
    return True
