"""The Parquet files of a log: a folder on any fsspec path, its Hive-style partitions (day=7/part.parquet) included.

In: a path or a URL. Out: `LogFiles`, which lists (listing.py), opens and reads them. The value of a partition folder is
a column of every file in it. Every fault is a ValueError that names the file or folder.
"""

import errno
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from model.features.kinds.columns import ID_LIMITS
from training.data.listing import listing_of
from training.data.retries import TEMPORARY, TemporaryError, first_line, is_temporary, retried

# Number of ignored entries of a kind that are named.
_NAMED = 4
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
# Faults of a file system, not of a file.
_NOT_READ = {*TEMPORARY, errno.EACCES, errno.EPERM}
# What filesystems call the time, or the tag, that changes with a file's content.
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file of a log: its name within the folder, its filesystem's path, and the values of its partition folders."""

    name: str
    path: str
    partition: dict[str, int | str | None] = field(default_factory=dict)


class LogFiles:
    """The files of a folder, in the order of their names. Raises ValueError where there is none."""

    def __init__(self, folder: Path | str) -> None:
        self.place = str(folder)
        try:
            self._system, self._root = fsspec.url_to_fs(self.place)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{folder}: not a path that fsspec can open here ({error})") from None
        listing = listing_of(self._system, self._root, self.place)
        if not listing.files:
            others = "".join(f"; {counted}" for counted in counted_names(listing.passed_over))
            raise ValueError(f"{folder}: no *.parquet file here{others}")
        self.passed_over = listing.passed_over
        parts = {name: _partition(name) for name in listing.files}
        self._refuse_mixed(parts)
        keys = next(iter(parts.values()))
        texts = [key for key in keys if not all(_is_integer(part[key]) for part in parts.values())]
        self.files = [
            LogFile(name, path, {key: _value(text, key in texts) for key, text in parts[name].items()})
            for name, path in sorted(listing.files.items())
        ]
        self._types: dict[str, pa.DataType | None] = {}

    @property
    def names(self) -> list[str]:
        """The files' names within the folder."""
        return [file.name for file in self.files]

    def shown(self, file: LogFile) -> str:
        """A file's place, as a message names it."""
        return self.place if file.path == self._root else f"{self.place.rstrip('/')}/{file.name}"

    def size_and_time(self, file: LogFile) -> tuple[int, str]:
        """Size in bytes, and the time or tag that changes with the content. Raises ValueError where it is gone."""
        try:
            about = retried(lambda: self._system.info(file.path), self.shown(file))
        except OSError as error:
            raise ValueError(f"{self.shown(file)}: {_gone(error)}") from None
        return int(about["size"]), str(next((about[key] for key in _STAMPS if about.get(key)), ""))

    @contextmanager
    def opened(self, file: LogFile, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
        """The file, open for reading. With `metadata` its footer is not read again. Raises ValueError, also for what
        goes wrong while it is open, and TemporaryError for what another try may not meet."""
        place = self.shown(file)
        is_open = False
        try:
            with ExitStack() as held:
                parquet = retried(lambda: self._open(file, metadata, held), place)
                is_open = True
                yield parquet
        except FileNotFoundError as error:
            raise ValueError(f"{place}: {_gone(error)}") from None
        except (pa.ArrowException, OSError) as error:
            is_read = isinstance(error, OSError) and error.errno in _NOT_READ
            what = f"{'cannot be read' if is_read else 'not a readable Parquet file'} ({first_line(error)})"
            raise (TemporaryError if is_open and is_temporary(error) else ValueError)(f"{place}: {what}") from None

    def _open(self, file: LogFile, metadata: pq.FileMetaData | None, held: ExitStack) -> pq.ParquetFile:
        # pyarrow reads local files without Python's lock. For others it calls fsspec.
        is_local = isinstance(self._system, LocalFileSystem)
        source = file.path if is_local else held.enter_context(self._system.open(file.path, "rb"))
        return held.enter_context(pq.ParquetFile(source, metadata=metadata, pre_buffer=False))

    def check_names(
        self, file: LogFile, parquet: pq.ParquetFile, names: Sequence[str], may_lack: Container[str] = ()
    ) -> None:
        """Raise ValueError where a file has not every column once, but for those that it `may_lack`."""
        held = [*parquet.schema_arrow.names, *file.partition]
        absent = [name for name in names if name not in held and name not in may_lack]
        if absent:
            raise ValueError(f"{self.shown(file)}: no column {', '.join(repr(name) for name in absent)}")
        inside = [name for name in names if name in file.partition and name in parquet.schema_arrow.names]
        if inside:
            raise ValueError(
                f"{self.shown(file)}: a column {', '.join(repr(name) for name in inside)} in the file and in its "
                "folder's name; leave it to the folder"
            )
        twice = [name for name in names if held.count(name) > 1]
        if twice:
            raise ValueError(f"{self.shown(file)}: more than one column {', '.join(repr(name) for name in twice)}")

    def rows(self, file: LogFile) -> int:
        """Number of rows of a file, from its footer."""

        def count() -> int:
            with self.opened(file) as parquet:
                return int(parquet.metadata.num_rows)

        return retried(count, self.shown(file))

    def type_of(self, name: str) -> pa.DataType | None:
        """The type of a column in the newest files that have it, None where none of the log's has."""
        if name not in self._types:  # threads that look at once find the same
            kinds = map(partial(self._type_in, name), reversed(self.files))
            self._types[name] = next((kind for kind in kinds if kind is not None), None)
        return self._types[name]

    def _type_in(self, name: str, file: LogFile) -> pa.DataType | None:
        with self.opened(file) as parquet:
            held = parquet.schema_arrow
            return held.field(name).type if name in held.names else None

    def read(self, file: LogFile, names: Sequence[str], may_lack: Container[str] = ()) -> pa.Table:
        """All rows of a file, its partition's columns included, without those of the columns that it `may_lack` and
        has not."""

        def read() -> pa.Table:
            with self.opened(file) as parquet:
                self.check_names(file, parquet, names, may_lack)
                held = parquet.schema_arrow.names
                return parquet.read(columns=[name for name in names if name in held and name not in file.partition])

        return with_partition(retried(read, self.shown(file)), file, names)

    def _refuse_mixed(self, parts: dict[str, dict[str, str]]) -> None:
        first = next(iter(parts))
        for name, part in parts.items():
            if list(part) != list(parts[first]):
                raise ValueError(
                    f"{self.place}: {first} lies in partitions {list(parts[first])}, {name} in {list(part)}; every "
                    "file of a log has the same"
                )


def counted_names(names_by_kind: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentence on each kind of ignored entry: their number, and the first of them by name."""
    return [
        f"{len(names):,} {kind}: {', '.join(sorted(names)[:_NAMED])}{' ...' if len(names) > _NAMED else ''}"
        for kind, names in names_by_kind.items()
    ]


def with_partition(table: pa.Table, file: LogFile, names: Sequence[str]) -> pa.Table:
    """The table with the partition columns among `names`."""
    for key in (key for key in file.partition if key in names):
        value = file.partition[key]
        scalar = pa.scalar(value, partition_type(value))
        table = table.append_column(key, pa.repeat(scalar, table.num_rows))
    return table


def partition_type(value: int | str | None) -> pa.DataType:
    """The Arrow type of a partition's value."""
    return pa.null() if value is None else pa.int64() if isinstance(value, int) else pa.string()


def _partition(name: str) -> dict[str, str]:
    folders = name.split("/")[:-1]
    return {unquote(key): unquote(value) for key, _, value in (folder.partition("=") for folder in folders)}


def _is_integer(text: str) -> bool:
    if text == _NULL_PARTITION:
        return True
    try:
        return ID_LIMITS[0] <= int(text) <= ID_LIMITS[1] and text == str(int(text))
    except ValueError:
        return False


def _value(text: str, is_text: bool) -> int | str | None:
    if text == _NULL_PARTITION:
        return None
    return text if is_text else int(text)


def _gone(error: OSError) -> str:
    what = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({first_line(error)})"
    return f"{what}; put it back, or start a run on the files that are left"
