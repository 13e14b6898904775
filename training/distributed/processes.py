"""Processes of an offline job that another one started: they end when that one does."""

import multiprocessing
import os
import signal
import threading
import time

_LOOK_SECONDS = 0.5


def belong_to_parent() -> None:
    """Called first in a worker process."""
    # Ctrl-C and a terminal that closes reach the whole group: the parent alone decides, and terminates its workers.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def end_with_launcher() -> None:
    """End this process when the launcher (torchrun) that started it is killed. Nothing else would restart it, or stop
    it where it waits for another that is gone."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent terminates no worker, and one that went on would keep its resources from the next job.
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
