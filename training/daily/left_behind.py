"""Leftovers of nights on the disk: runs of long ago, and what a publication that was killed had begun.

In: the folder of a cycle's runs, and the model's. Out: fewer folders. Of runs those of the last days stay, for whoever
wants to look at one. Names that no night gives are left alone.
"""

import logging
import re
import shutil
import time
from datetime import date, datetime, timedelta
from pathlib import Path

from training.daily.plan import COLD, WARM

log = logging.getLogger(__name__)

KEPT = timedelta(days=7)
_RUN = re.compile(rf"(\d{{8}})-(?:{COLD}|{WARM})-[0-9a-f]{{8}}")
# A publication takes minutes: what is older was killed.
_KILLED = timedelta(days=1)


def remove_old_runs(runs: Path, newest: date) -> None:
    """Remove the runs of days before the last KEPT up to `newest`."""
    for path in sorted(runs.iterdir()) if runs.is_dir() else []:
        match = _RUN.fullmatch(path.name)
        if match is not None and _day(match[1]) < newest - KEPT and path.is_dir() and not path.is_symlink():
            _remove(path, "a run of long ago")


def remove_killed_publications(folder: Path) -> None:
    """Remove the hidden folders of publications that were killed."""
    for path in sorted(folder.glob(".publishing-*")):
        if path.is_dir() and time.time() - path.stat().st_mtime > _KILLED.total_seconds():
            _remove(path, "a publication that was killed")


def _remove(path: Path, what: str) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:  # no reason to publish nothing
        log.warning("%s: %s, cannot be removed (%s)", path, what, error.strerror)
    else:
        log.info("%s: removed, %s", path, what)


def _day(text: str) -> date:
    try:
        return datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return date.max
