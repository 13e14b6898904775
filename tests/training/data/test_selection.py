"""Dates as bounds: a date covers its whole day, in every unit and zone, by values as by statistics. Where a literal
does not compare, the message says what to write."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.log_files import SCHEMA, data_config, numbered
from training.data.index import index_of
from training.data.reader import LogReader
from training.data.rows import read_splits
from training.data.selection import Selector, epoch_unit
from training.fit.report import data_report
from training.split_config import SplitConfig

BERLIN = "Europe/Berlin"
days = st.dates(date(2024, 3, 28), date(2024, 4, 2))  # with a change to summer time
instants = st.datetimes(datetime(2024, 3, 28), datetime(2024, 4, 3))


def trains(values: pa.Array, train: Any, timezone: str = "UTC") -> list[bool]:
    """Values in split train. None is in split validation."""
    content = {"column": "at", "train": train, "validation": ["1999-01-01"], "timezone": timezone}
    selector = Selector(SplitConfig.from_mapping(content, "test"))
    found: list[bool] = selector.masks(pa.chunked_array([values]), "here")["train"].to_pylist()
    return found


def in_days(day: date, train: Any) -> bool:
    """Dates compared as texts of one form."""
    if isinstance(train, dict):
        low, high = (
            date.fromisoformat(train.get(key, text)) for key, text in (("min", "0001-01-01"), ("max", "9999-12-31"))
        )
        return low <= day <= high
    return day.isoformat() in (train if isinstance(train, list) else [train])


selections = st.one_of(
    days.map(str),
    st.lists(days.map(str), min_size=1, max_size=2),
    days.map(lambda day: {"max": str(day)}),
    days.map(lambda day: {"min": str(day)}),
    st.tuples(days, days).map(lambda pair: {"min": str(min(pair)), "max": str(max(pair))}),
)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
@settings(max_examples=25)
@given(times=st.lists(instants, min_size=1, max_size=4), train=selections, timezone=st.sampled_from(["UTC", BERLIN]))
def test_a_date_covers_its_whole_day(
    unit: str, zone: str | None, times: list[datetime], train: Any, timezone: str
) -> None:
    times = [time.replace(microsecond=0) for time in times]
    if zone is None:  # it is in the zone that the training file names
        values, own_days = pa.array(times, pa.timestamp(unit)), [time.date() for time in times]
    else:
        aware = [time.replace(tzinfo=UTC) for time in times]
        values = pa.array(aware, pa.timestamp(unit, zone))
        own_days = [time.astimezone(ZoneInfo(timezone)).date() for time in aware]
    assert trains(values, train, timezone) == [in_days(day, train) for day in own_days]


@given(times=st.lists(instants, min_size=1, max_size=4), train=selections)
def test_a_date_covers_its_whole_day_in_texts_of_times(times: list[datetime], train: Any) -> None:
    for texts in ([time.isoformat() for time in times], [str(time) for time in times], [str(t.date()) for t in times]):
        assert trains(pa.array(texts), train) == [in_days(time.date(), train) for time in times]


@pytest.mark.parametrize(
    ("kind", "bound", "count"),
    [
        (pa.timestamp("us"), "2024-01-01T05:00", 6),
        (pa.timestamp("us"), "2024-01-01T06:00+01:00", 6),
        (pa.timestamp("us", "UTC"), "2024-01-01T05:00", 6),
        (pa.timestamp("us", "UTC"), "2024-01-01T06:00+01:00", 6),
        (pa.timestamp("ns", "Asia/Tokyo"), "2024-01-01T05:00Z", 6),
        (pa.timestamp("us", "UTC"), "9999-12-31", 24),
    ],
)
def test_times_are_compared_as_they_are_with_a_zone_or_without(kind: pa.DataType, bound: str, count: int) -> None:
    hours = [datetime(2024, 1, 1, hour, tzinfo=UTC if kind.tz else None) for hour in range(24)]
    assert sum(trains(pa.array(hours, kind), {"max": bound})) == count


def write_hours(folder: Path, kind: pa.DataType, row_group_size: int) -> None:
    """Rows of every second hour of five days, the last instant of each day among them."""
    zone = UTC if kind.tz else None
    hours = [datetime(2024, 1, 1, tzinfo=zone) + timedelta(hours=2 * row) for row in range(60)]
    for day in range(5):
        hours[day * 12 + 11] = datetime(2024, 1, 1 + day, 23, 59, 59, 999_999, tzinfo=zone)
    values = pa.array(hours, kind)
    if kind.unit == "ns":
        whole = values.cast(pa.int64()).to_numpy().copy()
        whole[11::12] += 999
        values = pa.array(whole).cast(kind)
    pq.write_table(
        numbered(range(60)).append_column("at", values), folder / "log.parquet", row_group_size=row_group_size
    )


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.timestamp("us", "Asia/Tokyo")])
@pytest.mark.parametrize("row_group_size", [5, 12, 60])
def test_no_row_of_a_range_of_days_is_lost_however_it_is_read(
    tmp_path: Path, kind: pa.DataType, row_group_size: int
) -> None:
    write_hours(tmp_path, kind, row_group_size)
    split = {"column": "at", "train": {"max": "2024-01-03"}, "validation": "2024-01-04", "test": ["2024-01-05"]}
    config = data_config(tmp_path, split=split)
    tables = read_splits(config, SCHEMA, ("train", "validation", "test"))
    assert [tables[name].num_rows for name in ("train", "validation", "test")] == [36, 12, 12]
    index = index_of(LogReader(config, SCHEMA))
    assert [index.rows(name) for name in ("train", "validation", "test")] == [36, 12, 12]
    report = data_report(LogReader(config, SCHEMA), index, show=False).content
    assert [report["splits"][name]["rows"] for name in ("train", "validation", "test")] == [36, 12, 12]


@pytest.mark.parametrize("row_group_size", [5, 60])
def test_numbers_that_are_written_as_texts_are_the_same_rows_however_they_are_read(
    tmp_path: Path, row_group_size: int
) -> None:
    pq.write_table(numbered(range(60)), tmp_path / "log.parquet", row_group_size=row_group_size)
    split = {"column": "digit", "train": ["1", "2"], "validation": "3"}
    config = data_config(tmp_path, split=split)
    tables = read_splits(config, SCHEMA, ("train", "validation"))
    assert [tables[name].num_rows for name in ("train", "validation")] == [12, 6]
    index = index_of(LogReader(config, SCHEMA))
    assert [index.rows(name) for name in ("train", "validation")] == [12, 6]


DAY = int(datetime(2024, 1, 8, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("values", "train", "says"),
    [
        ([20240107, 20240108], {"max": "2024-01-08"}, "it holds integers: write the day as 20240108"),
        ([DAY], {"max": "2024-01-08"}, f"it holds seconds since 1970, of which 2024-01-08 is {DAY} to {DAY + 86_399}$"),
        ([DAY * 1000], "2024-01-08", f"it holds milliseconds since 1970, of which 2024-01-08 is {DAY}000 to "),
        ([DAY * 10**9], ["2024-01-08"], f"it holds nanoseconds since 1970, of which 2024-01-08 is {DAY}000000000 to "),
        ([datetime(2024, 1, 8)], 20240108, "write a day as 2024-01-31, a time as 2024-01-31T18:00"),
        ([date(2024, 1, 8)], {"min": 20240108}, "write a day as 2024-01-31$"),
        ([datetime(2024, 1, 8)], {"max": "the eighth"}, "write a day as 2024-01-31, a time as"),
    ],
)
@pytest.mark.parametrize("read", ["memory", "stream"])
def test_a_literal_that_does_not_compare_is_refused_with_one_that_does(
    tmp_path: Path, values: Sequence[Any], train: Any, says: str, read: str
) -> None:
    table = numbered(range(len(values))).append_column("at", pa.array(values))
    pq.write_table(table, tmp_path / "log.parquet")
    config = data_config(tmp_path, split={"column": "at", "train": train, "validation": train})
    with pytest.raises(ValueError, match=says) as refusal:
        read_splits(config, SCHEMA, ("train",)) if read == "memory" else index_of(LogReader(config, SCHEMA))
    place = "log.parquet" if read == "memory" else "log.parquet, row group 0"
    assert str(refusal.value).startswith(f"{tmp_path}/{place}: split column 'at' of type ")


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="timezone: no time zone 'Mars/Olympus' here"):
        trains(pa.array(["a"]), "a", "Mars/Olympus")


@pytest.mark.parametrize(
    ("unit", "per_second"),
    [("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)],
)
@pytest.mark.parametrize("year", [1974, 1996, 2024, 2098])  # MovieLens begins in 1995
def test_a_time_since_1970_is_one_in_its_own_unit_alone(unit: str, per_second: int, year: int) -> None:
    first, last = (int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * per_second for month in (1, 12))
    assert epoch_unit(first, last) == unit
    assert epoch_unit(0, last) is None, "0 stands for an unknown time"
    assert epoch_unit(first, last * 1000) is None, "two units in one column"
    assert epoch_unit(year * 10_000 + 101, year * 10_000 + 1231) is None, "days as yyyymmdd"
