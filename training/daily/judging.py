"""The judge's step: what waits as canary is promoted, withdrawn, or left waiting.

In: the labels, the journal and the joined rows. Out: an entry with the verdict, then labels that follow it. A job that
is killed between the two finds the verdict and changes the labels. Labels that somebody changed meanwhile stay.
"""

import logging
from datetime import datetime, time
from zoneinfo import ZoneInfo

from model.rollout.decisions import JUDGE, PROMOTE, WAIT, WITHDRAW, Decisions
from model.rollout.journal import Entry, Journal
from model.rollout.labels import CANARY, STABLE, Labels
from training.daily.cycle_file import Cycle
from training.daily.observing import verdict_of
from training.daily.serving import WHO, change_labels, note_found_labels, read_labels
from training.data.moving.days import DAY as ONE_DAY
from training.judge.observations import Span
from training.judge.verdict import Verdict

log = logging.getLogger(__name__)


def judge_waiting(cycle: Cycle, journal: Journal, now: datetime, *, is_gated: bool = True) -> str | None:
    """Judge the canary. Returns the reason why it waits on, None where nothing waits any more.

    Where the days are not gated a promotion waits for the night that gates them: of a day of inverted labels the worse
    version looks better."""
    decisions = Decisions(journal.read().entries)
    if note_found_labels(cycle.folder, journal, decisions, now):
        decisions = Decisions(journal.read().entries)
    unapplied = decisions.unapplied()
    if unapplied is not None:
        _apply(cycle, journal, unapplied, now)
    labels = read_labels(cycle.folder)
    if labels.canary is None:
        return None
    if cycle.join is None or cycle.file.judge is None:
        return f"version {labels.canary.version} is the canary, and {cycle.path} has no join and judge to judge it by"
    decisions = Decisions(journal.read().entries)
    since = decisions.canary_since(str(labels.canary.version))
    assert since is not None, "labels that the journal does not know were entered just now"
    verdict = _verdict(cycle, labels, decisions, since, now)
    if verdict.decision == PROMOTE and not is_gated:
        reason = "it would be promoted, and the night does that, which gates the day before"
        verdict = Verdict(WAIT, (reason, *verdict.reasons), verdict.figures)
    entry = _entry(labels, verdict, now)
    journal.append(entry)
    for reason in entry.reasons:
        log.info("canary %s: %s, %s", labels.canary.version, entry.decision, reason)
    if entry.decision == WAIT:
        return f"version {labels.canary.version} is the canary and waits for its judgement"
    _apply(cycle, journal, entry, now)
    return None


def _verdict(cycle: Cycle, labels: Labels, decisions: Decisions, since: datetime, now: datetime) -> Verdict:
    rules = cycle.file.judge
    assert rules is not None
    assert labels.canary is not None
    beside = decisions.stable_beside(str(labels.canary.version))
    if len(beside) > 1:
        # Whoever moved stable wants it there. A promotion on other evidence would undo that.
        return Verdict(
            WITHDRAW,
            (
                f"stable was moved to version {labels.stable} while version {labels.canary.version} was judged against "
                f"version {beside[0]}, so that the question has no answer; make it the canary again to ask again",
            ),
        )
    verdict = verdict_of(cycle, labels, since, _share(labels, decisions), _left_out(cycle, decisions))
    if verdict.decision != WAIT or now - since <= rules.at_most:
        return verdict
    over = f"no decision within at_most ({rules.at_most}), and on_timeout is {rules.on_timeout}"
    return Verdict(rules.on_timeout, (over, *verdict.reasons), verdict.figures)


def _left_out(cycle: Cycle, decisions: Decisions) -> tuple[Span, ...]:
    """Quarantined days: what users did then is not to be believed."""
    zone = ZoneInfo(cycle.windows.timezone)
    return tuple(
        (datetime.combine(day, time.min, zone), datetime.combine(day + ONE_DAY, time.min, zone))
        for day in decisions.quarantined
    )


def _share(labels: Labels, decisions: Decisions) -> float | None:
    """Share of the canary, None where it was changed since the label was set."""
    assert labels.canary is not None
    shares = decisions.shares_of(str(labels.canary.version))
    return labels.canary.share if shares == {labels.canary.share} else None


def _entry(labels: Labels, verdict: Verdict, now: datetime) -> Entry:
    shown = labels.document()
    canary = shown[CANARY]
    return Entry(
        time=now,
        step=JUDGE,
        decision=verdict.decision,
        reasons=verdict.reasons,
        figures={**verdict.figures, "share": canary["share"]},
        versions={STABLE: shown[STABLE], CANARY: canary["version"]},
        who=WHO,
    )


def _apply(cycle: Cycle, journal: Journal, entry: Entry, now: datetime) -> None:
    """Change the labels as a verdict says, where they still are those that it is about."""

    def change(labels: Labels) -> Labels | None:
        judged = (str(entry.versions.get(STABLE)), str(entry.versions.get(CANARY)))
        found = None if labels.canary is None else (str(labels.stable), str(labels.canary.version))
        if found != judged:
            log.warning("labels were changed meanwhile, and stay: %s", labels.document())
            return None
        if entry.decision == PROMOTE:
            assert labels.canary is not None
            return Labels(stable=labels.canary.version, shadow=labels.shadow)
        return Labels(stable=labels.stable, shadow=labels.shadow)

    change_labels(cycle.folder, journal, now, change, [f"judge: {entry.decision}", *entry.reasons])
