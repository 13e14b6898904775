"""Cores of a worker, where each is to have its own: `--bind-cores`.

In: a folder that the workers of one service share, and how many they are. Out: the cores of this process, its own for
as long as it lives: a share is taken by a lock on a file, which the system releases at any end of a worker, so that its
replacement finds it free.
"""

import fcntl
import os
from pathlib import Path

from service.base.log import FieldLogger

_log = FieldLogger("cores")
_held: list[int] = []


def bind_to_a_share(folder: Path, workers: int) -> frozenset[int] | None:
    """Bind this process to a share of its cores that no other of the `workers` has, and return it. None, and nothing
    is bound, where there is less than a core for each or, as the log says, no room for a lock."""
    cores = sorted(os.sched_getaffinity(0))
    size = len(cores) // workers
    if not size:
        return None
    for worker in range(workers):
        try:
            descriptor = os.open(folder / f"cores-{worker}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            _log.error(
                "no room for the locks of --bind-cores: this worker is not bound",
                folder=str(folder),
                reason=error.strerror,
            )
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        _held.append(descriptor)  # the lock is this process's until it ends
        share = frozenset(cores[worker * size : (worker + 1) * size])
        os.sched_setaffinity(0, share)
        return share
    return None
