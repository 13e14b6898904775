"""Readings of a test day by benchmarks, in the committed list of configs/rolling.

In: what a benchmark has measured a test split of. Out: a line of the list, which is committed with the results.
"""

from datetime import date
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from benchmarks.report import RESULTS
from training.config import DataConfig
from training.rolling.checkout import commit_of_checkout
from training.rolling.readings import note_reading
from training.split_config import Day, MovingWindows

READINGS = Path("configs/rolling/readings.yaml")
KUAIRAND_DAY = date(2022, 5, 7)


def note(by: str, day: date | None, path: Path = READINGS) -> None:
    """Put a benchmark's reading in the list. A split that is no day is not listed."""
    if day is not None:
        note_reading(path, day, by, commit_of_checkout(path, RESULTS))


def day_of_test(data: DataConfig) -> date | None:
    """The day that is the test split. None where that is something else."""
    if isinstance(data.split, MovingWindows):
        end = data.split.end
        return end if data.split.test.days == 1 and isinstance(end, date) else None
    try:
        day: date = TypeAdapter(Day).validate_python(data.split.test)
    except ValidationError:
        return None
    return day
