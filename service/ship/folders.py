"""Folders that are shipped: whose files are of which log, and the lock that keeps two from shipping one.

What a worker of the service needs to start the process that ships, without the clients of stores.
"""

import fcntl
import os
from pathlib import Path

# The URL, which may hold a secret and so is no argument.
VARIABLE = "FEEDRANK_SHIP"
# Prefixes of files, by the name of their log, which its folder at the destination has too.
PREFIXES = {"impressions": "impressions-", "events": "events-"}
_LOCK = ".ship.lock"


def locked_folder(folder: Path) -> int:
    """An open descriptor that keeps others from shipping a folder. Raises BlockingIOError where one does, OSError."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
