"""The requests of an impression log, from all kinds of its files: JSON lines, also of the file being written, and
Parquet.

In: files, or folders of a log. Out: each request with its place, or what is wrong with it there.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from model.untrusted_files import open_regular
from service.impressions.folder import impression_files
from service.impressions.parquet import ParquetImpressions
from service.impressions.record import Logged, Loss, logged, read_line
from service.log_files.folder import LINES, PARQUET, closed_name


class Unfinished(NamedTuple):
    """Half a line at the end of an open file: its writer is at it, or died."""


class Entry(NamedTuple):
    """A line or a row: `logged`, or the fault of one that is damaged. `size` is its part of the file, in bytes."""

    place: str
    logged: Logged | Loss | ValueError | Unfinished
    size: float


def log_files(given: Sequence[Path]) -> list[Path]:
    """The files that are given, and those of folders: the whole ones, then those that are open. Raises ValueError where
    there is none, and naming a Parquet file that is damaged, as far as its end tells."""
    files: list[Path] = []
    for path in given:
        found = _files_of(path) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise ValueError(f"{path}: no impression log; give its files, or its folder")
        files += found
    parquet = {file for file in files if file.suffix == PARQUET}
    for file in parquet:
        ParquetImpressions(file)
    # A file is in both kinds for a moment, and a pattern names both.
    return [file for file in files if not (file.suffix == LINES and file.with_suffix(PARQUET) in parquet)]


def _files_of(folder: Path) -> list[Path]:
    log = impression_files(folder)
    opened = log.open_files()  # first: one that is closed meanwhile is among the whole ones
    whole = log.whole_files()
    closed = {file.stem for file in whole}
    return whole + [file for file in opened if (name := closed_name(file)) is not None and name.stem not in closed]


def entries(file: Path) -> Iterator[Entry]:
    """Records of a file, in its order. Of an open one, those it had when it was opened. Raises OSError, and ValueError
    naming a Parquet file that is damaged."""
    if file.suffix == PARQUET:
        yield from _parquet_entries(file)
        return
    try:
        lines = open_regular(file)
    except FileNotFoundError:
        # The service has closed it meanwhile, or converted it.
        later = closed_name(file) or (file.with_suffix(PARQUET) if file.suffix == LINES else None)
        if later is None:
            raise
        yield from entries(later)
        return
    is_open = closed_name(file) is not None
    with lines:
        left = os.fstat(lines.fileno()).st_size
        for number, text in enumerate(lines, start=1):
            left -= len(text)
            place = f"{file.name}:{number}"
            if is_open and not text.endswith(b"\n"):
                yield Entry(place, Unfinished(), len(text))
                return
            yield Entry(place, _read(text), len(text))
            if is_open and left <= 0:
                return  # what is written from now on is for the next replay


def _read(text: bytes) -> Logged | Loss | ValueError:
    try:
        return read_line(text)
    except ValueError as error:
        return error


def _parquet_entries(file: Path) -> Iterator[Entry]:
    impressions = ParquetImpressions(file)
    size = file.stat().st_size / max(1, impressions.rows)
    for number, line in enumerate(impressions.lines(), start=1):
        found: Logged | Loss | ValueError
        try:
            found = line if isinstance(line, Loss) else logged(line)
        except ValueError as error:
            found = error
        yield Entry(f"{file.name}:{number}", found, size)
