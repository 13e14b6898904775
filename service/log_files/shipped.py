"""Marks beside the files of a log: which of them are copied to where the log is shipped.

In: a file of a log. Out: `.<stem>.shipped` in its folder, one for both kinds of a file, lines and Parquet. Whoever
keeps a folder within its bound removes no file without its mark where the log is shipped, and takes the mark along.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

SUFFIX = ".shipped"


def mark_of(file: Path) -> Path:
    """The mark of a file, whether it is there or not."""
    return file.with_name(f".{file.stem}{SUFFIX}")


def is_shipped(file: Path) -> bool:
    """True for a file that is copied."""
    return mark_of(file).exists()


def unshipped(files: Iterable[Path]) -> list[Path]:
    """The files that are not copied yet."""
    return [file for file in files if not is_shipped(file)]


def forget(file: Path) -> None:
    """Remove the mark of a file that is removed."""
    with suppress(FileNotFoundError):
        mark_of(file).unlink()
