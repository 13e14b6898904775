"""Recalibration of what serves, between promotions: rates may move faster than versions are promoted.

In: the newest accepted day, and the version that serves while no canary is judged. Out: a generation of its calibration
fitted on the last accepted days, where its answers are surely off on the newest. Each day asks once.
"""

import logging
from datetime import date, datetime

from model.artifact.signature import SigningKey
from model.rollout.decisions import RECALIBRATE, Decisions
from model.rollout.journal import Journal
from training.daily.cycle_file import Cycle
from training.daily.gates import figures_of_day
from training.daily.serving import WHO, Champion
from training.judge.calibration import outputs_off
from training.publish.recalibrate import Days, TooFewLabelsError, note_found_generations, recalibrate

log = logging.getLogger(__name__)


def recalibrate_if_off(cycle: Cycle, journal: Journal, champion: Champion | None, newest: date, now: datetime) -> bool:
    """Recalibrate the version that serves where it is off on the newest day. Returns whether it did."""
    rules = cycle.file.recalibrate
    if rules is None or champion is None:
        return False
    note_found_generations(champion.scorer, WHO, now)
    decisions = Decisions(journal.read().entries)
    if (champion.last_seen is not None and newest <= champion.last_seen) or _was_asked(champion, newest, decisions):
        return False  # the calibration in force was fitted on this day, or on a later one
    off = outputs_off(figures_of_day(cycle, champion, newest, decisions), rules.beyond)
    if not off:
        return False
    rows = Days(
        days=rules.days,
        end=newest,
        column=cycle.windows.column,
        timezone=cycle.windows.timezone,
        exclude=frozenset(decisions.quarantined),
        weight=cycle.training.data.weight,
    )
    key = None if cycle.file.sign_key is None else SigningKey(cycle.file.sign_key)
    try:
        # Half of the newest day's users are among the rows, and ask the quality gate later. Of two parameters fitted on
        # thousands of rows that favours what serves by less than a thousandth of NE.
        recalibrate(champion.path, cycle.training.data.path, rows, sign_key=key, reasons=off, who=WHO, now=now)
    except TooFewLabelsError as error:
        log.warning("not recalibrated: %s", error)
        return False
    return True


def _was_asked(champion: Champion, newest: date, decisions: Decisions) -> bool:
    """True where a generation was fitted on days up to the newest: the one in force, or one that was undone since."""
    recalibration = champion.scorer.calibration.recalibration
    windows = [] if recalibration is None else [recalibration.manifest.data_window]
    windows += [
        window
        for entry in decisions.entries
        if entry.step == RECALIBRATE and entry.versions.get("version") == str(champion.version)
        if isinstance(window := entry.figures.get("data_window"), dict)
    ]
    return any(str(newest) <= str(day) for window in windows for day in window.get("days", [])[-1:])
