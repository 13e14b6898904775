"""The files of a log as a join reads them: closed files of JSON lines and Parquet below a folder of any fsspec path.

In: a folder. Out: its files by name, and their lines with numbers. Names that begin with a dot or an underscore, in
whatever folder, are no part of a log: a writer's open file is such. Of a file in both kinds the Parquet is read alone.
Lines are of bounded size. What is longer is read over, and reported as a line that is none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from model.untrusted_files import open_regular
from training.data.retries import first_line, retried

LINES = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
_BLOCK_BYTES = 8 * 2**20
MOST_LINE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A closed file of a log: its name below the folder, its size."""

    name: str
    path: str
    size: int

    @property
    def is_parquet(self) -> bool:
        """True for Parquet, else the file has lines of JSON."""
        return self.name.endswith(PARQUET)

    @property
    def stem(self) -> str:
        """The name without its end: a file that becomes Parquet keeps it."""
        return self.name.rpartition(".")[0]


class Block(NamedTuple):
    """Whole lines, and the number of the first, from 1. `too_long` are the numbers of lines that were read over."""

    lines: list[bytes]
    first: int
    too_long: tuple[int, ...] = ()


class Source:
    """The files of one log. `other_prefix` opens the names of the other log's, where they share a folder."""

    def __init__(self, folder: str, other_prefix: str) -> None:
        self.place = folder
        self._other = other_prefix
        try:
            self.system, self.root = fsspec.url_to_fs(folder)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{folder}: not a path that fsspec can open here ({error})") from None

    def files(self) -> list[SourceFile]:
        """The closed files, in the order of their names. Raises ValueError for a folder that cannot be listed."""
        root = self.root.rstrip("/")
        try:
            self.system.invalidate_cache()
            found: dict[str, Any] = retried(lambda: self.system.find(self.root, detail=True), self.place)
            if not found and not retried(lambda: self.system.isdir(self.root), self.place):
                raise ValueError(f"{self.place}: no such folder; a log is read from the folder that its writers name")
        except OSError as error:
            raise ValueError(f"{self.place}: cannot be listed ({first_line(error)})") from None
        by_stem: dict[str, SourceFile] = {}
        for path, about in sorted(found.items()):
            name = path.removeprefix(root).lstrip("/") or path.rpartition("/")[2]
            if self.is_of_log(name):
                file = SourceFile(name, path, int(about["size"]))
                if file.stem not in by_stem or file.is_parquet:
                    by_stem[file.stem] = file
        return [by_stem[stem] for stem in sorted(by_stem)]

    def is_of_log(self, name: str) -> bool:
        """True for the name, below the folder, of a closed file of this log."""
        parts = name.split("/")
        is_hidden = any(part.startswith((".", "_")) for part in parts)
        return not is_hidden and not parts[-1].startswith(self._other) and name.endswith((*LINES, PARQUET))

    def shown(self, file: SourceFile) -> str:
        """A file's place, as a message names it."""
        return f"{self.place.rstrip('/')}/{file.name}"

    def current(self, file: SourceFile) -> SourceFile:
        """The file as it is now. The service makes Parquet of its closed lines at any time, and removes these then."""
        path = Path(file.path).with_suffix(PARQUET)
        if file.is_parquet or not isinstance(self.system, LocalFileSystem) or not path.exists():
            return file
        return SourceFile(f"{file.stem}{PARQUET}", str(path), path.stat().st_size)

    @contextmanager
    def opened(self, file: SourceFile) -> Iterator[BinaryIO]:
        """The file, open for reading. Raises ValueError, also for what goes wrong while it is read."""
        is_local = isinstance(self.system, LocalFileSystem)
        try:
            with open_regular(Path(file.path)) if is_local else self.system.open(file.path, "rb") as opened:
                yield opened
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise ValueError(f"{self.shown(file)}: cannot be read ({reason})") from None

    def read_small(self, name: str) -> bytes | None:
        """The content of a small file of the folder. None where it is gone."""
        try:
            content: bytes = self.system.cat_file(f"{self.root.rstrip('/')}/{name}", end=2**20)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{self.place}/{name}: cannot be read ({first_line(error)})") from None
        return content

    def names_ending(self, end: str) -> list[str]:
        """The names of the folder's own entries with an end, hidden ones left out."""
        try:
            paths = retried(lambda: self.system.ls(self.root, detail=False), self.place)
        except OSError as error:
            raise ValueError(f"{self.place}: cannot be listed ({first_line(error)})") from None
        names = [path.rstrip("/").rpartition("/")[2] for path in paths]
        return sorted(name for name in names if name.endswith(end) and not name.startswith("."))


def blocks(opened: BinaryIO) -> Iterator[Block]:
    """The lines of a file without their ends, some megabytes at a time, empty ones included."""
    held = b""
    number = 1
    is_skipped = False
    while read := opened.read(_BLOCK_BYTES):
        lines = (held + read).split(b"\n")
        held = lines.pop()
        too_long: tuple[int, ...] = ()
        if is_skipped and lines:
            lines, too_long, is_skipped = [b"", *lines[1:]], (number,), False
        if len(held) > MOST_LINE_BYTES or is_skipped:
            held, is_skipped = b"", True
        if lines:
            yield Block(lines, number, too_long)
            number += len(lines)
    if is_skipped:
        yield Block([b""], number, (number,))
    elif held:
        yield Block([held], number)
