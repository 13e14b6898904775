"""What every worker process of an offline job does: it leaves Ctrl-C to its parent and ends when that does."""

import multiprocessing
import os
import signal
import threading


def belong_to_parent() -> None:
    """Called first in a worker process."""
    # Ctrl-C reaches the whole group: the parent alone decides, and terminates its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent terminates nobody, and a worker that went on would keep what it holds from the next job.
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
