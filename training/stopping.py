"""Ends of a job by a signal: Ctrl-C at once, SIGTERM and SIGHUP where nothing is lost by it.

In training that is the end of a step, at which every process has saved (train.py). Elsewhere it is at once: what other
jobs have finished is kept, and nothing that they write is seen half. A second signal of the kind changes nothing.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_TERMINATING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """The end of a job by SIGTERM or SIGHUP, as KeyboardInterrupt is that by Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


class _Wish:
    """The signal that ends this process, and whether it comes at a place of its own choice."""

    number: int | None = None
    is_deferred = False


_wish = _Wish()


def take_signals() -> None:
    """Install handlers that end this process as this module says. SIGHUP that is ignored (nohup) stays so."""
    signal.signal(signal.SIGINT, _interrupt)
    end_on_signals()
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _terminate)


def end_on_signals() -> None:
    """Install a handler of SIGTERM that ends this process as this module says."""
    signal.signal(signal.SIGTERM, _terminate)


@contextmanager
def deferred() -> Iterator[None]:
    """Within it a signal is only noted. The block reads `is_wanted`, and ends after it at the latest."""
    _wish.is_deferred = True
    try:
        yield
    finally:
        _wish.is_deferred = False
    if is_wanted():
        raise ended()


def is_wanted() -> bool:
    """A signal to end this process has come."""
    return _wish.number is not None


def ended() -> Terminated:
    """The end by the signal that came, or by SIGTERM where another process of the run got it."""
    return Terminated(signal.SIGTERM if _wish.number is None else _wish.number)


def _terminate(number: int, _: FrameType | None) -> None:
    for either in _TERMINATING:
        signal.signal(either, signal.SIG_IGN)
    _wish.number = number
    if not _wish.is_deferred:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise ended()


def _interrupt(_: int, __: FrameType | None) -> None:
    # By way of the clean-up, which a second signal must not cut short.
    for either in (signal.SIGINT, *_TERMINATING):
        signal.signal(either, signal.SIG_IGN)
    raise KeyboardInterrupt
