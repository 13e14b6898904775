"""The requests of an impression log, from all kinds of its files: JSON lines, also of the file being written, and
Parquet.

In: files, or folders of a log. Out: each request with its place, or what is wrong with it there.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from model.untrusted_files import open_regular
from service.impressions.folder import impression_files
from service.impressions.parquet import ParquetImpressions
from service.impressions.record import Logged, Loss, logged, read_line
from service.log_files.folder import LINES, PARQUET, closed_name


class Unfinished(NamedTuple):
    """Half a line at the end of an open file: its writer is at it, or died."""


class Gone(NamedTuple):
    """A file that was removed after it was listed: the service keeps a log within its bound."""


class Entry(NamedTuple):
    """A line or a row: `logged`, or the fault of one that is damaged. `size` is its part of the file, in bytes."""

    place: str
    logged: Logged | Loss | ValueError | Unfinished | Gone
    size: float


def log_files(given: Sequence[Path]) -> list[Path]:
    """The files that are given, and those of folders: the whole ones, then those that are open. Raises ValueError where
    there is none, and naming a Parquet file that is damaged, as far as its end tells."""
    files: list[Path] = []
    for path in given:
        # One that is named may be Parquet by now.
        found = _files_of(path) if path.is_dir() else [kind for kind in _kinds(path) if kind.is_file()][:1]
        if not found:
            raise ValueError(f"{path}: no impression log; give its files, or its folder")
        files += found
    parquet = {file for file in files if file.suffix == PARQUET}
    for file in parquet:
        with suppress(FileNotFoundError):  # whoever reads its entries is told
            ParquetImpressions(file)
    # A file is in both kinds for a moment, and a pattern names both.
    left = [file for file in files if not (file.suffix == LINES and file.with_suffix(PARQUET) in parquet)]
    return list(dict.fromkeys(left))


def _files_of(folder: Path) -> list[Path]:
    log = impression_files(folder)
    opened = log.open_files()  # first: one that is closed meanwhile is among the whole ones
    whole = log.whole_files()
    closed = {file.stem for file in whole}
    return whole + [file for file in opened if (name := closed_name(file)) is not None and name.stem not in closed]


def entries(file: Path) -> Iterator[Entry]:
    """Records of a file, in its order. Of an open one, those it had when it was opened. Where the service has closed or
    converted it meanwhile, what it became. Raises OSError, and ValueError naming a Parquet file that is damaged."""
    for kind in _kinds(file):
        try:
            found = (
                _parquet_entries(kind, ParquetImpressions(kind))
                if kind.suffix == PARQUET
                else _line_entries(kind, open_regular(kind))
            )
        except FileNotFoundError:
            continue
        yield from found
        return
    yield Entry(file.name, Gone(), 0)


def _kinds(file: Path) -> list[Path]:
    """The paths that a file may have by now: its own, the one when it is closed, and the one as Parquet."""
    closed = closed_name(file) or file
    return list(dict.fromkeys([file, closed, *([closed.with_suffix(PARQUET)] if closed.suffix == LINES else [])]))


def _line_entries(file: Path, lines: BinaryIO) -> Iterator[Entry]:
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


def _parquet_entries(file: Path, impressions: ParquetImpressions) -> Iterator[Entry]:
    size = impressions.size_bytes / max(1, impressions.rows)
    for number, line in enumerate(impressions.lines(), start=1):
        found: Logged | Loss | ValueError
        try:
            found = line if isinstance(line, Loss) else logged(line)
        except ValueError as error:
            found = error
        yield Entry(f"{file.name}:{number}", found, size)
