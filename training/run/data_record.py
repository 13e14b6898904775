"""Files that a run was trained on, so that what reads them later says which have changed: data_files.json of a run.

In: a run's data. Out: by file its size, the time or tag of its file system and, of local files that are read into
memory, a hash of its bytes: a copy with other times is the same file. A stream's files are identified by size and time.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import xxhash

from training.config import DataConfig
from training.data.files import LogFile, LogFiles
from training.run.run import Run, read_json, write_json
from training.wording import counted

log = logging.getLogger(__name__)

RECORD = "data_files.json"
_SHOWN = 5


def write_record(run: Run) -> None:
    """Write what a run's files are now. Raises ValueError where one is gone."""
    files = LogFiles(run.config.data.path)
    write_json(run.path / RECORD, {"files": {file.name: _entry(run.config.data, files, file) for file in files.files}})


def warn_of_changes(run: Run) -> None:
    """Logs by name which of a run's files have changed, are gone or are new since it was trained."""
    changed, new = _changes(run)
    for line in changed[:_SHOWN]:
        log.warning("%s", line)
    if len(changed) > _SHOWN:
        log.warning("%s: %s more of its files changed", run.config.data.path, f"{len(changed) - _SHOWN:,}")
    if new:
        about = f"{counted(len(new), 'file')} new since {run.path} was trained: {', '.join(new[:_SHOWN])}"
        log.info("%s: %s%s", run.config.data.path, about, " ..." if len(new) > _SHOWN else "")


def _changes(run: Run) -> tuple[list[str], list[str]]:
    if not (run.path / RECORD).exists():
        return [], []
    kept = read_json(run.path / RECORD)["files"]
    files = LogFiles(run.config.data.path)
    now = {file.name: file for file in files.files}
    since = f"since {run.path} was trained: what is measured now is of other data"
    changed = []
    for name, entry in kept.items():
        if name not in now:
            changed.append(f"{run.config.data.path}/{name}: is gone {since}")
        elif not _is_same(entry, files, now[name]):
            how = "has changed" if entry["xxh3"] is not None else "has another size or time"
            changed.append(f"{files.shown(now[name])}: {how} {since}")
    return changed, [name for name in now if name not in kept]


def _entry(data: DataConfig, files: LogFiles, file: LogFile) -> dict[str, Any]:
    size, stamp = files.size_and_time(file)
    is_hashed = data.read == "memory" and isinstance(data.path, Path)
    return {"bytes": size, "stamp": stamp, "xxh3": _hash(file) if is_hashed else None}


def _is_same(entry: dict[str, Any], files: LogFiles, file: LogFile) -> bool:
    size, stamp = files.size_and_time(file)
    if size != entry["bytes"]:
        return False
    return stamp == entry["stamp"] or (entry["xxh3"] is not None and _hash(file) == entry["xxh3"])


def _hash(file: LogFile) -> str:
    with Path(file.path).open("rb") as content:
        return hashlib.file_digest(content, xxhash.xxh3_128).hexdigest()
