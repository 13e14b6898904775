"""The requests of an impression log, from both kinds of its files: lines of JSON, and Parquet made of them.

In: files, or folders of a log. Out: each request with the place it stands in, or what is wrong with it there.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from service.logged import Logged, logged, read_line
from service.parquet_impressions import ParquetImpressions
from service.rotated_files import LINES, PARQUET, whole_files


class Entry(NamedTuple):
    """A line or a row: `logged`, or the fault of one that is damaged. `size` is its part of the file, in bytes."""

    place: str
    logged: Logged | ValueError
    size: float


def log_files(given: Sequence[Path]) -> list[Path]:
    """The files that are given, and the whole ones of folders. Raises ValueError where there is none, and naming a
    Parquet file that is damaged, as far as its end tells."""
    files: list[Path] = []
    for path in given:
        found = whole_files(path) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise ValueError(f"{path}: no impression log; give files, or a folder with whole ones")
        files += found
    parquet = {file for file in files if file.suffix == PARQUET}
    for file in parquet:
        ParquetImpressions(file)
    # A file is in both kinds for a moment, and a pattern names both.
    return [file for file in files if not (file.suffix == LINES and file.with_suffix(PARQUET) in parquet)]


def entries(file: Path) -> Iterator[Entry]:
    """What a file holds, in its order. Raises OSError, ValueError naming a Parquet file that is damaged."""
    if file.suffix == PARQUET:
        yield from _parquet_entries(file)
        return
    try:
        lines = file.open("rb")
    except FileNotFoundError:
        whole = file.with_suffix(PARQUET)
        if file.suffix != LINES or not whole.exists():
            raise
        yield from _parquet_entries(whole)  # the service has converted it meanwhile
        return
    with lines:
        for number, text in enumerate(lines, start=1):
            try:
                found: Logged | ValueError = read_line(text)
            except ValueError as error:
                found = error
            yield Entry(f"{file.name}:{number}", found, len(text))


def _parquet_entries(file: Path) -> Iterator[Entry]:
    impressions = ParquetImpressions(file)
    size = file.stat().st_size / max(1, impressions.rows)
    for number, line in enumerate(impressions.lines(), start=1):
        try:
            found: Logged | ValueError = logged(line)
        except ValueError as error:
            found = error
        yield Entry(f"{file.name}:{number}", found, size)
