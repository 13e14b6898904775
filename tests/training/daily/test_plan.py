"""The plan of a night: which days, from what weights, and when there is none."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from model.rollout.decisions import ACCEPT, DATA_GATE, EXPORT, QUALITY_GATE, QUARANTINE, REFUSE, TRAIN, Decisions
from model.rollout.journal import Entry
from tests.training.daily.nights import Feed
from training.daily.cycle_file import Cycle
from training.daily.plan import Plan, plan_of
from training.daily.serving import Champion
from training.split_config import MovingWindows

DAY = date(2026, 11, 20)
ONE = timedelta(days=1)
EVERY = [DAY - back * ONE for back in range(40)]


@dataclass
class Version:
    """Answers of the version that serves to a plan."""

    last_trained: date | None
    last_seen: date | None
    is_cold: bool = False
    version: int = 7
    path: Path = Path("models/clips/7")


def served(trained: date | None, seen: date | None, *, is_cold: bool = False) -> Champion:
    return cast("Champion", Version(trained, seen, is_cold))


def entry(step: str, decision: str, day: date, **figures: Any) -> Entry:
    time = datetime(2026, 11, 1, tzinfo=UTC)
    return Entry(time=time, step=step, decision=decision, figures={"day": str(day), **figures}, who="daily")


@pytest.fixture
def cycle(tmp_path: Path) -> Cycle:
    """Three days train, one validates."""
    return cycle_with(tmp_path)


def cycle_with(folder: Path, **changes: Any) -> Cycle:
    feed = Feed(folder)
    feed.write_files(**changes)
    return Cycle.load(feed.file)


def windows(plan: Plan | str) -> MovingWindows:
    assert isinstance(plan, Plan), plan
    assert isinstance(plan.config.data.split, MovingWindows)
    return plan.config.data.split


COLD_LATELY = entry(TRAIN, "finish", DAY - 6 * ONE, start="cold")
COLD_LONG_AGO = entry(TRAIN, "finish", DAY - 7 * ONE, start="cold")


def test_a_warm_start_takes_the_days_after_what_serves_was_trained_on(cycle: Cycle) -> None:
    champion = served(DAY - 3 * ONE, DAY - 2 * ONE)
    plan = plan_of(cycle, DAY, EVERY, Decisions((COLD_LATELY,)), champion)
    assert windows(plan).train.days == 2
    assert windows(plan).end == DAY
    assert windows(plan).halve_validation
    assert isinstance(plan, Plan)
    assert plan.start == "warm"
    assert plan.config.init_from is not None
    assert plan.config.init_from.path == champion.path


def test_a_warm_start_after_long_silence_has_no_more_days_than_the_window(cycle: Cycle) -> None:
    plan = plan_of(cycle, DAY, EVERY, Decisions((COLD_LATELY,)), served(DAY - 30 * ONE, DAY - 29 * ONE))
    assert windows(plan).train.days == 3


@pytest.mark.parametrize(
    ("entries", "is_cold", "start"),
    [
        ((COLD_LATELY,), False, "warm"),
        ((COLD_LONG_AGO,), False, "cold"),
        ((COLD_LONG_AGO, COLD_LATELY), False, "warm"),
        # The cycle began a week ago beside a version that it did not make.
        ((entry(TRAIN, "finish", DAY - 7 * ONE, start="warm"),), False, "cold"),
        ((entry(TRAIN, "finish", DAY - 6 * ONE, start="warm"),), False, "warm"),
        # Without an entry the version that serves says how it began.
        ((), True, "warm"),
        ((), False, "cold"),
    ],
)
def test_a_cold_start_is_weekly(cycle: Cycle, entries: tuple[Entry, ...], is_cold: bool, start: str) -> None:
    plan = plan_of(cycle, DAY, EVERY, Decisions(entries), served(DAY - 2 * ONE, DAY - ONE, is_cold=is_cold))
    assert isinstance(plan, Plan)
    assert plan.start == start
    assert (plan.config.init_from is None) == (start == "cold")
    assert windows(plan).train.days == (3 if start == "cold" else 1)


@pytest.mark.parametrize(
    ("shifted", "trained", "start", "days"),
    [
        (2, 3, "cold", 2),  # what serves knows none of the days since the shift
        (2, 2, "warm", 1),  # it knows the first of them
        (4, 5, "warm", 3),  # no window reaches back so far
    ],
)
def test_after_a_shift_windows_begin_with_it(cycle: Cycle, shifted: int, trained: int, start: str, days: int) -> None:
    gated = entry(DATA_GATE, ACCEPT, DAY - shifted * ONE, shifted=["click"])
    older = entry(DATA_GATE, ACCEPT, DAY - 5 * ONE, shifted=["click"])
    champion = served(DAY - trained * ONE, DAY - (trained - 1) * ONE)
    plan = plan_of(cycle, DAY, EVERY, Decisions((COLD_LATELY, older, gated)), champion)
    assert isinstance(plan, Plan)
    assert (plan.start, windows(plan).train.days) == (start, days)


def test_on_the_night_of_a_shift_there_is_nothing_to_train_on(cycle: Cycle) -> None:
    gated = entry(DATA_GATE, ACCEPT, DAY, shifted=["click"])
    champion = served(DAY - 2 * ONE, DAY - ONE)
    found = plan_of(cycle, DAY, EVERY, Decisions((COLD_LATELY, gated)), champion)
    assert found == f"users like other things since {DAY}, and no day after it is there to choose a version by"
    # A day that is left out is no shift, whatever was seen on it.
    poisoned = entry(DATA_GATE, QUARANTINE, DAY - 2 * ONE, shifted=["click"])
    plan = plan_of(cycle, DAY, EVERY, Decisions((COLD_LATELY, poisoned)), served(DAY - 4 * ONE, DAY - 3 * ONE))
    assert isinstance(plan, Plan)
    assert plan.start == "warm"


def test_a_version_that_names_no_day_is_followed_by_a_cold_start(cycle: Cycle) -> None:
    plan = plan_of(cycle, DAY, EVERY, Decisions(), served(None, None))
    assert isinstance(plan, Plan)
    assert (plan.start, windows(plan).train.days) == ("cold", 3)
    assert "says of no day" in plan.reason


@pytest.mark.parametrize(
    "entries",
    [
        (entry(EXPORT, "publish", DAY),),
        (entry(QUALITY_GATE, REFUSE, DAY), COLD_LATELY),
        (entry(EXPORT, "publish", DAY + ONE),),
    ],
)
def test_a_window_that_has_not_moved_gives_no_version(cycle: Cycle, entries: tuple[Entry, ...]) -> None:
    plan = plan_of(cycle, DAY, EVERY, Decisions(entries), served(DAY - 9 * ONE, DAY - 8 * ONE))
    assert isinstance(plan, str)
    assert "the data window has not moved" in plan


def test_what_serves_says_too_that_the_window_has_not_moved(cycle: Cycle) -> None:
    """The journal may be new beside versions that are old."""
    plan = plan_of(cycle, DAY, EVERY, Decisions(), served(DAY - ONE, DAY))
    assert isinstance(plan, str)


def test_quarantined_days_are_left_out_and_equal_plans_have_one_run(cycle: Cycle) -> None:
    quarantine = entry(DATA_GATE, QUARANTINE, DAY - 2 * ONE)
    champion = served(DAY - 4 * ONE, DAY - 3 * ONE)
    plan = plan_of(cycle, DAY, EVERY, Decisions((COLD_LATELY, quarantine)), champion)
    assert windows(plan).exclude == (DAY - 2 * ONE,)
    again = plan_of(cycle, DAY, EVERY, Decisions((COLD_LATELY, quarantine)), champion)
    without = plan_of(cycle, DAY, EVERY, Decisions((COLD_LATELY,)), champion)
    assert isinstance(plan, Plan)
    assert isinstance(again, Plan)
    assert isinstance(without, Plan)
    assert plan.run == again.run != without.run
    assert plan.run.startswith("20261120-warm-")


def test_a_window_of_quarantined_days_alone_is_said(cycle: Cycle) -> None:
    quarantined = tuple(entry(DATA_GATE, QUARANTINE, DAY - back * ONE) for back in (1, 2, 3))
    plan = plan_of(cycle, DAY, EVERY, Decisions(quarantined), None)
    said = f"no day to train on: from {DAY - 3 * ONE} to {DAY - ONE} no day has rows, or it is quarantined"
    assert plan == said
    # The first day of a feed.
    assert plan_of(cycle, DAY, [DAY], Decisions(), None) == said


def test_a_start_that_the_file_forbids_gives_no_version(tmp_path: Path) -> None:
    champion = served(DAY - 2 * ONE, DAY - ONE)
    never_warm = cycle_with(tmp_path, start={"warm": "never"})
    plan = plan_of(never_warm, DAY, EVERY, Decisions((COLD_LATELY,)), champion)
    assert isinstance(plan, str)
    assert "warm is never" in plan
    assert isinstance(plan_of(never_warm, DAY, EVERY, Decisions((COLD_LONG_AGO,)), champion), Plan)
    never_cold = cycle_with(tmp_path, start={"cold": "never"})
    warm = plan_of(never_cold, DAY, EVERY, Decisions((COLD_LONG_AGO,)), champion)
    assert isinstance(warm, Plan)
    assert warm.start == "warm"
    # The first version has nothing to be warm from.
    assert isinstance(plan_of(never_cold, DAY, EVERY, Decisions(), None), Plan)
