"""The Parquet files of a log: a folder on any fsspec path, its Hive-style partitions (day=7/part.parquet) included.

In: a path or a URL. Out: `LogFiles`, which lists, opens and reads them; the value of a partition folder is a column of
every file in it. Sub-folders of other names are not part of the log. Every fault is a ValueError that names the file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from model.schema import ID_LIMITS

_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
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
        self._shown = str(folder)
        try:
            self._system, root = fsspec.url_to_fs(self._shown)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{folder}: not a path that fsspec can open here ({error})") from None
        found = [(name, path) for name, path in _walk(self._system, root, self._shown)]
        if not found:
            raise ValueError(f"{folder}: no *.parquet file here")
        parts = {name: _partition(name) for name, _ in found}
        self._refuse_mixed(parts)
        texts = [key for key in parts[found[0][0]] if not all(_is_integer(part[key]) for part in parts.values())]
        self.files = [
            LogFile(name, path, {key: _value(text, key in texts) for key, text in parts[name].items()})
            for name, path in sorted(found)
        ]

    def shown(self, file: LogFile) -> str:
        """A file's place, as a message names it."""
        return f"{self._shown.rstrip('/')}/{file.name}"

    def state(self, file: LogFile) -> tuple[int, str]:
        """Size in bytes, and the time or tag that changes with the content. Raises ValueError where it is gone."""
        try:
            about = self._system.info(file.path)
        except OSError as error:
            raise ValueError(f"{self.shown(file)}: {_gone(error)}") from None
        return int(about["size"]), str(next((about[key] for key in _STAMPS if about.get(key)), ""))

    @contextmanager
    def opened(self, file: LogFile, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
        """The file, open for reading; with `metadata` its footer is not read again. Raises ValueError, also for what
        goes wrong while it is open."""
        try:
            # pyarrow reads local files without Python's lock; for others it asks fsspec.
            if isinstance(self._system, LocalFileSystem):
                with pq.ParquetFile(file.path, metadata=metadata, pre_buffer=False) as parquet:
                    yield parquet
            else:
                with (
                    self._system.open(file.path, "rb") as source,
                    pq.ParquetFile(source, metadata=metadata, pre_buffer=False) as parquet,
                ):
                    yield parquet
        except FileNotFoundError as error:
            raise ValueError(f"{self.shown(file)}: {_gone(error)}") from None
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self.shown(file)}: not a readable Parquet file ({_first_line(error)})") from None

    def check_names(self, file: LogFile, parquet: pq.ParquetFile, names: Sequence[str]) -> None:
        """Raises ValueError where a file has not every column once."""
        held = [*parquet.schema_arrow.names, *file.partition]
        absent = [name for name in names if name not in held]
        if absent:
            raise ValueError(f"{self.shown(file)}: no column {', '.join(repr(name) for name in absent)}")
        twice = [name for name in names if held.count(name) > 1]
        if twice:
            raise ValueError(f"{self.shown(file)}: more than one column {', '.join(repr(name) for name in twice)}")

    def read(self, file: LogFile, names: Sequence[str]) -> pa.Table:
        """All rows of a file, its partition's columns included."""
        with self.opened(file) as parquet:
            self.check_names(file, parquet, names)
            table = parquet.read(columns=[name for name in names if name not in file.partition])
        return with_partition(table, file, names)

    def _refuse_mixed(self, parts: dict[str, dict[str, str]]) -> None:
        first = next(iter(parts))
        for name, part in parts.items():
            if list(part) != list(parts[first]):
                raise ValueError(
                    f"{self._shown}: {first} lies in partitions {list(parts[first])}, {name} in {list(part)}; every "
                    "file of a log has the same"
                )


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


def _walk(system: Any, folder: str, shown: str, name: str = "") -> Iterator[tuple[str, str]]:
    try:
        entries = system.ls(folder, detail=True)
    except OSError:
        return
    except Exception as error:  # each cloud's client has errors of its own
        raise ValueError(f"{shown}: cannot be listed ({_first_line(error)})") from None
    for entry in entries:
        path = entry["name"].rstrip("/")
        last = path.rsplit("/", 1)[-1]
        if last.endswith(".parquet"):
            yield name + last, path
        elif entry["type"] == "directory" and "=" in last and not last.startswith((".", "_")):
            yield from _walk(system, path, shown, f"{name}{last}/")


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
    what = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({_first_line(error)})"
    return f"{what}; put it back, or start a run on the files that are left"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
