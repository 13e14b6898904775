"""Decisions about a model as its journal has them: the steps' entries, and what stands by all of them.

In: entries of a journal, in the order written. Out: `Decisions`: days that are quarantined, versions that were
withdrawn or stable, since when a canary is judged, and whether the daily job is paused. Nothing else keeps this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from model.rollout.journal import Entry
from model.rollout.labels import CANARY, SHADOW, STABLE, Labels

# Steps, as entries name them.
LABELS, JUDGE, DATA_GATE, QUALITY_GATE, TRAIN, EXPORT, RECALIBRATE, DAILY, VALUE_MODELS = (
    "labels", "judge", "data_gate", "quality_gate", "train", "export", "recalibrate", "daily", "value_models",
)  # fmt: skip
# Decisions, as entries name them.
CHANGED, FOUND = "change", "found"
PROMOTE: Final = "promote"
WITHDRAW: Final = "withdraw"
WAIT: Final = "wait"
ACCEPT, QUARANTINE, RELEASE, REFUSE = "accept", "quarantine", "release", "refuse"
PUBLISHED = "publish"
PAUSE, RESUME, FINISH, FAIL = "pause", "resume", "finish", "fail"
# The figure that names a day, as 2026-11-30.
DAY = "day"
# The figure of a day that names the outputs whose labels follow the answers less than before.
SHIFTED = "shifted"
# The figure of a day that was joined again: the reading of the logs by which it was.
JOINED_AGAIN = "joined_again"
BEFORE, AFTER = "before", "after"


def labels_entry(
    time: datetime, before: Labels, after: Labels, who: str, reasons: Sequence[str] = (), decision: str = CHANGED
) -> Entry:
    """The entry of a change of labels: what stood before, what stands now, and who changed it."""
    versions = {BEFORE: before.document(), AFTER: after.document()}
    return Entry(time=time, step=LABELS, decision=decision, reasons=tuple(reasons), versions=versions, who=who)


def day_of(entry: Entry) -> date | None:
    """The day that an entry is about."""
    try:
        return date.fromisoformat(str(entry.figures.get(DAY)))
    except ValueError:
        return None


@dataclass(frozen=True)
class Decisions:
    """Everything that was decided about a model."""

    entries: tuple[Entry, ...] = ()

    @property
    def paused(self) -> Entry | None:
        """The pause of the daily job, None where it goes on."""
        last = self.last(DAILY, PAUSE, RESUME)
        return last if last is not None and last.decision == PAUSE else None

    @property
    def gates(self) -> dict[date, Entry]:
        """The last decision of the data gate on each day."""
        entries = (entry for entry in self.entries if entry.step == DATA_GATE)
        return {day: entry for entry in entries if (day := day_of(entry)) is not None}

    @property
    def quarantined(self) -> dict[date, Entry]:
        """Days that are left out of every window, each with the entry that says why."""
        return {day: entry for day, entry in sorted(self.gates.items()) if entry.decision == QUARANTINE}

    def shifted_before(self, day: date) -> date | None:
        """The newest accepted day before a day since which users like other things, None where none is known."""
        shifted = [
            gated for gated, entry in self.gates.items() if entry.decision == ACCEPT and entry.figures.get(SHIFTED)
        ]
        return max((gated for gated in shifted if gated < day), default=None)

    @property
    def withdrawn(self) -> frozenset[str]:
        """Versions that were withdrawn as canary, but for those that somebody made stable since."""
        withdrawn: set[str] = set()
        for entry in self.entries:
            if entry.step == JUDGE and entry.decision == WITHDRAW:
                withdrawn.add(str(entry.versions.get(CANARY)))
            elif entry.step == LABELS:
                withdrawn.discard(_stable(entry, AFTER) or "")
        return frozenset(withdrawn)

    def last(self, step: str, *decisions: str) -> Entry | None:
        """The newest entry of a step, with one of some decisions where they are given."""
        found = (e for e in reversed(self.entries) if e.step == step and (not decisions or e.decision in decisions))
        return next(found, None)

    def stable_since(self, time: datetime) -> list[str]:
        """Versions that were pinned at some moment since a time, in the order of their pins."""
        stable: list[str | None] = []
        for entry in (entry for entry in self.entries if entry.step == LABELS):
            after = _stable(entry, AFTER)
            stable = [after] if entry.time < time else [*stable, _stable(entry, BEFORE), after]
        return list(dict.fromkeys(version for version in stable if version is not None))

    def canary_since(self, version: str) -> datetime | None:
        """The time since which a version is the canary by the labels' entries. None where none says so."""
        since = None
        for entry in (entry for entry in self.entries if entry.step == LABELS):
            if _canary(entry, AFTER) != version:
                since = None
            elif since is None:
                since = entry.time
        return since

    def stable_beside(self, canary: str) -> list[str]:
        """Versions that were pinned since a version is the canary, in the order of their pins. Entries of one night
        have one time, so their order tells what came before."""
        stable: list[str | None] = []
        for entry in (entry for entry in self.entries if entry.step == LABELS):
            stable = [*stable, _stable(entry, AFTER)] if _canary(entry, AFTER) == canary else []
        return list(dict.fromkeys(version for version in stable if version is not None))

    def shares_of(self, version: str) -> frozenset[float]:
        """Shares that a version has had since it is the canary."""
        shares: set[float] = set()
        for entry in (entry for entry in self.entries if entry.step == LABELS):
            canary = _canary(entry, AFTER)
            share = entry.versions[AFTER][CANARY].get("share") if canary == version else None
            shares = {*shares, float(share)} if isinstance(share, int | float) else set()
        return frozenset(shares)

    def unapplied(self) -> Entry | None:
        """A judge's promotion or withdrawal after which no label was changed: its job was killed between the two."""
        for entry in reversed(self.entries):
            if entry.step == LABELS:
                return None
            if entry.step == JUDGE and entry.decision in (PROMOTE, WITHDRAW):
                return entry
        return None

    def unlabelled(self) -> Entry | None:
        """A publication that a label was meant for, after which none was changed."""
        for entry in reversed(self.entries):
            if entry.step == LABELS:
                return None
            if entry.step == EXPORT:
                return entry if entry.versions.get("label") in (STABLE, CANARY, SHADOW) else None
        return None

    def labels(self) -> Mapping[str, Any] | None:
        """The labels that the last entry about them has. None without one."""
        last = self.last(LABELS)
        after = None if last is None else last.versions.get(AFTER)
        return after if isinstance(after, Mapping) else None


def _stable(entry: Entry, when: str) -> str | None:
    labels = entry.versions.get(when)
    stable = labels.get(STABLE) if isinstance(labels, Mapping) else None
    return None if stable is None else str(stable)


def _canary(entry: Entry, when: str) -> str | None:
    labels = entry.versions.get(when)
    canary = labels.get(CANARY) if isinstance(labels, Mapping) else None
    return str(canary.get("version")) if isinstance(canary, Mapping) else None
