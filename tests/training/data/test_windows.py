"""Windows of days: their arithmetic, every kind of column that has days, days left out, without rows or not whole.

Expectations are sets of days made one by one, and rows picked by a loop over them.
"""

import logging
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data.log_files import SCHEMA, data_config, numbered
from training.config import DataConfig, SplitName
from training.data.index import index_of
from training.data.moving.windows import resolved, windows_until
from training.data.reader import LogReader
from training.data.rows import read_log

ONE = timedelta(days=1)
FIRST = date(2024, 3, 26)  # clocks change in Berlin on 31 March
BERLIN = "Europe/Berlin"
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

Columns = Callable[[list[datetime]], pa.Array]


def moving(folder: Path, **changes: Any) -> DataConfig:
    split = {"column": "at", "train": {"days": 3}, "validation": {"days": 1}, **changes}
    return data_config(folder, split=split)


def numbers(config: DataConfig, splits: tuple[SplitName, ...] = ("train", "validation")) -> dict[str, list[int]]:
    """Numbers of the rows of each split, the same in memory and as a stream counts them."""
    tables, found = read_log(config, SCHEMA, splits)
    index = index_of(LogReader(config, SCHEMA))
    assert {split: index.rows(split) for split in splits} == {name: table.num_rows for name, table in tables.items()}
    assert index.found(LogReader(config, SCHEMA).files, None).in_no_split == found.in_no_split
    return {split: table.column("number").to_pylist() for split, table in tables.items()}


@given(
    end=st.dates(date(1, 6, 1)),
    days=st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(0, 20)),
)
def test_windows_are_consecutive_and_disjoint_and_cover_their_days(end: date, days: tuple[int, int, int]) -> None:
    windows = windows_until(end, dict(zip(SPLITS, days, strict=True)))
    assert [*windows] == [split for split, count in zip(SPLITS, days, strict=True) if count]
    listed = []
    for window in windows.values():
        day = window.first
        while True:  # day by day, as a calendar is read
            listed.append(day)
            if day == window.last:
                break
            day += ONE
    # From the end backwards each day once, so windows follow on one another and none is in two.
    expected = [end - back * ONE for back in range(sum(days))]
    assert listed[::-1] == expected
    counts = [(window.last - window.first).days + 1 for window in windows.values()]
    assert counts == [count for count in days if count]


KINDS: dict[str, Columns] = {
    "dates": lambda times: pa.array([time.date() for time in times]),
    "timestamps": lambda times: pa.array(times, pa.timestamp("ms")),
    "nanoseconds": lambda times: pa.array(times, pa.timestamp("ns", "UTC")),
    "texts of days": lambda times: pa.array([str(time.date()) for time in times]),
    "texts of times": lambda times: pa.array([time.isoformat() for time in times], pa.large_string()),
    "integers": lambda times: pa.array([int(f"{time:%Y%m%d}") for time in times], pa.int32()),
    "a dictionary": lambda times: pa.array([str(time.date()) for time in times]).dictionary_encode(),
}
# Two rows a day, but for a day without rows, and the last instant of each.
GAP = FIRST + 3 * ONE
TIMES = [
    datetime.combine(FIRST, datetime.min.time()) + ahead * ONE + back
    for ahead in range(7)
    for back in (timedelta(), timedelta(hours=23, minutes=59, seconds=59))
    if FIRST + ahead * ONE != GAP
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row_group_size", [3, 5, 100])
def test_rows_of_a_window_are_those_of_its_days_in_every_kind_of_column(
    tmp_path: Path, kind: str, row_group_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    table = numbered(range(len(TIMES))).append_column("at", KINDS[kind](TIMES))
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=row_group_size)
    left_out = FIRST + 2 * ONE
    with caplog.at_level(logging.INFO):
        config = resolved(moving(tmp_path, test={"days": 1}, exclude=[left_out]))
    last = FIRST + 6 * ONE
    expected = {
        split: [row for row, time in enumerate(TIMES) if time.date() in days]
        for split, days in (
            ("train", {last - 4 * ONE, last - 3 * ONE, last - 2 * ONE} - {left_out}),
            ("validation", {last - ONE}),
            ("test", {last}),
        )
    }
    assert numbers(config, SPLITS) == expected
    assert f"train {last - 4 * ONE} to {last - 2 * ONE} (3 days), validation {last - ONE}" in caplog.text
    assert f"1 day of the windows without rows: {GAP}" in caplog.text
    assert f"1 day left out (exclude): {left_out}" in caplog.text


@pytest.mark.parametrize("form", ["{:%Y%m%d}", "{}"])
def test_folders_of_days_are_days(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    for row, ahead in enumerate((0, 1, 2, 3, 5)):
        folder = tmp_path / f"at={form.format(FIRST + ahead * ONE)}"
        folder.mkdir()
        # The newest folder has a file without rows: its day has none.
        pq.write_table(numbered(range(row, row + (ahead < 5))), folder / "part.parquet")
    config = resolved(moving(tmp_path))
    assert numbers(config) == {"train": [0, 1, 2], "validation": [3]}
    assert "without rows" not in caplog.text
    with_gap = resolved(moving(tmp_path, end=str(FIRST + 5 * ONE), validation={"days": 3}))
    assert f"2 days of the windows without rows: {FIRST + 4 * ONE}, {FIRST + 5 * ONE}" in caplog.text
    assert numbers(with_gap)["validation"] == [3]


def test_a_day_of_a_zone_is_its_own_hours_where_clocks_change(tmp_path: Path) -> None:
    times = [datetime(2024, 3, 29, tzinfo=UTC) + timedelta(hours=hour) for hour in range(96)]
    table = numbered(range(96)).append_column("at", pa.array(times, pa.timestamp("us", "UTC")))
    pq.write_table(table, tmp_path / "log.parquet")
    found = numbers(resolved(moving(tmp_path, timezone=BERLIN, end="2024-03-31", train={"days": 1})))
    own_days = [time.astimezone(ZoneInfo(BERLIN)).date() for time in times]
    assert found["validation"] == [row for row, day in enumerate(own_days) if day == date(2024, 3, 31)]
    assert len(found["validation"]) == 23, "an hour was left out on this day"
    assert found["train"] == [row for row, day in enumerate(own_days) if day == date(2024, 3, 30)]


def write_hours(folder: Path, day: date, hours: range) -> None:
    """A day of a joined log. Hours before 3 have no rows."""
    place = folder / f"date={day:%Y%m%d}"
    place.mkdir(exist_ok=True)
    for hour in hours:
        rows = numbered(range(hour, hour + (hour >= 3)))
        pq.write_table(rows, place / f"{day:%Y%m%d}T{hour:02}.parquet")


def day_number(day: date) -> int:
    return int(f"{day:%Y%m%d}")


def validation_of(config: DataConfig) -> dict[str, int]:
    return dict(resolved(config).bounds.model_dump()["validation"])


def test_the_newest_day_of_a_joined_log_has_all_its_hours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    days = [FIRST + ahead * ONE for ahead in range(6)]
    for day in days:
        hours = {days[1]: range(1, 24), days[5]: range(7)}.get(day, range(24))
        write_hours(tmp_path, day, hours)
    (tmp_path / "_join").mkdir()
    assert validation_of(moving(tmp_path, column="date")) == {"min": day_number(days[4]), "max": day_number(days[4])}
    assert f"1 day of the windows without all of their hours: {days[1]}" in caplog.text
    assert len(numbers(resolved(moving(tmp_path, column="date")))["validation"]) == 21
    # A day that is left out is not the newest either.
    assert validation_of(moving(tmp_path, column="date", exclude=[days[4]]))["max"] == day_number(days[3])
    with pytest.raises(ValueError, match=r"every whole day of column 'date' is left out \(data\.split\.exclude\)"):
        resolved(moving(tmp_path, column="date", exclude=[days[0], days[2], days[3], days[4]]))
    for day in days[:-1]:
        (tmp_path / f"date={day:%Y%m%d}" / f"{day:%Y%m%d}T23.parquet").unlink()
    with pytest.raises(ValueError, match=f"no day is whole: of {days[5]}, the newest, 17 hours have no file"):
        resolved(moving(tmp_path, column="date"))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0, 99_999_999, 20240231], "column 'at' has no day; windows of days need dates, timestamps"),
        (["yesterday", None, "2024-13-01"], "column 'at' has no day"),
        ([1.5, 2.5], "column 'at' is double; windows of days need"),
        ([1_710_000_000_000], "column 'at' has no day"),
        ([None, None], "column 'at' has no day"),
    ],
)
def test_a_column_without_days_is_refused(tmp_path: Path, values: list[Any], says: str) -> None:
    pq.write_table(numbered(range(len(values))).append_column("at", pa.array(values)), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=says):
        resolved(moving(tmp_path))


def test_values_that_are_no_day_are_in_no_split(tmp_path: Path) -> None:
    days = [*range(20240301, 20240305), 0, 99_999_999, None, -5, 20240231]
    table = numbered(range(len(days))).append_column("at", pa.array(days, pa.int64()))
    pq.write_table(table, tmp_path / "log.parquet")
    config = resolved(moving(tmp_path))
    assert numbers(config) == {"train": [0, 1, 2], "validation": [3]}
    _, found = read_log(config, SCHEMA, ("train",))
    assert found.in_no_split == 5
    assert "in no split 5 rows" in "\n".join(found.lines())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": {"max": 20240301}}, r"split: train: names values, beside windows that are numbers of days"),
        ({"validation": "2024-03-04"}, r"validation: names values"),
        ({"train": {"days": 0}}, r"split\.train: days: a window of this split has at least 1 day"),
        ({"train": {"days": 10**9}}, r"split\.train\.days: .* less than or equal to 36525"),
        ({"end": "tomorrow"}, "expected a day as 2024-01-31 or 20240131, got 'tomorrow'"),
        ({"end": 20240230}, "expected a day as 2024-01-31 or 20240131"),
        ({"exclude": ["2024-03-01T00:00"]}, "expected a day as 2024-01-31"),
        ({"until": "latest"}, "unknown key 'until'"),
    ],
)
def test_a_split_of_two_forms_or_none_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        moving(tmp_path, **changes)


def test_windows_that_cannot_be_are_refused(tmp_path: Path) -> None:
    table = numbered(range(4)).append_column("at", pa.array([20240301, 20240302, 20240303, 20240304]))
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=r"every day of split validation, 2024-03-04 to 2024-03-04 .* is left out"):
        resolved(moving(tmp_path, end="2024-03-04", exclude=[20240304]))
    with pytest.raises(ValueError, match="window of 3 days for train begins before the year 1"):
        resolved(moving(tmp_path, end="0001-01-02"))
    with pytest.raises(ValueError, match=r"every day of column 'at' is left out \(data\.split\.exclude\)"):
        resolved(moving(tmp_path, exclude=[20240301, 20240302, 20240303, 20240304]))
    with pytest.raises(ValueError, match="no row is in split train: column 'at' never matches min=20241229"):
        read_log(resolved(moving(tmp_path, end="2025-01-01")), SCHEMA, ("train", "validation"))


def test_a_column_that_is_in_a_file_and_in_its_folders_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "at=20240301"
    folder.mkdir()
    table = numbered(range(2)).append_column("at", pa.array([20240301, 20240302]))
    pq.write_table(table, folder / "part.parquet")
    with pytest.raises(ValueError, match="a column 'at' in the file and in its folder's name; leave it to the folder"):
        read_log(data_config(tmp_path, split={"column": "at", "train": 20240301, "validation": 5}), SCHEMA, ("train",))
