"""The cycle of a night: join, gate days, judge what waits, recalibrate, train, gate the challenger, publish, label.

Days are gated before the judge looks, which believes nothing of a quarantined day.

In: a cycle's file and a time. Out: at most one new version, labels, and an entry of the journal for each decision. What
lies on the disk and in the journal says how far a night has come. So a job that is killed anywhere is run again, and
goes on. Two at once are refused.
"""

import logging
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

from model.rollout.decisions import (
    DAILY,
    DAY,
    EXPORT,
    FAIL,
    FINISH,
    PUBLISHED,
    TRAIN,
    Decisions,
)
from model.rollout.journal import Entry, Journal
from model.rollout.labels import CANARY, SHADOW, STABLE, Canary, Labels
from training.daily.cycle_file import Cycle
from training.daily.days import gate_new_days, logged_days
from training.daily.joining import join_hours
from training.daily.judging import judge_waiting
from training.daily.left_behind import remove_killed_publications, remove_old_runs
from training.daily.plan import Plan, plan_of
from training.daily.publishing import publish_if_good
from training.daily.recalibrating import recalibrate_if_off
from training.daily.serving import WHO, Champion, champion_of, change_labels, read_labels, version_of_run
from training.data.moving.days import DAY as ONE_DAY
from training.files import lock_file
from training.train import train

log = logging.getLogger(__name__)

LOCK = ".daily.lock"


class AlreadyRunningError(ValueError):
    """Another job works on the same model. Whoever began this one tries again later."""


def alone(folder: Path) -> AbstractContextManager[None]:
    """Keep other jobs from this model meanwhile. Raises AlreadyRunningError where one works on it, ValueError."""
    taken = AlreadyRunningError(f"{folder}: another job works on this model; nothing was done")
    return lock_file(folder / LOCK, taken)


def run_cycle(cycle: Cycle, now: datetime) -> str:
    """Run one night, and return how it ended. Raises ValueError, entered in the journal, and AlreadyRunningError."""
    with alone(cycle.folder):
        journal = _journal_of(cycle)
        try:
            outcome = _night(cycle, journal, now)
        except (ValueError, OSError) as error:
            journal.append(Entry(time=now, step=DAILY, decision=FAIL, reasons=(str(error),), who=WHO))
            raise
        journal.append(Entry(time=now, step=DAILY, decision=FINISH, reasons=(outcome,), who=WHO))
        return outcome


def run_judge(cycle: Cycle, now: datetime) -> str:
    """Judge what waits and do nothing else: it may withdraw. Raises as `run_cycle` does."""
    if not cycle.folder.is_dir():  # an hourly judge begins before the first night
        return f"no canary waits: {cycle.folder} is not there yet"
    with alone(cycle.folder):
        journal = _journal_of(cycle)
        paused = Decisions(journal.read().entries).paused
        return _paused(paused) if paused else judge_waiting(cycle, journal, now, is_gated=False) or "no canary waits"


def _journal_of(cycle: Cycle) -> Journal:
    """The model's journal. The log says which of its lines count for nothing: what they decided is forgotten."""
    journal = Journal(cycle.folder)
    faults = journal.read().faults
    if faults:
        log.warning("damaged lines of the journal count for nothing: %d; the first: %s", len(faults), faults[0])
    return journal


def _night(cycle: Cycle, journal: Journal, now: datetime) -> str:
    join_hours(cycle, now)
    paused = Decisions(journal.read().entries).paused
    if paused is not None:
        return _paused(paused)
    try:
        days = logged_days(cycle)
        gate_new_days(cycle, journal, days, _champion(cycle, journal), now)
    finally:  # a day that cannot be read keeps no bad canary in its place
        waits = judge_waiting(cycle, journal, now)
        if waits is None:
            _label_published(cycle, journal, now)
    if waits is not None:
        return f"{waits}; nothing new is published meanwhile"
    champion = _champion(cycle, journal)
    decisions = Decisions(journal.read().entries)
    newest = days.newest_if_any(frozenset(decisions.quarantined))
    if newest is None:
        held = ", ".join(map(str, decisions.quarantined))
        return f"no day to train on: every whole day is quarantined ({held}); wait, or let one back in by --release DAY"
    if recalibrate_if_off(cycle, journal, champion, newest, now):
        champion = _champion(cycle, journal)
    with_rows = days.with_rows(newest - cycle.windows.train.days * ONE_DAY, newest)
    plan = plan_of(cycle, newest, with_rows, decisions, champion)
    if isinstance(plan, str):
        return plan
    remove_old_runs(cycle.training.output, newest)
    remove_killed_publications(cycle.folder)
    log.info("%s: %s start, %s", plan.day, plan.start, plan.reason)
    return _made(cycle, journal, plan, champion, now)


def _made(cycle: Cycle, journal: Journal, plan: Plan, champion: Champion | None, now: datetime) -> str:
    """Train by a plan, gate what comes of it, publish and label it."""
    version = version_of_run(cycle.folder, plan.run)
    if version is None:
        run = train(plan.config)
        _enter_once(journal, TRAIN, FINISH, plan, now)
        if cycle.file.publish.label in (CANARY, SHADOW) and champion is not None:
            _pin(cycle, journal, champion, now)
        made = publish_if_good(cycle, journal, plan, run, champion, now)
        if isinstance(made, str):
            return made
        version = made
    versions = {"version": str(version), "parent": None if champion is None else str(champion.version)}
    journal.append(
        Entry(
            time=now,
            step=EXPORT,
            decision=PUBLISHED,
            reasons=(plan.reason,),
            figures={DAY: plan.day.isoformat(), "run": plan.run, "start": plan.start},
            versions={**versions, "label": _label(cycle, champion)},
            who=WHO,
        )
    )
    _label_published(cycle, journal, now)
    return f"version {version} was published for {plan.day}"


def _label(cycle: Cycle, champion: Champion | None) -> str | None:
    """The label of a new version. The first one has nobody to be judged against."""
    label = cycle.file.publish.label
    return STABLE if champion is None and label is not None else label


def _pin(cycle: Cycle, journal: Journal, champion: Champion, now: datetime) -> None:
    """Pin what serves, before a newer version can be seen, which would be served at once."""
    reason = "what serves is pinned, before a version is published that is to be judged beside it"
    change_labels(
        cycle.folder,
        journal,
        now,
        lambda labels: labels.model_copy(update={"stable": champion.version}) if labels.stable is None else None,
        [reason],
    )


def _label_published(cycle: Cycle, journal: Journal, now: datetime) -> None:
    """Label the version that was published last, where no label was changed since."""
    entry = Decisions(journal.read().entries).unlabelled()
    if entry is None:
        return
    version, label = int(entry.versions["version"]), entry.versions["label"]

    def change(labels: Labels) -> Labels | None:
        if label == STABLE:
            return labels.model_copy(update={STABLE: version})
        if label == SHADOW:
            return labels.model_copy(update={SHADOW: version})
        canary = Canary(version=version, share=cycle.file.publish.canary_share)
        return labels.model_copy(update={CANARY: canary}) if labels.canary is None else None

    change_labels(cycle.folder, journal, now, change, [f"version {version} was published for {entry.figures[DAY]}"])


def _champion(cycle: Cycle, journal: Journal) -> Champion | None:
    withdrawn = Decisions(journal.read().entries).withdrawn
    return champion_of(cycle.folder, read_labels(cycle.folder), withdrawn)


def _enter_once(journal: Journal, step: str, decision: str, plan: Plan, now: datetime) -> None:
    """Enter that a step of a plan was done, unless a job that was killed since has entered it."""
    figures = {DAY: plan.day.isoformat(), "run": plan.run, "start": plan.start}
    last = Decisions(journal.read().entries).last(step, decision)
    if last is None or last.figures.get("run") != plan.run:
        journal.append(Entry(time=now, step=step, decision=decision, reasons=(plan.reason,), figures=figures, who=WHO))


def _paused(entry: Entry) -> str:
    return f"paused since {entry.time:%Y-%m-%d %H:%M} UTC by {entry.who}; give --resume to go on"
