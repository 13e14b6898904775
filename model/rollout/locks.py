"""A lock on a file or folder that several processes change, kept for as long as one change takes.

In: an open descriptor. Out: nothing, or an OSError where another process keeps the lock too long. A file system that
has no locks is said once a change, and the last writer wins.
"""

import errno
import fcntl
import logging
import time

LOCK_SECONDS = 2.0
# What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

log = logging.getLogger(__name__)


def lock(descriptor: int) -> None:
    """Lock for this process alone, until the descriptor is closed. Raises OSError after LOCK_SECONDS."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOCK_SECONDS / 100)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("the file system of the models folder has no locks; the last writer wins")
            return
        else:
            return
