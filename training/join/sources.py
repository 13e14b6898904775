"""The files of a log as a join reads them: closed files of JSON lines and Parquet below a folder of any fsspec path.

In: a folder. Out: its files by name, and their lines with numbers. Names that begin with a dot or an underscore, in
whatever folder, are no part of a log: a writer's open file is such. Of a file in both kinds the Parquet is read alone.
Lines are of bounded size. What is longer is read over, and reported as a line that is none.
"""

import json
import zlib
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from model.untrusted_files import open_regular
from training.data.retries import first_line, retried
from training.files import replace_file

LINES = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
_BLOCK_BYTES = 8 * 2**20
MOST_LINE_BYTES = 64 * 2**20
# What storages say of a file's content, the first one that there is: entity tags and checksums before times.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "modified", "mtime")


class GoneError(ValueError):
    """A file of a log that was listed and is no more."""


class SourceFile(NamedTuple):
    """A closed file of a log: its name below the folder, its size, and what its storage says of the version of its
    content: an entity tag, or the time of the last change. None where it says nothing."""

    name: str
    path: str
    size: int
    version: str | None = None

    @property
    def is_parquet(self) -> bool:
        """True for Parquet, else the file has lines of JSON."""
        return self.name.endswith(PARQUET)

    @property
    def suffix(self) -> str:
        """The end of the name, which says its kind."""
        return f".{self.name.rpartition('.')[2]}"

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
            found = self._found()
            if isinstance(self.system, LocalFileSystem):
                # A folder that is read while lines become Parquet may give neither of them.
                found |= self._found()
            if not found and not retried(lambda: self.system.isdir(self.root), self.place):
                raise ValueError(f"{self.place}: no such folder; a log is read from the folder that its writers name")
        except OSError as error:
            raise ValueError(f"{self.place}: cannot be listed ({first_line(error)})") from None
        by_stem: dict[str, SourceFile] = {}
        for path, about in sorted(found.items()):
            name = path.removeprefix(root).lstrip("/") or path.rpartition("/")[2]
            if self.is_of_log(name):
                version = next((str(about[key]) for key in _VERSIONS if about.get(key) is not None), None)
                file = SourceFile(name, path, int(about["size"]), version)
                if file.stem not in by_stem or file.is_parquet:
                    by_stem[file.stem] = file
        return [by_stem[stem] for stem in sorted(by_stem)]

    def _found(self) -> dict[str, Any]:
        self.system.invalidate_cache()
        return dict(retried(lambda: self.system.find(self.root, detail=True), self.place))

    def is_of_log(self, name: str) -> bool:
        """True for the name, below the folder, of a closed file of this log."""
        parts = name.split("/")
        is_hidden = any(part.startswith((".", "_")) for part in parts)
        return not is_hidden and not parts[-1].startswith(self._other) and name.endswith((*LINES, PARQUET))

    def shown(self, file: SourceFile) -> str:
        """A file's place, as a message names it."""
        return f"{self.place.rstrip('/')}/{file.name}"

    @contextmanager
    def opened(self, file: SourceFile) -> Iterator[tuple[SourceFile, BinaryIO]]:
        """The file as it is now, open for reading: the service makes Parquet of its closed lines at any time, and
        removes these then. Raises GoneError for one that is there in neither kind, and ValueError, also for what goes
        wrong while it is read."""
        try:
            now, source = self._open(file)
            with source as opened:
                yield now, opened
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise ValueError(f"{self.shown(file)}: cannot be read ({reason})") from None

    def _open(self, file: SourceFile) -> tuple[SourceFile, BinaryIO]:
        is_local = isinstance(self.system, LocalFileSystem)
        later = f"{file.path.rpartition('.')[0]}{PARQUET}"
        for kind in (file, file._replace(name=f"{file.stem}{PARQUET}", path=later)):
            try:
                return kind, open_regular(Path(kind.path)) if is_local else self.system.open(kind.path, "rb")
            except FileNotFoundError:
                continue
        raise GoneError(f"{self.shown(file)}: was removed after it was listed, and before it was read; it is left out")

    def checksum(self, file: SourceFile) -> int | None:
        """Checksum of a file of this machine (CRC-32). None of one that would have to be fetched for it, or is gone.
        Raises ValueError where it cannot be read."""
        if not isinstance(self.system, LocalFileSystem):
            return None
        found = 0
        try:
            with open_regular(Path(file.path)) as opened:
                while read := opened.read(_BLOCK_BYTES):
                    found = zlib.crc32(read, found)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{self.shown(file)}: cannot be read ({error.strerror})") from None
        return found

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


class ReadFiles:
    """Contents of the files that were read, by log, name and kind, in a file of the join's own. A file is known by its
    name alone: with another content it has lines that nobody read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Of each kind of a file what it may have: size, version, and checksum, None where it has none.
        self._contents: dict[str, dict[str, dict[str, list[_Content]]]] = (
            json.loads(path.read_bytes()) if path.is_file() else {}
        )

    def take(self, log: str, source: Source, files: Sequence[SourceFile], seen: Set[str]) -> list[SourceFile]:
        """Take the contents of a log's files: of one that is read next, and of one in a kind that is new. Returns those
        of `seen`, which were read, that have another content than then."""
        changed = []
        for file in files:
            kinds = self._contents.setdefault(log, {}).setdefault(file.stem, {})
            if file.stem not in seen:
                kinds.clear()
            if file.suffix not in kinds:
                kinds[file.suffix] = [_content(source, file)]
            elif not _is_known(source, file, kinds[file.suffix]):
                changed.append(file)
        return changed

    def accept(self, log: str, source: Source, file: SourceFile) -> None:
        """Keep the content of a file that was read again."""
        known = self._known(log, file)
        if not _is_known(source, file, known):
            known.append(_content(source, file))

    def expect(self, log: str, file: SourceFile) -> None:
        """Keep the size of a file that is about to be replaced. Of what kind of content is seen when it is there."""
        self._known(log, file).append([file.size, None, None])

    def _known(self, log: str, file: SourceFile) -> "list[_Content]":
        return self._contents.setdefault(log, {}).setdefault(file.stem, {}).setdefault(file.suffix, [])

    def save(self) -> None:
        """Write them. Raises ValueError."""
        replace_file(self._path, [json.dumps(self._contents, indent=1).encode()])


_Content = list[int | str | None]


def _content(source: Source, file: SourceFile) -> _Content:
    return [file.size, file.version, source.checksum(file)]


def _is_known(source: Source, file: SourceFile, known: list[_Content]) -> bool:
    """True for a content that is known. One of another version has its checksum compared: it may be a copy."""
    alike = [one for one in known if one[0] == file.size]
    if any(one[1] == file.version for one in alike):
        return True
    checksum = source.checksum(file) if alike else None
    for one in alike:
        if one[1] is None or (checksum is not None and checksum == one[2]):
            one[1:] = [file.version, checksum]
            return True
    return False


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
