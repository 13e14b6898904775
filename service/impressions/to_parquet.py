"""`python -m service parquet DIR`: makes Parquet of the whole files of an impression log.

In: the folder of a log. Out: for each `impressions-*.jsonl` an `impressions-*.parquet` in its place, with the owner's
rights alone. The exit status is 1 where one could not be made. That one stays as it is, and standard error says why.
The Parquet file is whole on the disk before it gets its name, and the lines go after that: whenever this process dies,
none is lost, and the next one takes up what is left. One works on a folder at a time. Another ends at once.
"""

import argparse
import fcntl
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from service.impressions.folder import PREFIX, impression_files
from service.log_files.folder import LINES, PARQUET

_LOCK = ".impressions-to-parquet.lock"
_NICENESS = 19
_FAULTS_SHOWN = 5


def main(arguments: Sequence[str]) -> int:
    """Convert. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m service parquet", description="Parquet of an impression log.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the log (--impression-log)")
    folder: Path = parser.parse_args(arguments).folder
    os.nice(_NICENESS)
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        faults = convert(folder)
    except OSError as error:
        faults = [error.strerror or str(error)]
    for fault in faults[:_FAULTS_SHOWN]:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def convert(folder: Path) -> list[str]:
    """Convert what is whole, until there is no more. Returns what is wrong with files that stay. Raises OSError."""
    for left in folder.glob(f".{PREFIX}*{PARQUET}.part"):
        left.unlink()
    faults: dict[Path, str] = {}
    while waiting := [file for file in impression_files(folder).named(LINES) if file not in faults]:
        for file in waiting:
            try:
                _convert(file)
            except (OSError, ValueError) as error:
                if not file.exists():  # removed meanwhile, to keep the folder within its bound
                    continue
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                faults[file] = f"{file.name}: {reason}"
    return list(faults.values())


def _convert(file: Path) -> None:
    from service.impressions.parquet import write  # only where there is something to do: Arrow is large

    whole = file.with_suffix(PARQUET)
    if not whole.exists():
        part = file.with_name(f".{whole.name}.part")
        try:
            with file.open("rb") as source, open(part, "xb", opener=_private) as sink:
                write(source, sink)
                sink.flush()
                os.fsync(sink.fileno())
            part.rename(whole)
            _sync(file.parent)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()
    file.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
