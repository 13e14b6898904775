"""Decisions that a person takes: the cycle pauses and goes on, and a quarantined day is released.

In: a model's folder, a time and who decides. Out: an entry of the journal, and a line that says what follows from it.
A night that is running goes on: pauses and releases count from the next one.
"""

from datetime import date, datetime
from pathlib import Path

from model.rollout.decisions import DAILY, DATA_GATE, DAY, JOINED_AGAIN, PAUSE, RELEASE, RESUME, Decisions
from model.rollout.journal import Entry, Journal


def pause(folder: Path, now: datetime, who: str) -> str:
    """Pause the cycle. Raises ValueError where it is paused already, and for a model without a folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no model of this name, so nothing is to be paused")
    journal = Journal(folder)
    if before := Decisions(journal.read().entries).paused:
        raise ValueError(f"{folder}: is paused since {before.time:%Y-%m-%d %H:%M} UTC, by {before.who}")
    journal.append(Entry(time=now, step=DAILY, decision=PAUSE, who=who))
    return "paused: from the next night on hours are joined and nothing is decided, until --resume"


def resume(folder: Path, now: datetime, who: str) -> str:
    """End a pause. Raises ValueError where there is none."""
    journal = Journal(folder)
    if Decisions(journal.read().entries).paused is None:
        raise ValueError(f"{folder}: is not paused")
    journal.append(Entry(time=now, step=DAILY, decision=RESUME, who=who))
    return "resumed: the next night decides again"


def release(folder: Path, now: datetime, who: str, day: date) -> str:
    """Release a quarantined day. Raises ValueError for a day that is not quarantined."""
    journal = Journal(folder)
    quarantined = Decisions(journal.read().entries).quarantined
    figures = {DAY: day.isoformat()}
    if day not in quarantined:
        shown = ", ".join(map(str, quarantined)) or "none"
        raise ValueError(f"--release {day}: is not quarantined; days that are: {shown}")
    if JOINED_AGAIN in quarantined[day].figures:  # else the day would be gated again as one that was joined since
        figures[JOINED_AGAIN] = quarantined[day].figures[JOINED_AGAIN]
    journal.append(Entry(time=now, step=DATA_GATE, decision=RELEASE, figures=figures, who=who))
    return f"{day} is released: from the next night on windows have it"
