"""What worker processes of offline jobs have in common. Workers are spawned: torch's threads do not survive a fork."""

import multiprocessing
import os
import signal
import threading


def begin_worker() -> None:
    """Has this worker ignore Ctrl-C, which reaches the whole group (its parent decides), and end with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent terminates nobody, and a worker that went on would hold what the next job needs.
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
