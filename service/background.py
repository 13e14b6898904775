"""Work that must not get into the way of answering: threads of low priority."""

import os
import threading
from contextlib import suppress


def lower_priority(niceness: int) -> None:
    """Has the calling thread, and what it starts from now on, stand behind others; it cannot come forward again."""
    with suppress(OSError):  # on Linux a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
