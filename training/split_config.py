"""Splits of a training file: which rows train, validate and test, by the values of one column.

In: `data.split` of a training file. Out: `SplitConfig`, values, lists of values or ranges of them, or `MovingWindows`,
numbers of calendar days. training/data/moving/windows.py resolves these, once a run, to `ResolvedWindows`: ranges of
values in the form that the column has its days in.
"""

import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from model.strict_yaml import StrictModel

SPLITS = ("train", "validation", "test")
_DAY_FORMS = (re.compile(r"\d{4}-\d{2}-\d{2}"), re.compile(r"\d{8}"))
# A window of more days is a mistake: a century.
_MOST_DAYS = 36_525


def _scalar(value: object) -> object:
    if isinstance(value, date):
        # YAML reads 2022-05-06 as a date. training/data compares it as text or, in a column of dates, as a date again.
        return value.isoformat()
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a number, a text or a date, got {type(value).__name__}")
    return value


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError(f"no time zone '{name}' here; expected one like UTC or Europe/Berlin") from None
    return name


def _day(value: object) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    try:
        if any(form.fullmatch(text) for form in _DAY_FORMS):
            return date.fromisoformat(text)
    except ValueError:  # the 31st of February
        pass
    raise ValueError(f"expected a day as 2024-01-31 or 20240131, got {str(value)[:40]!r}")


Scalar = Annotated[int | float | str, BeforeValidator(_scalar)]
Zone = Annotated[str, AfterValidator(_zone)]
Day = Annotated[date, BeforeValidator(_day)]


class Range(StrictModel):
    """Values from `min` to `max`, both included. Either may be left out."""

    min: Scalar | None = None
    max: Scalar | None = None


def _form(value: object) -> str:
    return "range" if isinstance(value, Mapping | Range) else "list" if isinstance(value, list) else "value"


Selection = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Scalar], Tag("list")] | Annotated[Scalar, Tag("value")],
    Discriminator(_form),
]


class SplitConfig(StrictModel):
    """Split of each row, by the value of one column: a value, a list of values, or {min, max}.

    A date covers its whole day of `timezone` in a column of timestamps (training/data/selection.py)."""

    column: str
    train: Selection
    validation: Selection
    test: Selection | None = None
    timezone: Zone = "UTC"


class DayCount(StrictModel):
    """Length of a window in calendar days."""

    days: Annotated[int, Field(ge=0, le=_MOST_DAYS)]


def _some_days(count: DayCount) -> DayCount:
    if not count.days:
        raise ValueError("days: a window of this split has at least 1 day")
    return count


class MovingWindows(StrictModel):
    """Consecutive windows of calendar days, the last of which ends on day `end`: train, validation, test.

    `latest` is the newest whole day of the data, without those that are left out (training/data/moving/days.py). The
    days in `exclude` are in no split. They count as days of a window, so a window always has the same first and last
    day.

    With `halve_validation` half of the users of the validation days are the test split, and the others validate
    (training/data/moving/halves.py)."""

    column: str
    end: Literal["latest"] | Day = "latest"
    train: Annotated[DayCount, AfterValidator(_some_days)]
    validation: Annotated[DayCount, AfterValidator(_some_days)]
    test: DayCount = DayCount(days=0)
    halve_validation: bool = False
    timezone: Zone = "UTC"
    exclude: Annotated[tuple[Day, ...], AfterValidator(lambda days: tuple(sorted(set(days))))] = ()

    @model_validator(mode="before")
    @classmethod
    def _refuse_values(cls, data: Any) -> Any:
        for split in SPLITS:
            given = data.get(split) if isinstance(data, Mapping) else None
            if given is not None and not isinstance(given, DayCount) and not _is_day_count(given):
                raise ValueError(
                    f"{split}: names values, beside windows that are numbers of days; write {split}: {{days: N}}, or "
                    "name the values of every split and leave `end` and `exclude` out"
                )
        return data

    @model_validator(mode="after")
    def _check_test(self) -> "MovingWindows":
        if self.halve_validation and self.test.days:
            raise ValueError("halve_validation makes the test split of validation days; leave test out")
        return self


class ResolvedWindows(SplitConfig):
    """Windows of days, resolved: ranges of the column's values, the values left out, and what the windows were."""

    left_out: tuple[Selection, ...] = ()
    windows: MovingWindows


def _is_day_count(value: object) -> bool:
    return isinstance(value, Mapping) and "days" in value


def _kind(value: object) -> str:
    if isinstance(value, MovingWindows | ResolvedWindows):
        return "<moving>" if isinstance(value, MovingWindows) else "<resolved>"
    if not isinstance(value, Mapping):
        return "<values>"
    if "windows" in value:
        return "<resolved>"
    counts = any(_is_day_count(value.get(split)) for split in SPLITS)
    return "<moving>" if counts or "end" in value or "exclude" in value else "<values>"


Split = Annotated[
    Annotated[SplitConfig, Tag("<values>")]
    | Annotated[MovingWindows, Tag("<moving>")]
    | Annotated[ResolvedWindows, Tag("<resolved>")],
    Discriminator(_kind),
]
