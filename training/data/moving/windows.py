"""Windows of days that move with the data, resolved to ranges of values: once, before a job reads rows.

In: the training file's data. Out: the same with `ResolvedWindows` for its split, and lines on the log about days
without rows, days left out and hours that are not there. A run keeps what was resolved, and resumes with that.
"""

import logging
from collections.abc import Mapping
from datetime import date
from typing import NamedTuple

from training.config import DataConfig, SplitName, TrainingConfig
from training.data.files import LogFiles
from training.data.moving.days import DAY, LoggedDays, days_from
from training.split_config import MovingWindows, Range, ResolvedWindows
from training.wording import counted

log = logging.getLogger(__name__)

_SHOWN = 5


class Window(NamedTuple):
    """Days from `first` to `last`, both included."""

    first: date
    last: date

    def __str__(self) -> str:
        return f"{self.first} to {self.last} ({counted((self.last - self.first).days + 1, 'day')})"


def windows_until(end: date, days: Mapping[SplitName, int]) -> dict[SplitName, Window]:
    """Consecutive windows of so many days, in their order, the last of which ends on `end`. A window of 0 days is left
    out. Raises ValueError for windows that begin before the first year."""
    windows: dict[SplitName, Window] = {}
    for split, count in reversed([*days.items()]):
        if not count:
            continue
        if (end - date.min).days < count:
            raise ValueError(f"data.split: the window of {counted(count, 'day')} for {split} begins before the year 1")
        windows[split] = Window(end - (count - 1) * DAY, end)
        end = windows[split].first - DAY
    return dict(reversed([*windows.items()]))


def resolved(data: DataConfig, *, is_logged: bool = True) -> DataConfig:
    """The data with its windows resolved, and as it is where it has none. With `is_logged` the log says which windows
    and what is doubtful of them. Raises ValueError for a column without days, and for windows without a day."""
    split = data.split
    if not isinstance(split, MovingWindows):
        return data
    days = LoggedDays(LogFiles(data.path), split.column, split.timezone)
    end = days.newest(frozenset(split.exclude)) if split.end == "latest" else split.end
    lengths: dict[SplitName, int] = {
        "train": split.train.days, "validation": split.validation.days, "test": split.test.days
    }  # fmt: skip
    windows = windows_until(end, lengths)
    first = min(window.first for window in windows.values())
    left_out = [day for day in split.exclude if first <= day <= end]
    for name, window in windows.items():
        if {*days_from(*window)} <= {*left_out}:
            raise ValueError(f"data.split: every day of split {name}, {window}, is left out (exclude)")
    if is_logged:
        shown = ", ".join(f"{name} {window}" for name, window in windows.items())
        end_day = "the newest" if split.end == "latest" else "a given"
        log.info("%s: windows that end on %s day: %s", data.path, end_day, shown)
        _log_doubts(days, Window(first, end), left_out)
    ranges = {name: Range(min=days.literal(window.first), max=days.literal(window.last))
              for name, window in windows.items()}  # fmt: skip
    return data.model_copy(
        update={
            "split": ResolvedWindows(
                column=split.column,
                timezone=split.timezone,
                left_out=tuple(days.literal(day) for day in left_out),
                windows=split,
                train=ranges["train"],
                validation=ranges["validation"],
                test=ranges["validation"] if split.halve_validation else ranges.get("test"),
            )
        }
    )


def with_windows(config: TrainingConfig) -> TrainingConfig:
    """The training file with the windows of its data resolved (`resolved`)."""
    return config.model_copy(update={"data": resolved(config.data)})


def _log_doubts(days: LoggedDays, window: Window, left_out: list[date]) -> None:
    place = days.files.place
    if left_out:
        log.info("%s: %s left out (exclude): %s", place, counted(len(left_out), "day"), _named(left_out))
    kept = [day for day in days_from(*window) if day not in left_out]
    if empty := sorted({*kept} - days.with_rows(*window)):
        log.warning("%s: %s of the windows without rows: %s", place, counted(len(empty), "day"), _named(empty))
    if days.is_joined and (parts := [day for day in kept if days.hours_absent(day) and day not in empty]):
        log.warning("%s: %s of the windows without all of their hours: %s", place, counted(len(parts), "day"),
                    _named(parts))  # fmt: skip


def _named(days: list[date]) -> str:
    return ", ".join(map(str, days[:_SHOWN])) + (" ..." if len(days) > _SHOWN else "")
