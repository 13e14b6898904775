"""The list of readings: which comparison has read which test day, when, and why again.

In: a YAML file that is committed. Out: the same file, whole, with one reading more. A day that was read is no test of
the next comparison: its report says how many have read it before. The entry is written before the first answer, so
that a reading which is killed is in the list too, and goes on as the same one.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from model.strict_yaml import StrictModel, read_yaml
from training.run.run import write_text
from training.split_config import Day

HEAD = (
    "# Readings of test days, oldest first. `python -m training rolling read` adds its own before it answers the day.\n"
    "# A day that was read confirms, and chooses nothing.\n"
)


class Reading(StrictModel):
    """One reading of a test day, by the comparison or benchmark of a name."""

    day: Day
    by: Annotated[str, Field(min_length=1)]
    read: Day
    commit: str
    frozen_sha256: str | None = None
    # Words for a second reading by the same comparison.
    why: str | None = None
    ended: bool = True


class Readings(StrictModel):
    """All readings, oldest first."""

    readings: tuple[Reading, ...] = ()


def read_list(path: Path) -> tuple[Reading, ...]:
    """The readings of a file. Raises ValueError naming it."""
    return Readings.from_mapping(read_yaml(path), str(path)).readings


def note_reading(path: Path, day: date, by: str, commit: str) -> None:
    """Put a reading in the list that has ended, once for a commit."""
    readings = read_list(path)
    if not any((one.day, one.by, one.commit) == (day, by, commit) for one in readings):
        _write(path, (*readings, Reading(day=day, by=by, read=datetime.now(UTC).date(), commit=commit)))


def begin_reading(path: Path, day: date, by: str, frozen_sha256: str, commit: str, why: str | None) -> None:
    """Put a reading in the list, or go on with one that has not ended. Raises ValueError for a second reading of a day
    without words."""
    readings = read_list(path)
    own = [reading for reading in readings if (reading.day, reading.by) == (day, by)]
    if own and not own[-1].ended and own[-1].frozen_sha256 == frozen_sha256:
        return
    if own and not (why or "").strip():
        raise ValueError(
            f"{path}: {by} read {day} on {own[-1].read}; a second reading is no test, and needs --again WORDS that say "
            "why it is made"
        )
    today = datetime.now(UTC).date()
    new = Reading(day=day, by=by, read=today, commit=commit, frozen_sha256=frozen_sha256, why=why, ended=False)
    _write(path, (*readings, new))


def end_reading(path: Path, day: date, by: str) -> None:
    """Mark the last reading of a comparison as ended."""
    readings = list(read_list(path))
    place = max(number for number, reading in enumerate(readings) if (reading.day, reading.by) == (day, by))
    readings[place] = readings[place].model_copy(update={"ended": True})
    _write(path, readings)


def _write(path: Path, readings: Sequence[Reading]) -> None:
    lines = []
    for reading in readings:
        content = reading.model_dump(exclude_none=True, exclude_defaults=True)
        lines.append("- " + yaml.safe_dump(content, sort_keys=False, default_flow_style=True, width=10_000))
    write_text(path, HEAD + "readings:\n" + "".join(lines))
