"""The last requests of the impression log, from the ends of its files.

In: the folder of the log. Out: requests of one model, the newest last, and counts of what was left out. Files that are
being written come first, then closed ones from the newest on, as far as they are needed. A file in Parquet is read by a
process of its own, as Arrow never enters the one that serves.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from model.untrusted_files import open_regular
from service.impressions.folder import impression_files
from service.impressions.record import Logged, Loss, read_line
from service.log_files.folder import PARQUET, closed_name

_BLOCK_BYTES = 2**18
# Of lines in memory, whatever their number.
_MOST_BYTES = 64 * 2**20
_PARQUET_SECONDS = 15.0
_ROOT = Path(__file__).resolve().parents[2]


class LastRequests(NamedTuple):
    """Requests by time. `left_out` counts lines by the reason why they are none of these, and files."""

    requests: list[Logged]
    left_out: Counter[str]


def last_requests(folder: Path, model: str, most: int) -> LastRequests:
    """The last `most` requests of a model. Raises OSError where the folder cannot be listed."""
    log = impression_files(folder)
    opened, closed = log.open_files(), log.whole_files()
    left_out: Counter[str] = Counter()
    found: list[Logged] = []
    budget = _MOST_BYTES
    for at, file in enumerate([*opened, *reversed(closed)]):
        # Several workers write at one time, each a file. A closed file is older than all of these.
        if (at >= len(opened) and len(found) >= most) or budget <= 0:
            break
        of_file = 0
        for text in _parquet_lines(file, most, left_out) if file.suffix == PARQUET else _lines_of(file):
            budget -= len(text)
            if of_file == most or budget <= 0:
                break
            logged = _read(text, model, left_out)
            if logged is not None:
                found.append(logged)
                of_file += 1
    found.sort(key=lambda one: one.line.time)
    return LastRequests(found[-most:], left_out)


def _read(text: bytes, model: str, left_out: Counter[str]) -> Logged | None:
    try:
        line = read_line(text)
    except ValueError:
        left_out["damaged lines"] += 1
        return None
    if isinstance(line, Loss):
        left_out["requests lost by the log"] += line.lost
        return None
    if line.line.model != model:
        left_out["requests of other models"] += 1
        return None
    return line


def _lines_of(file: Path) -> Iterator[bytes]:
    """Lines of a file that may be closed meanwhile, or removed."""
    for path in _names(file):
        try:
            opened = open_regular(path)
        except FileNotFoundError:
            continue
        with opened:
            yield from lines_backwards(opened)
        return


def _parquet_lines(file: Path, most: int, left_out: Counter[str]) -> list[bytes]:
    """The last lines of a Parquet file, the last one first. None of one that cannot be read, which is counted."""
    limits = [str(most), str(_MOST_BYTES)]
    command = [sys.executable, "-m", "service.impressions.parquet_tail", str(file.resolve()), *limits]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, check=True, timeout=_PARQUET_SECONDS)
    except (OSError, subprocess.SubprocessError):
        left_out["files in Parquet that could not be read"] += 1
        return []
    return done.stdout.splitlines()


def _names(file: Path) -> Iterable[Path]:
    closed = closed_name(file)
    return [file] if closed is None else [file, closed]


def lines_backwards(file: BinaryIO) -> Iterator[bytes]:
    """Whole lines of a file, the last one first. Bytes after the last line break are no line yet. Blank ones are
    ignored."""
    start = os.fstat(file.fileno()).st_size
    rest, has_ended = b"", False
    while start > 0:
        size = min(start, _BLOCK_BYTES)
        start -= size
        file.seek(start)
        rest, *whole = (file.read(size) + rest).split(b"\n")
        for line in reversed(whole):
            if has_ended and line.strip():
                yield line
            has_ended = True
    if has_ended and rest.strip():
        yield rest
