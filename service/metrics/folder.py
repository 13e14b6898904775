"""The folder of temporary files where several workers keep their metrics, and its removal once no service uses it.

In: the system's folder of temporary files (TMPDIR). Out: a folder of this service's own, removed when its parent ends.
A parent that is killed leaves it behind, and the next service of the same user removes it: a user of a folder has a
shared lock on it for as long as it lives, and only a folder without a lock is removed.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from service.base.log import FieldLogger

PREFIX = "feedrank-metrics-"

_log = FieldLogger("metrics")
_held: list[int] = []


@contextmanager
def metrics_folder() -> Iterator[str]:
    """A folder of this process's own, gone when the block ends. Raises OSError, naming what to do, where no folder of
    temporary files can be written."""
    with ExitStack() as stack:
        try:
            parent = Path(tempfile.gettempdir())
            _say_fallback(parent)
            _remove_abandoned(parent)
            folder = _own_folder(stack, parent)
        except OSError as error:
            tried = os.environ.get("TMPDIR", "TMPDIR, /tmp")
            raise OSError(
                f"{tried}: no folder of temporary files can be written ({error.strerror or error}), where workers keep "
                "their metrics; set TMPDIR to one with room, or serve with --workers 1"
            ) from error
        yield str(folder)


def hold_folder(folder: Path) -> None:
    """Keep `folder` until this process ends."""
    try:
        _held.append(_locked(folder, fcntl.LOCK_SH))
    except OSError as error:  # it is gone, and costs samples alone
        _log.error("the folder of metrics cannot be locked", folder=folder.name, reason=error.strerror)


def _say_fallback(parent: Path) -> None:
    wanted = os.environ.get("TMPDIR")
    if wanted and Path(wanted).absolute() != parent:
        _log.warning("TMPDIR cannot be written; another folder is used", folder=wanted, used=str(parent))


def _own_folder(stack: ExitStack, parent: Path) -> Path:
    while True:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent)))
        try:
            stack.callback(os.close, _locked(folder, fcntl.LOCK_SH))
        except FileNotFoundError:  # another service found it before it was locked
            continue
        if folder.exists():
            return folder


def _remove_abandoned(parent: Path) -> None:
    """Remove folders that belong to this user and are not locked."""
    removed = 0
    for folder in sorted(parent.glob(f"{PREFIX}*")):
        try:
            descriptor = _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # locked, no folder, another user's, or removed meanwhile: not ours to remove
            continue
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                shutil.rmtree(folder)
                removed += 1
        except OSError as error:
            _log.warning("an unused folder of metrics cannot be removed", folder=str(folder), reason=error.strerror)
        finally:
            os.close(descriptor)
    if removed:
        _log.info("folders of metrics of killed services removed", folders=removed)


def _locked(folder: Path, operation: int) -> int:
    """An open descriptor of a folder, no link to one, that locks it until it is closed. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, operation)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
