"""New days of the data, each gated once: accepted, or quarantined and left out of every window.

In: the days of the log, the journal, the version that serves. Out: an entry a day, with the reasons for which it is
refused, the figures, and the sha256 of the files that have it. A day that was joined again since is gated once more.
"""

import logging
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

from model.rollout.decisions import ACCEPT, DATA_GATE, DAY, JOINED_AGAIN, QUARANTINE, SHIFTED, Decisions
from model.rollout.journal import Entry, Journal
from model.untrusted_files import open_regular, sha256_of
from training.daily.cycle_file import Cycle
from training.daily.gates import day_faults, versions_of
from training.daily.joining import joined_again
from training.daily.serving import WHO, Champion, versions_trained_on
from training.data.files import LogFiles
from training.data.moving.days import DAY as ONE_DAY
from training.data.moving.days import LoggedDays, days_from
from training.wording import counted

log = logging.getLogger(__name__)

TRAINED_ON = "trained_on_before"


def logged_days(cycle: Cycle) -> LoggedDays:
    """Days of the cycle's data. Raises ValueError where there is none."""
    return LoggedDays(LogFiles(cycle.training.data.path), cycle.windows.column, cycle.windows.timezone)


def gate_new_days(cycle: Cycle, journal: Journal, days: LoggedDays, champion: Champion | None, now: datetime) -> None:
    """Gate each day of the longest window that no entry is about as it is now, in their order."""
    newest = days.newest(frozenset())
    first = newest - cycle.windows.train.days * ONE_DAY
    decided = Decisions(journal.read().entries).gates
    with_rows = days.with_rows(first, newest)
    # Before the first day with rows there is nothing to leave out.
    again = joined_again(cycle)
    new = [
        day
        for day in days_from(min(with_rows, default=newest), newest)
        if day not in decided or decided[day].figures.get(JOINED_AGAIN, 0) < again.get(day, 0)
    ]
    for day in new:
        decisions = Decisions(journal.read().entries)
        accepted = [
            before for before in days_from(first, day - ONE_DAY)
            if before in with_rows and before not in decisions.quarantined
        ]  # fmt: skip
        if day in with_rows:
            faults, figures = day_faults(cycle, day, accepted, champion, decisions)
        else:
            faults, figures = ["no row is of this day"], {"rows": 0}
        if day in again:
            figures[JOINED_AGAIN] = again[day]
        if day in decided:
            figures[TRAINED_ON] = [str(version) for version in versions_trained_on(cycle.folder, day)]
            shown = ", ".join(figures[TRAINED_ON]) or "none"
            log.warning("%s was joined again and is gated once more; versions trained on it as it was: %s", day, shown)
        notes = [] if faults else _notes(figures)
        entry = Entry(
            time=now,
            step=DATA_GATE,
            decision=QUARANTINE if faults else ACCEPT,
            reasons=(*faults, *notes),
            figures={DAY: day.isoformat(), **figures},
            versions=versions_of(champion),
            inputs=_inputs(days, day),
            who=WHO,
        )
        journal.append(entry)
        for reason in faults:
            log.warning("%s is quarantined: %s", day, reason)
        for note in notes:
            log.warning("%s is accepted: %s", day, note)
    if new:
        quarantined = Decisions(journal.read().entries).quarantined
        left_out = sum(day in quarantined for day in new)
        log.info("data gate: %s up to %s, %d of them quarantined", counted(len(new), "new day"), newest, left_out)


def _notes(figures: Mapping[str, Any]) -> list[str]:
    """Notes on an accepted day."""
    shifted = ", ".join(figures.get(SHIFTED, []))
    said = "users like other things than before, labels follow the answers less"
    return [f"{said} ({shifted}); the next version is trained on the days from this one on"] if shifted else []


def _inputs(days: LoggedDays, day: date) -> dict[str, str]:
    """By file that has rows of a day the sha256 of its bytes, or of a remote one its size and time."""
    inputs = {}
    for file in days.files_of(day):
        if "://" in days.files.place:
            inputs[file.name] = " ".join(map(str, days.files.size_and_time(file)))
            continue
        try:
            with open_regular(Path(file.path)) as content:
                inputs[file.name] = sha256_of(content)
        except OSError as error:
            raise ValueError(f"{days.files.shown(file)}: cannot be read ({error.strerror})") from None
    return inputs
