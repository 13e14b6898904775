"""Days of a log: which have rows, which is the newest, and which are whole.

In: a log's files and its split column: dates, timestamps, texts that begin with a date, integers YYYYMMDD, or partition
folders of the last two. Out: calendar days. They come from folders and from the statistics of row groups. A column is
read where these leave a day in doubt. A joined log has a file for each hour, date=YYYYMMDD/YYYYMMDDTHH.parquet: one of
its days is whole when all hours of it are there, an hour without rows among them.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from itertools import chain
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.columns import plain
from training.data.files import LogFile, LogFiles, partition_type
from training.data.retries import retried
from training.data.selection import YEARS, days_of
from training.data.usual_types import usual
from training.split_config import Scalar

DAY = timedelta(days=1)
_HOUR_FILE = re.compile(r"date=(\d{8})/(\1T\d{2})\.parquet")
_DATE_TEXT = r"^\d{4}-\d{2}-\d{2}"
# Days since 1970 of the first and the last day that Python has.
_FIRST, _LAST = ((day - date(1970, 1, 1)).days for day in (date.min, date.max))
# Days by which the search for the newest goes back.
_STRIDE = 30
_OPENED_AT_ONCE = 8
_FORMS = "dates, timestamps, texts as 2024-01-31, or integers as 20240131"


@dataclass(slots=True)
class _Part:
    """Rows that are in the days from `first` to `last`, rows on both of them: a row group, or a whole file of a
    partition. `days` are all of them, once they are known."""

    file: LogFile
    group: int | None
    first: date
    last: date
    days: set[date] | None = field(default=None)


class LoggedDays:
    """Days of a log by its split column. Raises ValueError for a column without days."""

    def __init__(self, files: LogFiles, column: str, zone: str) -> None:
        self.files = files
        self.column = column
        self._is_folder = column in files.files[0].partition
        self._zone = "UTC" if self._is_folder else zone
        self._is_integer = False
        with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
            self._parts = list(chain.from_iterable(pool.map(self._parts_of, files.files)))
        if not self._parts:
            raise ValueError(f"{files.place}: column '{column}' has no day; windows of days need {_FORMS}")
        self._hours = self._hours_of_files()

    @property
    def is_joined(self) -> bool:
        """True for a log with a file for each hour."""
        return bool(self._hours)

    def literal(self, day: date) -> Scalar:
        """A day as a bound of the column."""
        return day.year * 10_000 + day.month * 100 + day.day if self._is_integer else day.isoformat()

    def newest(self, left_out: frozenset[date]) -> date:
        """Newest day as `newest_if_any` has it. Raises ValueError where there is none."""
        newest = self.newest_if_any(left_out)
        if newest is not None:
            return newest
        if self.is_joined and self.newest_if_any(frozenset()) is None:
            last = max(time.date() for time in self._hours)
            raise ValueError(
                f"{self.files.place}: no day is whole: of {last}, the newest, {self.hours_absent(last)} hours have no "
                "file; wait for them, or give data.split.end a day"
            )
        kind = "whole day" if self.is_joined else "day"
        raise ValueError(f"{self.files.place}: every {kind} of column '{self.column}' is left out (data.split.exclude)")

    def newest_if_any(self, left_out: frozenset[date]) -> date | None:
        """Newest day that is not left out: of a joined log the newest whole one, of another the newest with rows. None
        where there is none."""
        if self.is_joined:
            days = {time.date() for time in self._hours}
            return max((day for day in days - left_out if not self.hours_absent(day)), default=None)
        last, first = (
            end(getattr(part, name) for part in self._parts) for end, name in ((max, "last"), (min, "first"))
        )
        while last >= first:
            start = last - min(_STRIDE * DAY, last - date.min)
            if days := self.with_rows(start, last) - left_out:
                return max(days)
            if start == date.min:
                break
            last = start - DAY
        return None

    def files_of(self, day: date) -> list[LogFile]:
        """Files that may have rows of a day."""
        found = {part.file.name: part.file for part in self._parts if part.first <= day <= part.last}
        return list(found.values())

    def hours_absent(self, day: date) -> int:
        """Hours of a day of a joined log that have no file."""
        return sum(hour not in self._hours for hour in _hours_of(day, self._zone))

    def with_rows(self, first: date, last: date) -> set[date]:
        """Days with rows among those from `first` to `last`."""
        if self._is_folder:
            self._count_folders(first, last)
        parts = [part for part in self._parts if part.first <= last and part.last >= first and part.days != set()]
        found = {day for part in parts for day in (part.days or (part.first, part.last)) if first <= day <= last}
        for part in parts:
            if part.days is None and not found.issuperset(days_from(max(part.first, first), min(part.last, last))):
                part.days = self._read_days(part)
                found |= {day for day in part.days if first <= day <= last}
        return found

    def _hours_of_files(self) -> set[datetime]:
        found = set()
        for name in self.files.names:
            if match := _HOUR_FILE.fullmatch(name):
                try:
                    found.add(datetime.strptime(match[2], "%Y%m%dT%H").replace(tzinfo=UTC))
                except ValueError:
                    raise ValueError(f"{self.files.place}/{name}: is named as an hour that no day has") from None
        return found

    def _count_folders(self, first: date, last: date) -> None:
        """Find which files of the partitions from `first` to `last` have rows."""
        parts = [part for part in self._parts if part.days is None and first <= part.first <= last]

        def count(part: _Part) -> None:
            part.days = {part.first} if self.files.rows(part.file) else set()

        with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
            list(pool.map(count, parts))

    def _parts_of(self, file: LogFile) -> list[_Part]:
        if self._is_folder:
            value = file.partition[self.column]
            if value is None:
                return []
            days = self._days(pa.chunked_array([pa.array([value], partition_type(value))]), self.files.shown(file))
            if not days:
                raise ValueError(f"{self.files.shown(file)}: folder '{self.column}={value}' is no day; write {_FORMS}")
            return [_Part(file, None, min(days), max(days))]

        def read() -> list[_Part]:
            with self.files.opened(file) as parquet:
                self.files.check_names(file, parquet, [self.column])
                groups = range(parquet.num_row_groups)
                return [part for group in groups if (part := self._part_of(file, parquet, group)) is not None]

        return retried(read, self.files.shown(file))

    def _part_of(self, file: LogFile, parquet: pq.ParquetFile, group: int) -> _Part | None:
        place = f"{self.files.shown(file)}, row group {group}"
        kind = parquet.schema_arrow.field(self.column).type
        statistics = column_statistics(parquet, group, self.column)
        if statistics is not None and statistics.has_min_max:
            try:
                ends = [self._days(pa.chunked_array([pa.array([value], kind)]), place)
                        for value in (statistics.min, statistics.max)]  # fmt: skip
            except ValueError:  # nanoseconds, which Python's times do not have, or no days: the column says
                ends = []
            if len(ends) == 2 and all(ends):
                (first,), (last,) = ends
                return _Part(file, group, first, last)
        days = self._days(parquet.read_row_group(group, columns=[self.column], use_threads=False)[self.column], place)
        return _Part(file, group, min(days), max(days), days) if days else None

    def _read_days(self, part: _Part) -> set[date]:
        place = self.files.shown(part.file)

        def read() -> set[date]:
            with self.files.opened(part.file) as parquet:
                values = parquet.read_row_group(part.group, columns=[self.column], use_threads=False)[self.column]
                return self._days(values, f"{place}, row group {part.group}")

        return retried(read, place)

    def _days(self, values: pa.ChunkedArray, place: str) -> set[date]:
        """Days of a column's values. Those that are no day are in no window, and left out here."""
        values, _ = usual(plain(values))
        kind = values.type
        if pa.types.is_null(kind):
            return set()
        if pa.types.is_integer(kind):
            self._is_integer = True
            is_near = pc.and_(pc.greater_equal(values, YEARS[0]), pc.less_equal(values, YEARS[1]))
            return set(_parsed([str(number) for number in pc.unique(values.filter(is_near)).to_pylist()]))
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            texts = pc.utf8_slice_codeunits(values.filter(pc.match_substring_regex(values, _DATE_TEXT)), 0, 10)
            return set(_parsed(pc.unique(texts).to_pylist()))
        if not pa.types.is_timestamp(kind) and not pa.types.is_date(kind):
            raise ValueError(f"{place}: column '{self.column}' is {kind}; windows of days need {_FORMS}")
        dates = days_of(values, self._zone)[0].cast(pa.date32())
        numbers = pc.unique(dates.cast(pa.int32())).to_pylist()
        return {
            date(1970, 1, 1) + number * DAY for number in numbers if number is not None and _FIRST <= number <= _LAST
        }


def column_statistics(parquet: pq.ParquetFile, group: int, name: str) -> pq.Statistics | None:
    """Statistics of a column of a row group, where the file has them."""
    about = parquet.metadata.row_group(group)
    chunks = (about.column(place) for place in range(about.num_columns))
    return next((chunk.statistics for chunk in chunks if chunk.path_in_schema == name), None)


def _parsed(texts: list[str]) -> Iterator[date]:
    for text in texts:
        try:
            yield date.fromisoformat(text)
        except ValueError:  # the 31st of February
            continue


def days_from(first: date, last: date) -> list[date]:
    """All days from `first` to `last`, none where it is earlier."""
    return [first + DAY * ahead for ahead in range((last - first).days + 1)]


def _hours_of(day: date, zone: str) -> list[datetime]:
    """Hours of UTC that a day of a zone has a part of: 24 in UTC, 23 or 25 where clocks change."""
    first, last = (
        datetime.combine(of, time(), ZoneInfo(zone)).astimezone(UTC) for of in (day, min(day, date.max - DAY) + DAY)
    )
    hour = first.replace(minute=0, second=0)
    return [hour + timedelta(hours=ahead) for ahead in range(-(-int((last - hour).total_seconds()) // 3600))]
