"""A day that is joined again: gated again once, with the versions that were trained on it as it was."""

import logging
from pathlib import Path

import pytest

from model.rollout.decisions import ACCEPT, DATA_GATE, QUARANTINE, RELEASE, day_of
from model.rollout.journal import Entry
from tests.training.daily.joined_nights import HOUR, JoinedFeed
from tests.training.daily.nights import day, night
from training.__main__ import main
from training.join.join import Settings, join
from training.join.plan import Plan, hours_given

FIRST = 3
# Of the second day, on which the first version is trained.
LATE = 1


def entries_on(feed: JoinedFeed, number: int) -> list[Entry]:
    return [entry for entry in feed.entries if entry.step == DATA_GATE and day_of(entry) == day(number)]


def test_a_day_that_is_joined_again_is_gated_again_and_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    feed = JoinedFeed(tmp_path / "feed")
    feed.folder.mkdir()
    feed.write_files()
    for number in range(FIRST + 1):
        feed.write_logs(number)
    feed.run_night(FIRST)
    assert [entry.decision for entry in entries_on(feed, LATE)] == [ACCEPT]

    # A writer comes back with events that say of every row that it was clicked.
    events = feed.folder / "events" / f"events-{LATE}.jsonl"
    shown = [line for line in events.read_text().splitlines() if '"type": "shown"' in line]
    clicks = [line.replace("shown", "click") for line in shown]
    (feed.folder / "events" / "events-late.jsonl").write_text("\n".join(clicks) + "\n")
    plan = Plan.load(feed.folder / "join.yaml")
    hours = hours_given(f"{day(LATE):%Y%m%d}T00..{day(LATE):%Y%m%d}T22", "--rejoin")
    join(plan, Settings(now=night(FIRST), until=night(FIRST) - HOUR, rejoin=hours))

    feed.write_files(publish={"label": "stable"}, judge=None)
    with caplog.at_level(logging.WARNING):
        feed.run_night(FIRST)
    first, again = entries_on(feed, LATE)
    assert (first.decision, again.decision) == (ACCEPT, QUARANTINE)
    assert again.figures["trained_on_before"] == ["1"]
    assert any("click: its labels' mean is" in reason for reason in again.reasons)
    assert f"{day(LATE)} was joined again and is gated once more; versions trained on it as it was: 1" in caplog.text
    assert [entry.decision for number in (0, 2, 3) for entry in entries_on(feed, number)] == [ACCEPT] * 3

    feed.run_night(FIRST)
    assert len(entries_on(feed, LATE)) == 2
    assert main(["daily", str(feed.file), "--release", str(day(LATE))]) == 0
    feed.run_night(FIRST)
    assert [entry.decision for entry in entries_on(feed, LATE)] == [ACCEPT, QUARANTINE, RELEASE]
