"""Faults of a log: named with file, row group, column and row; left out within a budget; files that go away."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.input.log_files import SCHEMA, data_config, numbered, numbers_of, stream, write_groups
from training.data import read_splits
from training.input.bad_rows import BadRows
from training.input.index import index_of
from training.input.reader import LogReader
from training.input.stream import SplitReader

# Rows 30 and 31 have faults; 39 has one too, and validates.
FAULTS: dict[str, tuple[str, dict[int, Any], pa.DataType]] = {
    "a number that is NaN": ("number", {30: float("nan"), 39: float("inf")}, pa.float64()),
    "an id beyond int64": ("near", {30: [1, 2**63], 31: [2**64 - 1], 39: [2**63]}, pa.list_(pa.uint64())),
    "a label that is null": ("odd", {30: None, 39: None}, pa.int8()),
    "a label that is neither 0 nor 1": ("odd", {30: 2, 31: -1, 39: 7}, pa.int8()),
}
RULES = {"number": "NaN or infinity", "near": "an id beyond int64", "odd": "must be 0 or 1"}


def faulty(folder: Path, fault: str) -> tuple[str, int]:
    """A log of four row groups whose third has the fault; the column and how many training rows have it."""
    column, values, kind = FAULTS[fault]
    table = numbered(range(60))
    cells = [values.get(row, value) for row, value in enumerate(table.column(column).to_pylist())]
    table = table.set_column(table.schema.get_field_index(column), column, pa.array(cells, kind))
    pq.write_table(table, folder / "log.parquet", row_group_size=15)
    return column, sum(row != 39 for row in values)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_row_group_column_and_row(tmp_path: Path, fault: str) -> None:
    column, _ = faulty(tmp_path, fault)
    with pytest.raises(ValueError, match=rf"log\.parquet, row group 2: column '{column}'.*: row 0: {RULES[column]}"):
        list(stream(data_config(tmp_path)).batches(0, 0))


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_rows_are_left_out_and_counted_within_the_budget(tmp_path: Path, fault: str) -> None:
    column, bad = faulty(tmp_path, fault)
    config = data_config(tmp_path, max_bad_rows=bad + 1)  # one of them validates
    index = index_of(LogReader(config, SCHEMA))
    assert sum(index.skipped.values()) == bad + 1
    assert all(column in reason and RULES[column] in reason for reason in index.skipped)
    source = stream(config)
    rows = sorted(row for batch in source.batches(0, 0) for row in numbers_of(batch))
    left_out = {row for row in FAULTS[fault][1] if row != 39}
    assert rows == [row for row in range(60) if row % 10 != 9 and row not in left_out]
    assert source.rows == len(rows)
    with pytest.raises(ValueError, match=f"row group 2: .*more rows are bad than data.max_bad_rows {bad} allows"):
        index_of(LogReader(data_config(tmp_path, max_bad_rows=bad), SCHEMA))


@pytest.mark.parametrize("fault", FAULTS)
def test_memory_leaves_out_the_same_rows(tmp_path: Path, fault: str) -> None:
    column, bad = faulty(tmp_path, fault)
    bad_rows = BadRows(bad + 1)
    tables = read_splits(data_config(tmp_path), SCHEMA, ("train", "validation"), bad_rows=bad_rows)
    left_out = set(FAULTS[fault][1])
    assert tables["train"].num_rows == 54 - len(left_out - {39})
    assert tables["validation"].num_rows == 5
    assert bad_rows.skipped.total() == bad + 1
    with pytest.raises(ValueError, match=rf"log\.parquet: column '{column}'"):
        read_splits(data_config(tmp_path), SCHEMA, ("train",))


def test_a_row_with_two_faults_is_counted_once(tmp_path: Path) -> None:
    table = numbered(range(40))
    numbers = np.arange(40, dtype=np.float64)
    numbers[[3, 4]] = np.nan
    labels = [None if row in (4, 5) else row % 2 for row in range(40)]
    table = table.set_column(0, "number", pa.array(numbers))
    table = table.set_column(table.schema.get_field_index("odd"), "odd", pa.array(labels, pa.int8()))
    pq.write_table(table, tmp_path / "log.parquet")
    bad_rows = BadRows(3)
    read_splits(data_config(tmp_path), SCHEMA, ("train",), bad_rows=bad_rows)
    assert sorted(bad_rows.skipped.values()) == [1, 2]


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
