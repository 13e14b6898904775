"""The plan of a night: the day that validates, the days to train on, and from what weights.

In: the days of the data, the journal's decisions, the version that serves. Out: a `Plan` with its training file, or the
reason why there is nothing to train. The plan follows from these alone, so that a job that was killed makes the same
plan again, finds its run by name and resumes it.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import xxhash

from model.rollout.decisions import EXPORT, QUALITY_GATE, REFUSE, TRAIN, Decisions, day_of
from training.config import DataConfig, InitFrom, TrainingConfig
from training.daily.cycle_file import Cycle
from training.daily.serving import Champion
from training.split_config import DayCount
from training.wording import counted

COLD, WARM = "cold", "warm"
DAY = timedelta(days=1)
_WEEK = 7 * DAY
# The quality gate decides by its users, so a worse validation error than the parent's refuses nothing before it.
_NO_GUARD = 1e9


@dataclass(frozen=True)
class Plan:
    """One night's training. `day` is the newest day: half of its users choose and calibrate, the other half gate."""

    day: date
    start: Literal["cold", "warm"]
    config: TrainingConfig
    reason: str

    @property
    def run(self) -> str:
        """Name of the run: equal plans have one, and others do not."""
        return self.config.output.name


def plan_of(
    cycle: Cycle, newest: date, with_rows: Collection[date], decisions: Decisions, champion: Champion | None
) -> Plan | str:
    """The plan for data whose newest day is `newest`, or the reason why there is none. `with_rows` are days that have
    rows."""
    moved = _moved(newest, decisions, champion)
    if moved is not None:
        return moved
    first = newest - cycle.windows.train.days * DAY
    since = decisions.shifted_before(newest + DAY)
    if since is not None and since >= first:  # what users liked before would be learned for nothing
        first = since
    else:
        since = None
    start, reason = _start(cycle, newest, decisions, champion, since)
    if start is None:
        return reason
    if start == WARM:
        assert champion is not None
        assert champion.last_trained is not None
        first = max(first, champion.last_trained + DAY)
    excluded = tuple(day for day in decisions.quarantined if first <= day < newest)
    days = (newest - first).days
    trained = [day for day in with_rows if first <= day < newest and day not in excluded]
    if not trained:
        if since == newest:
            return f"users like other things since {since}, and no day after it is there to choose a version by"
        return f"no day to train on: from {first} to {newest - DAY} no day has rows, or it is quarantined"
    windows = cycle.windows.model_copy(
        update={"end": newest, "train": DayCount(days=days), "exclude": excluded, "halve_validation": True}
    )
    data: DataConfig = cycle.training.data.model_copy(update={"split": windows})
    parent = None
    if start == WARM:
        assert champion is not None
        parent = InitFrom(path=champion.path, tolerance=_NO_GUARD, rate_factor=cycle.file.start.rate_factor)
    config = cycle.training.model_copy(update={"data": data, "init_from": parent})
    config = config.model_copy(update={"output": cycle.training.output / _run_name(config, newest, start)})
    return Plan(
        newest,
        start,
        config,
        f"{reason}; trains on {counted(len(trained), 'day')} from {min(trained)} to {max(trained)}",
    )


def _moved(newest: date, decisions: Decisions, champion: Champion | None) -> str | None:
    """The reason why the newest day is none that a version could be made of, None where it is one."""
    done = [
        day
        for entry in decisions.entries
        if entry.step == EXPORT or (entry.step == QUALITY_GATE and entry.decision == REFUSE)
        if (day := day_of(entry)) is not None
    ]
    seen = None if champion is None else champion.last_seen
    last = max([*done, *([] if seen is None else [seen])], default=None)
    if last is not None and newest <= last:
        held = ", ".join(str(day) for day in decisions.quarantined if day > newest)
        return f"the data window has not moved: {newest} was trained on before" + (
            f" (quarantined: {held})" if held else ""
        )
    return None


def _start(
    cycle: Cycle, newest: date, decisions: Decisions, champion: Champion | None, since: date | None
) -> tuple[Literal["cold", "warm"] | None, str]:
    """From what weights, with the reason. None where the file leaves no start. `since` is the day since which users
    like other things than before, where the window has it: a version that knows none of the days from it on has weights
    that would have to be unlearned."""
    start = cycle.file.start
    if champion is None:
        return "cold", "nothing serves yet, so that it starts from fresh weights"
    if champion.last_trained is None:
        if start.cold == "never":
            return None, f"version {champion.version} says of no day that it was trained on it, and cold is never"
        return "cold", f"version {champion.version} says of no day that it was trained on it: fresh weights"
    if champion.last_trained + DAY >= newest:
        return None, f"version {champion.version} was trained on every day before {newest}"
    if since is not None and champion.last_trained < since and start.cold != "never":
        return "cold", f"fresh weights, for users like other things since {since}"
    last_cold = _last_cold(decisions, champion)
    is_due = start.cold == "daily" or (start.cold == "weekly" and (last_cold is None or newest - last_cold >= _WEEK))
    if start.warm == "never" or is_due:
        if not is_due:
            return None, f"the last cold start was for {last_cold}, and warm is never"
        return "cold", "fresh weights" + ("" if last_cold is None else f", the last such start was for {last_cold}")
    return "warm", f"from version {champion.version}, which serves"


def _last_cold(decisions: Decisions, champion: Champion) -> date | None:
    """The newest day for which a run began from fresh weights. Where the cycle went on from a version that it did not
    make, this counts from its first night."""
    trained = [
        (day, entry) for entry in decisions.entries if entry.step == TRAIN and (day := day_of(entry)) is not None
    ]
    cold = [day for day, entry in trained if entry.figures.get("start") == COLD]
    if cold:
        return cold[-1]
    return champion.last_seen if champion.is_cold else next((day for day, _ in trained), None)


def _run_name(config: TrainingConfig, newest: date, start: str) -> str:
    content = config.model_dump(mode="json", by_alias=True, exclude={"output"})
    digest = xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())
    return f"{newest:%Y%m%d}-{start}-{digest[:8]}"
