"""Work that must not get into the way of answering: threads of low priority, that give way."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SWITCH_SECONDS = 0.0005


def nice(niceness: int) -> None:
    """Put the calling thread, and those that it starts from now on, behind others. It cannot come forward again."""
    with suppress(OSError):  # on Linux a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


@contextmanager
def short_intervals() -> Iterator[None]:
    """Shorten the time that a thread keeps the interpreter's lock. A request takes the lock several times, and would
    wait 5 ms for each while another thread is busy in Python. Not for always: switches cost where all threads
    answer."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
