"""Index of a log: files and partitions, rows by split (by statistics where these decide), an index that is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.log_files import SCHEMA, data_config, numbered, numbers_of, stream, write_groups
from training.config import DataConfig
from training.data.files import LogFiles
from training.data.index import LogIndex, index_of
from training.data.reader import LogReader
from training.data.rows import read_splits
from training.data.selection import Selector
from training.split_config import SplitConfig

BY_DAY: dict[str, Any] = {"column": "day", "train": {"max": 2}, "validation": 3}


def write_days(folder: Path, days: Sequence[object], rows: int = 10) -> None:
    for place, day in enumerate(days):
        part = folder / f"day={day}"
        part.mkdir(parents=True, exist_ok=True)
        pq.write_table(numbered(range(place * rows, (place + 1) * rows)), part / "part.parquet")


def index(config: DataConfig, kept: Path | None = None) -> LogIndex:
    return index_of(LogReader(config, SCHEMA), kept)


def test_partition_folders_are_a_column(tmp_path: Path) -> None:
    write_days(tmp_path, [1, 2, 3, 10])
    (tmp_path / "truth").mkdir()
    pq.write_table(numbered(range(5)), tmp_path / "truth" / "part.parquet")
    config = data_config(tmp_path, split=BY_DAY, lanes=2)
    tables = read_splits(config, SCHEMA, ("train", "validation"))
    assert tables["train"].column("number").to_pylist() == list(range(20))
    assert tables["validation"].column("day").to_pylist() == [3] * 10
    found = [row for batch in stream(config).batches(0, 0) for row in numbers_of(batch)]
    assert sorted(found) == list(range(20))


@pytest.mark.parametrize(
    ("days", "values"),
    [
        (["1", "02", "3"], ["02", "1", "3"]),
        (["2022-05-01", "2022-05-02"], ["2022-05-01", "2022-05-02"]),
        (["7", "__HIVE_DEFAULT_PARTITION__"], [7, None]),
        (["a%20b", "c"], ["a b", "c"]),
    ],
)
def test_partition_values_are_integers_only_where_all_are(tmp_path: Path, days: list[str], values: list[Any]) -> None:
    write_days(tmp_path, days)
    assert [file.partition["day"] for file in LogFiles(tmp_path).files] == values


def test_files_in_different_partitions_are_refused(tmp_path: Path) -> None:
    write_days(tmp_path, [1, 2])
    pq.write_table(numbered(range(5)), tmp_path / "part.parquet")
    with pytest.raises(ValueError, match="every file of a log has the same"):
        LogFiles(tmp_path)


def test_an_unknown_filesystem_is_refused() -> None:
    with pytest.raises(ValueError, match="nosuch://bucket: not a path that fsspec can open here"):
        LogFiles("nosuch://bucket")


@settings(max_examples=60)
@given(
    values=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    train=st.one_of(
        st.integers(0, 6),
        st.lists(st.integers(0, 6), min_size=1, max_size=3),
        st.builds(lambda a, b: {"min": min(a, b), "max": max(a, b)}, st.integers(0, 6), st.integers(0, 6)),
        st.builds(lambda a: {"max": a}, st.integers(0, 6)),
    ),
    of_dates=st.booleans(),
)
def test_what_bounds_decide_is_what_the_values_say(values: list[int], train: Any, of_dates: bool) -> None:
    days = pa.array(values, pa.int32())
    if of_dates:
        days = days.cast(pa.date32())

        def dated(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: dated(bound) for key, bound in value.items()}
            return [dated(v) for v in value] if isinstance(value, list) else f"1970-01-0{value + 1}"

        train = dated(train)
    absent = "1980-01-01" if of_dates else 99
    content = {"column": "day", "train": train, "validation": absent}
    selector = Selector(SplitConfig.from_mapping(content, "test"))
    truth = selector.masks(pa.chunked_array([days]), "here")["train"].to_pylist()
    decided = selector.by_bounds(min(days.to_pylist()), max(days.to_pylist()), days.type, "here")
    if decided is None:
        assert any(truth) != all(truth) or isinstance(train, list) or min(values) != max(values)
    else:
        assert truth == [decided["train"]] * len(values)
        assert decided["validation"] is False


def test_sorted_row_groups_are_counted_without_reading_a_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = numbered(range(90)).append_column("day", pa.array([row // 30 + 1 for row in range(90)]))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=15)
    config = data_config(tmp_path, split=BY_DAY)
    read = pq.ParquetFile.read_row_group
    asked: list[Any] = []

    def noted(*arguments: Any, **options: Any) -> pa.Table:
        asked.append(options)
        return read(*arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    found = index(config)
    assert (found.rows("train"), found.rows("validation"), asked) == (60, 30, [])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=40, write_statistics=False)
    assert (index(config).rows("train"), index(config).rows("validation")) == (60, 30)
    assert {tuple(call["columns"]) for call in asked} == {("day",)}


def test_a_kept_index_holds_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_groups(tmp_path / "log", [[40], [30]])
    config, kept = data_config(tmp_path / "log"), tmp_path / "index.json"
    first = index(config, kept)
    with monkeypatch.context() as closed:
        closed.setattr(LogFiles, "opened", None)
        assert index(config, kept) == first
    write_groups(tmp_path / "log", [[40], [50]])
    assert index(config, kept).rows("train") == 81
    kept.write_text("{", encoding="utf-8")
    assert index(config, kept).rows("train") == 81
    # Another question has another answer.
    changed = data_config(tmp_path / "log", split={"column": "digit", "train": {"max": 4}, "validation": 9})
    assert index(changed, kept).rows("train") == 45


def test_a_column_of_another_type_than_in_the_first_file_is_refused(tmp_path: Path) -> None:
    write_groups(tmp_path, [[20], [20]])
    table = numbered(range(20))
    place = table.schema.get_field_index("digit")
    for values, says in (
        (pa.array(["1"] * 20), r"part-001\.parquet: column 'digit' is string, and int32 in the log's first file"),
        (None, r"part-001\.parquet: no column 'digit'"),
    ):
        other = table.remove_column(place)
        pq.write_table(other if values is None else other.append_column("digit", values), tmp_path / "part-001.parquet")
        with pytest.raises(ValueError, match=says):
            index(data_config(tmp_path))


def test_a_column_that_the_schema_cannot_take_is_refused_before_any_row_is_read(tmp_path: Path) -> None:
    write_groups(tmp_path, [[20]])
    table = numbered(range(20))
    place = table.schema.get_field_index("user")
    pq.write_table(table.set_column(place, "user", pa.array([1] * 20)), tmp_path / "part-000.parquet")
    with pytest.raises(ValueError, match=r"part-000\.parquet: column 'user': is int64, an id of dtype string"):
        index(data_config(tmp_path))


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    write_groups(tmp_path, [[9]])
    with pytest.raises(ValueError, match="no row is in split validation: column 'digit' never matches 9"):
        index(data_config(tmp_path))


def test_a_row_in_two_splits_is_refused_with_its_row_group(tmp_path: Path) -> None:
    write_days(tmp_path, [1, 2])
    with pytest.raises(ValueError, match="row group 0: column 'day': 10 rows in split train and in split valid"):
        index(data_config(tmp_path, split={"column": "day", "train": {"max": 2}, "validation": 2}))
