"""Calls to a file system that are made again where it says that its fault may pass: a network that hangs, say."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Seconds before each further try: about what a client of a network file system takes to find its server again.
PAUSES = (0.1, 0.5, 2.0, 5.0)
TEMPORARY = {
    errno.EAGAIN, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH,
}  # fmt: skip


class TemporaryError(ValueError):
    """A fault of a file system in words for the user, which another try may not meet."""


def retried(call: Callable[[], Result], place: str) -> Result:
    """The result of a call, made again after each of PAUSES while its error is temporary. Raises what the last try
    raised. `place` opens what is logged."""
    for pause in PAUSES:
        try:
            return call()
        except (OSError, TemporaryError) as error:
            if not is_temporary(error):
                raise
            log.warning("%s: %s; trying again in %g s", place, first_line(error), pause)
            time.sleep(pause)
    return call()


def is_temporary(error: Exception) -> bool:
    """True for a fault that another try may not meet."""
    is_known = isinstance(error, TemporaryError | TimeoutError | ConnectionError)
    return is_known or (isinstance(error, OSError) and error.errno in TEMPORARY)


def first_line(error: BaseException) -> str:
    """Message of an error, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
