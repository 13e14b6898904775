"""Faults of a log: named with file, row group, column and row, left out within a budget. Also files that go away."""

import os
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.data.log_files import SCHEMA, data_config, encoder, numbered, numbers_of, stream, write_groups
from training.config import DataConfig
from training.data.index import index_of
from training.data.reader import LogReader
from training.data.rows import read_log
from training.data.stream import SplitReader, StreamSource

LONG = Decimal("12345678901234567.8")
NOT_TEXT = "\udcff"  # the byte 0xff, as Python writes what is no UTF-8

# Rows 30 and 31 have faults. 39 has one too, and validates.
FAULTS: dict[str, tuple[str, dict[int, Any], pa.DataType]] = {
    "a number that is NaN": ("number", {30: float("nan"), 39: float("inf")}, pa.float64()),
    "an id beyond int64": ("near", {30: [1, 2**63], 31: [2**64 - 1], 39: [2**63]}, pa.list_(pa.uint64())),
    "a label that is null": ("odd", {30: None, 39: None}, pa.int8()),
    "a label that is neither 0 nor 1": ("odd", {30: 2, 31: -1, 39: 7}, pa.int8()),
    "a text that is not UTF-8": ("user", {30: NOT_TEXT, 31: "a" + NOT_TEXT, 39: NOT_TEXT}, pa.string()),
    "a decimal of too many digits": ("number", {30: LONG, 39: -LONG}, pa.decimal128(38, 19)),
    "an integer of too many digits": (
        "near",
        {30: [Decimal(2**63)], 39: [Decimal(1), Decimal(2**70)]},
        pa.list_(pa.decimal128(38, 0)),
    ),
}
RULES = {
    "a number that is NaN": "NaN or infinity; write null where a number is missing",
    "an id beyond int64": "an id beyond int64",
    "a label that is null": "must be 0 or 1",
    "a label that is neither 0 nor 1": "must be 0 or 1",
    "a text that is not UTF-8": "text that is not valid UTF-8",
    "a decimal of too many digits": "a decimal of more digits than float64 has; write the column as double",
    "an integer of too many digits": "a decimal beyond int64; write an id as string, a number as double",
}


def faulty(folder: Path, fault: str) -> tuple[str, int]:
    """A log of four row groups whose third has the fault. The column and how many training rows have it."""
    column, values, kind = FAULTS[fault]
    table = numbered(range(60))
    cells = [values.get(row, value) for row, value in enumerate(table.column(column).to_pylist())]
    if pa.types.is_string(kind):
        given = pa.array([cell.encode(errors="surrogateescape") for cell in cells]).cast(kind, safe=False)
    else:
        given = pa.array(cells, kind)
    table = table.set_column(table.schema.get_field_index(column), column, given)
    pq.write_table(table, folder / "log.parquet", row_group_size=15)
    return column, sum(row != 39 for row in values)


class Read(NamedTuple):
    """Rows of a log by a way of reading: numbers of the rows that train and that validate, what it left out."""

    train: list[int]
    validation: list[int]
    left_out: dict[str, int]


def in_memory(config: DataConfig) -> Read:
    tables, found = read_log(config, SCHEMA, ("train", "validation"))
    train, validation = (tables[split].column("number").to_pylist() for split in ("train", "validation"))
    return Read(train, validation, dict(found.left_out))


def as_stream(config: DataConfig) -> Read:
    reader = LogReader(config, SCHEMA)
    index = index_of(reader)
    source = StreamSource(reader, index, encoder(), 8, 5)
    train = sorted(row for batch in source.batches(0, 0) for row in numbers_of(batch))
    validation = SplitReader(reader, index, encoder(), "validation").whole()
    return Read(train, numbers_of(validation.part(0, len(validation))), index.skipped)


both_ways = pytest.mark.parametrize("read", [in_memory, as_stream])


@both_ways
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_column_and_row(
    tmp_path: Path, fault: str, read: Callable[[DataConfig], Read]
) -> None:
    column, bad = faulty(tmp_path, fault)
    place, row = (r"log\.parquet", 30) if read is in_memory else (r"log\.parquet, row group 2", 0)
    such = rf"[^;]*; {bad + (read is in_memory)} such rows?"  # in memory with the row that validates
    with pytest.raises(ValueError, match=rf"{place}: column '{column}'.*: row {row}: {re.escape(RULES[fault])}{such}$"):
        read(data_config(tmp_path))


@both_ways
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_rows_are_left_out_and_counted_within_the_budget(
    tmp_path: Path, fault: str, read: Callable[[DataConfig], Read]
) -> None:
    column, bad = faulty(tmp_path, fault)
    found = read(data_config(tmp_path, max_bad_rows=bad + 1))  # one of them validates
    left_out = set(FAULTS[fault][1])
    assert found.train == [row for row in range(60) if row % 10 != 9 and row not in left_out]
    assert found.validation == [9, 19, 29, 49, 59]
    assert list(found.left_out.values()) == [bad + 1]
    (reason,) = found.left_out
    assert f"'{column}'" in reason
    assert reason.endswith(RULES[fault])
    with pytest.raises(ValueError, match=f"more rows are bad than data.max_bad_rows {bad} allows"):
        read(data_config(tmp_path, max_bad_rows=bad))


@both_ways
@pytest.mark.parametrize("budget", [0, 5])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_row_in_no_split_is_neither_refused_nor_counted(
    tmp_path: Path, fault: str, budget: int, read: Callable[[DataConfig], Read]
) -> None:
    faulty(tmp_path, fault)
    # The rows 30, 31 and 39 with their faults.
    split = {"column": "digit", "train": {"min": 2, "max": 5}, "validation": {"min": 6, "max": 8}}
    found = read(data_config(tmp_path, split=split, max_bad_rows=budget))
    assert found.left_out == {}
    assert found.train == [row for row in range(60) if 2 <= row % 10 <= 5]
    assert found.validation == [row for row in range(60) if 6 <= row % 10 <= 8]


@both_ways
def test_text_of_the_split_column_that_is_not_utf8_is_a_fault_of_its_row(
    tmp_path: Path, read: Callable[[DataConfig], Read]
) -> None:
    days = pa.array([b"a"] * 8 + [b"a\xff", b"b"]).cast(pa.string(), safe=False)
    pq.write_table(numbered(range(10)).append_column("day", days), tmp_path / "log.parquet")
    split = {"column": "day", "train": {"max": "aa"}, "validation": {"min": "ab"}}
    with pytest.raises(ValueError, match=r"column 'day': row 8: text that is not valid UTF-8; 1 such row$"):
        read(data_config(tmp_path, split=split))
    assert read(data_config(tmp_path, split=split, max_bad_rows=1)).train == list(range(8))


def test_a_row_with_two_faults_is_counted_once(tmp_path: Path) -> None:
    table = numbered(range(40))
    numbers = np.arange(40, dtype=np.float64)
    numbers[[3, 4]] = np.nan
    labels = [None if row in (4, 5) else row % 2 for row in range(40)]
    table = table.set_column(0, "number", pa.array(numbers))
    table = table.set_column(table.schema.get_field_index("odd"), "odd", pa.array(labels, pa.int8()))
    pq.write_table(table, tmp_path / "log.parquet")
    _, found = read_log(data_config(tmp_path, max_bad_rows=3), SCHEMA, ("train", "validation"))
    assert sorted(found.left_out.values()) == [1, 2]


def gone(file: Path) -> None:
    file.unlink()


def shrunk(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def shorter(file: Path) -> None:
    pq.write_table(numbered(range(3)), file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (gone, r"part-00\d\.parquet: is not there; put it back"),
        (shrunk, r"part-00\d\.parquet: has changed since it was indexed \([\d,]+ bytes then, [\d,]+ now\)"),
        (shorter, r"part-00\d\.parquet: has changed since it was indexed"),
    ],
)
@pytest.mark.parametrize("readers", [0, 2])
def test_a_file_that_goes_away_midway_is_named(
    tmp_path: Path, change: Callable[[Path], None], says: str, readers: int
) -> None:
    write_groups(tmp_path, [[20] * 3] * 4)
    source = stream(data_config(tmp_path, readers=readers))
    batches = source.batches(0, 0)
    next(batches)
    kept = {file: file.read_bytes() for file in tmp_path.glob("*.parquet")}
    times = {file: file.stat() for file in kept}
    for file in kept:
        change(file)
    with pytest.raises(ValueError, match=says):
        list(batches)
    # With the files back the same source, or another one, goes on where this one stood.
    for file, content in kept.items():
        file.write_bytes(content)
        os.utime(file, ns=(times[file].st_atime_ns, times[file].st_mtime_ns))
    again = stream(data_config(tmp_path, readers=readers))
    assert again.fingerprint() == source.fingerprint()
    assert [numbers_of(b) for b in again.batches(0, 3)] == [numbers_of(b) for b in source.batches(0, 3)]


@pytest.mark.parametrize("change", [gone, shrunk, shorter])
def test_a_file_that_changes_while_it_is_read_is_named(
    tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the look at it, before it is opened."""
    write_groups(tmp_path, [[20] * 3])
    source = stream(data_config(tmp_path))
    original, looks = SplitReader._check_unchanged, []

    def look(self: SplitReader, number: int) -> None:
        original(self, number)
        looks.append(number)
        if len(looks) == 1:
            change(tmp_path / "part-000.parquet")

    monkeypatch.setattr(SplitReader, "_check_unchanged", look)
    says = "is not there; put it back" if change is gone else "has changed since it was indexed"
    with pytest.raises(ValueError, match=rf"part-000\.parquet: {says}"):
        list(source.batches(0, 0))


def test_damaged_pages_are_named(tmp_path: Path) -> None:
    write_groups(tmp_path, [[60], [60]])
    place = tmp_path / "part-001.parquet"
    content = bytearray(place.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    place.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-001\.parquet: "):
        list(stream(data_config(tmp_path)).batches(0, 0))
