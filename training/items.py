"""The file of a catalogue's items: Parquet with `id`, a string or an integer, and candidate features by their names.

In: a file of a user. Out: its ids, as strings, and its columns as features, batch by batch. An integer is read as its
decimal string. Catalogues are built of it, and joins read the features of logged ids from it. Every fault is a
ValueError that names the file and, as far as it goes, row group, column and row.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.features.kinds import Feature
from model.features.kinds.columns import Column, Dtype
from model.untrusted_files import changed, fingerprint_of, open_regular, sha256_of
from training.columns import plain
from training.data.kinds.columns import column_from_arrow
from training.data.kinds.values import refuse_other_text
from training.data.usual_types import usual

ID = "id"


class ItemBatch(NamedTuple):
    """Items in file order."""

    ids: list[str]
    columns: dict[str, Column]


class ItemFile:
    """An open item file. `features` are those that it has, `sha256` is of its bytes."""

    def __init__(
        self, path: Path, file: BinaryIO, features: Sequence[Feature], dtype_of: Callable[[str], Dtype | None]
    ) -> None:
        self.path = path
        self._file = file
        self._before = fingerprint_of(file)
        self.sha256 = sha256_of(file)
        self._dtype_of = dtype_of
        file.seek(0)
        self._parquet = pq.ParquetFile(file)
        present = Counter(self._parquet.schema_arrow.names)
        self.absent = [name for name in (ID, *(feature.name for feature in features)) if not present[name]]
        self.features = [feature for feature in features if present[feature.name]]
        self._names = [ID, *(feature.name for feature in self.features)]
        if twice := [name for name in self._names if present[name] > 1]:
            raise ValueError(f"{path}: more than one column {', '.join(map(repr, twice))}")
        self.count: int = self._parquet.metadata.num_rows
        if not self.count:
            raise ValueError(f"{path}: no items")

    @classmethod
    @contextmanager
    def opened(
        cls, path: Path, features: Sequence[Feature], dtype_of: Callable[[str], Dtype | None]
    ) -> Iterator["ItemFile"]:
        """The file, hashed and open. `dtype_of` gives the dtype of a feature's ids."""
        try:
            file = open_regular(path)
        except OSError as error:
            raise _unreadable(path, error.strerror or str(error)) from None
        with file:
            try:
                items = cls(path, file, features, dtype_of)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, str(error).splitlines()[0]) from None
            yield items

    def refuse_absent(self) -> None:
        """Raise ValueError where a column is absent."""
        if self.absent:
            raise ValueError(
                f"{self.path}: no column {', '.join(map(repr, self.absent))}; items have {ID!r} and every candidate "
                "feature"
            )

    def refuse_changed(self) -> None:
        """Raise ValueError where the file was written to since it was opened."""
        if fingerprint_of(self._file)[:4] != self._before[:4]:
            raise ValueError(f"{self.path}: {changed(self.path).strerror}; write a new file and rename it")

    def batches(self, size: int) -> Iterator[ItemBatch]:
        """The items, at most `size` together."""
        for group in range(self._parquet.num_row_groups):
            start = 0
            for batch in self._read(group, size):
                place = f"{self.path}: row group {group}" + (f", counted from its row {start}" if start else "")
                table = pa.Table.from_batches([batch])
                columns = {}
                name = ID
                try:
                    ids = _ids(table.column(ID))
                    for feature in self.features:
                        name = feature.name
                        columns[name] = column_from_arrow(feature, self._dtype_of(name), table.column(name))
                except ValueError as error:
                    raise ValueError(f"{place}: column '{name}': {error}") from None
                yield ItemBatch(ids, columns)
                start += len(ids)

    def id_at(self, item: int) -> str:
        """The id of an item and its place."""
        for group in range(self._parquet.num_row_groups):
            rows = self._parquet.metadata.row_group(group).num_rows
            if item < rows:
                given = self._parquet.read_row_group(group, [ID]).column(ID)[item].as_py()
                return f"'{given}' (row group {group}, row {item})"
            item -= rows
        raise AssertionError("the item is beyond the file's end")

    def _read(self, group: int, size: int) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._parquet.iter_batches(size, row_groups=[group], columns=self._names)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self.path}: row group {group}: cannot be read ({str(error).splitlines()[0]})") from None


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path}: not a readable Parquet file ({reason})")


def _ids(values: pa.ChunkedArray) -> list[str]:
    values, fault = usual(plain(values))
    if fault is not None:
        raise fault
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"is {kind}, the ids of items are strings or integers")
    if values.null_count:
        raise ValueError(f"row {pc.index(values.is_null(), True).as_py()}: null, every item has an id")
    if not pa.types.is_integer(kind):
        refuse_other_text(values)
    ids: list[str] = values.cast(pa.string()).to_pylist()
    return ids
