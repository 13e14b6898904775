"""Nights of a cycle on a feed that goes on: what is trained from what, what is refused, and what is left alone."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from model.artifact.artifact import Artifact
from model.rollout.decisions import DAILY, DATA_GATE, EXPORT, FAIL, QUALITY_GATE, QUARANTINE, REFUSE, TRAIN
from model.rollout.labels import FILE_NAME, Labels
from tests.deploy.programs import ROOT
from tests.training.daily.nights import ROWS, Feed, as_is, day, inverted, night, of_other_tastes
from training.__main__ import main
from training.daily.cycle import AlreadyRunningError, alone
from training.run.run import Run

FIRST = 3  # three days train, the fourth validates
BAD = 5


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    """Four nights, the third after a day of inverted clicks."""
    made = Feed(tmp_path_factory.mktemp("feed"))
    made.write_files()
    for number in range(FIRST + 4):
        made.write_day(number, inverted if number == BAD else as_is)
        if number >= FIRST:
            made.run_night(number)
    return made


def run_of(feed: Feed, version: int) -> Run:
    return Run.open(feed.folder / "runs" / Artifact.open(feed.models / str(version)).manifest.training["run"])


def test_the_first_version_starts_cold_and_serves(feed: Feed) -> None:
    run = run_of(feed, 1)
    assert run.config.init_from is None
    windows = run.config.data.bounds
    assert windows.train.model_dump() == {"min": 20261101, "max": 20261103}  # type: ignore[union-attr]
    assert windows.validation == windows.test
    first = [entry for entry in feed.entries if entry.time == night(FIRST)]
    assert [entry.step for entry in first] == [
        *["data_gate"] * 4, "train", "quality_gate", "export", "labels", "daily",
    ]  # fmt: skip
    assert first[-2].versions["after"] == {"stable": "1"}
    # Each day's entry names the file that it read.
    assert list(first[0].inputs) == ["date=20261101/rows.parquet"]


def test_the_next_night_starts_from_what_serves_on_the_day_after_its_window_alone(feed: Feed) -> None:
    run = run_of(feed, 2)
    assert run.config.init_from is not None
    assert run.config.init_from.path == feed.models / "1"
    assert run.config.data.bounds.train.model_dump() == {"min": 20261104, "max": 20261104}  # type: ignore[union-attr]
    assert Artifact.open(feed.models / "2").manifest.training["parent"]["version"] == 1
    gate = next(entry for entry in feed.entries if entry.step == QUALITY_GATE and entry.time == night(FIRST + 1))
    assert gate.versions["champions"] == ["1"]


def test_a_day_of_inverted_labels_is_quarantined_and_in_no_window(feed: Feed) -> None:
    assert list(feed.decisions.quarantined) == [day(BAD)]
    entry = feed.decisions.quarantined[day(BAD)]
    assert any("labels go against the serving version's answers" in reason for reason in entry.reasons)
    ended = [entry for entry in feed.entries if entry.step == DAILY and entry.time == night(BAD)]
    assert "the data window has not moved" in ended[0].reasons[0]
    after = run_of(feed, 3).config.data.bounds
    assert (after.train.min, after.train.max) == (20261105, 20261106)  # type: ignore[union-attr]
    assert after.left_out == (20261106,)  # type: ignore[attr-defined]
    assert feed.versions() == [1, 2, 3]
    assert feed.labels == Labels(stable=3)


def test_days_since_a_shift_are_learned_from_fresh_weights(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    feed.write_files(quality_gate={"max_worse": 0.9})
    ended = []
    for number in range(FIRST + 4):
        # Enough rows that the shift is sure.
        feed.write_day(number, of_other_tastes if number >= FIRST + 2 else as_is, rows=4 * ROWS)
        ended += [feed.run_night(number)] if number >= FIRST else []
    [first, second, shifted, after] = ended
    assert "published" in first
    assert "published" in second
    assert (
        shifted
        == f"users like other things since {day(FIRST + 2)}, and no day after it is there to choose a version by"
    )
    gate = feed.decisions.gates[day(FIRST + 2)]
    assert (gate.decision, bool(gate.figures["shifted"])) == ("accept", True)
    trained = next(entry for entry in reversed(feed.entries) if entry.step == TRAIN)
    assert trained.figures["start"] == "cold"
    assert trained.reasons[0].endswith(f"trains on 1 day from {day(FIRST + 2)} to {day(FIRST + 2)}"), after


def test_a_challenger_is_gated_against_every_version_that_was_stable_lately(feed: Feed) -> None:
    gate = [entry for entry in feed.entries if entry.step == QUALITY_GATE][-1]
    assert set(gate.versions["champions"]) == {"1", "2", "3"} - {"3"}
    assert set(gate.figures["against"]) == {"1", "2"}


def test_the_same_night_again_does_nothing(feed: Feed) -> None:
    before = [entry for entry in feed.entries if entry.step != DAILY]
    assert "the data window has not moved" in feed.run_night(FIRST + 3)
    assert [entry for entry in feed.entries if entry.step != DAILY] == before
    assert feed.versions() == [1, 2, 3]


def test_a_roll_back_stays_and_the_next_night_starts_from_what_is_pinned(feed: Feed) -> None:
    (feed.models / FILE_NAME).write_text("stable: 1")
    feed.write_day(FIRST + 4)
    assert feed.run_night(FIRST + 4) == f"version 4 was published for {day(FIRST + 4)}"
    run = run_of(feed, 4)
    assert run.config.init_from is not None
    assert run.config.init_from.path == feed.models / "1"
    found = next(entry for entry in feed.entries if entry.step == "labels" and entry.decision == "found")
    assert (found.versions["before"], found.versions["after"]) == ({"stable": "3"}, {"stable": "1"})


def test_a_released_day_is_in_windows_again(feed: Feed, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["daily", str(feed.file), "--release", str(day(1))]) == 2
    assert f"days that are: {day(BAD)}" in capsys.readouterr().err
    assert main(["daily", str(feed.file), "--release", str(day(BAD))]) == 0
    assert feed.decisions.quarantined == {}


def test_a_night_that_is_refused_leaves_nothing_behind_and_is_not_repeated(feed: Feed) -> None:
    published, labels = feed.versions(), feed.labels
    feed.write_files(quality_gate={"max_worse": 0.0001})
    feed.write_day(FIRST + 5)
    assert "refused" in feed.run_night(FIRST + 5)
    gate = feed.decisions.last(QUALITY_GATE)
    assert gate is not None
    assert gate.decision == REFUSE
    assert any("it would take about" in reason or "may be" in reason for reason in gate.reasons)
    assert feed.versions() == published
    assert feed.labels == labels
    assert not list(feed.models.glob(".publishing-*"))
    assert "the data window has not moved" in feed.run_night(FIRST + 5)
    assert sum(entry.step == QUALITY_GATE for entry in feed.entries) == len(published) + 1


def test_a_shadow_is_labelled_beside_what_is_pinned(feed: Feed) -> None:
    feed.write_files(publish={"label": "shadow"})
    (feed.models / FILE_NAME).write_text("{}")
    feed.write_day(FIRST + 6)
    feed.run_night(FIRST + 6)
    # Without a pin the newest would be served at once: what served is pinned first.
    assert feed.labels == Labels(stable=4, shadow=5)


def test_a_pause_joins_alone_and_a_second_job_ends(feed: Feed, capsys: pytest.CaptureFixture[str]) -> None:
    feed.write_day(FIRST + 7)
    command = ["daily", str(feed.file), "--now", night(FIRST + 7).isoformat()]
    assert main([*command, "--pause"]) == 0
    assert main([*command, "--pause"]) == 2
    before = len([entry for entry in feed.entries if entry.step != DAILY])
    capsys.readouterr()
    assert main(command) == 0
    assert "paused since 2026-11-12 02:30 UTC" in capsys.readouterr().out
    assert main(["judge", str(feed.file)]) == 0
    assert "paused since" in capsys.readouterr().out
    assert len([entry for entry in feed.entries if entry.step != DAILY]) == before
    assert main([*command, "--resume"]) == 0
    assert main([*command, "--resume"]) == 2
    misspelled = feed.folder / "misspelled.yaml"
    misspelled.write_text(feed.file.read_text().replace("model: clips", "model: clisp"))
    assert main(["daily", str(misspelled), "--pause"]) == 2
    assert "models/clisp: there is no model of this name, so nothing is to be paused" in capsys.readouterr().err
    assert main(["judge", str(misspelled)]) == 0
    assert "no canary waits" in capsys.readouterr().out
    assert not feed.models.with_name("clisp").exists()
    with alone(feed.models):
        capsys.readouterr()
        # Not 0: whoever began it tries again, so that a judge at work costs no night.
        assert main(command) == 2
        assert "another job works on this model; nothing was done" in capsys.readouterr().err
        with pytest.raises(AlreadyRunningError), alone(feed.models):
            pass


def test_days_without_rows_or_with_one_class_are_quarantined_in_words(feed: Feed) -> None:
    feed.write_day(FIRST + 7, lambda table: table.slice(0, 0))
    feed.write_day(FIRST + 8, lambda table: table.filter(table.column("is_click").to_numpy() > 0))
    feed.write_day(FIRST + 9)
    feed.run_night(FIRST + 9)
    quarantined = feed.decisions.quarantined
    assert quarantined[day(FIRST + 7)].reasons == ("no row is of this day",)
    assert any("click: its labels' mean is" in reason for reason in quarantined[day(FIRST + 8)].reasons)


def test_a_feed_whose_days_are_all_quarantined_says_so_and_waits(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    feed.write_files(data_gate={"min_rows": ROWS + 1})
    for number in range(2):
        feed.write_day(number)
    said = f"no day to train on: every whole day is quarantined ({day(0)}, {day(1)})"
    assert feed.run_night(1).startswith(said)
    assert feed.versions() == []


def test_a_file_that_lacks_a_column_fails_the_night_by_its_name(feed: Feed) -> None:
    feed.write_day(FIRST + 10, lambda table: table.drop_columns(["watch_ms"]))
    before = feed.versions()
    with pytest.raises(ValueError, match=r"date=20261114/rows.parquet.*watch_ms"):
        feed.run_night(FIRST + 10)
    last = feed.decisions.last(DAILY)
    assert last is not None
    assert last.decision == FAIL
    assert "watch_ms" in last.reasons[0]
    assert feed.versions() == before
    # Fixed, the night goes on.
    feed.write_day(FIRST + 10)
    assert "was published" in feed.run_night(FIRST + 10)


def test_the_command_says_how_a_night_ended(feed: Feed) -> None:
    command = [sys.executable, "-m", "training", "daily", str(feed.file), "--now", night(FIRST + 10).isoformat()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "the data window has not moved" in done.stdout


def test_every_entry_of_a_step_is_by_the_job(feed: Feed) -> None:
    steps = (DATA_GATE, TRAIN, QUALITY_GATE, EXPORT)
    assert {entry.who for entry in feed.entries if entry.step in steps and entry.decision != "release"} == {"daily"}
    assert {entry.decision for entry in feed.entries if entry.step == DATA_GATE} == {"accept", QUARANTINE, "release"}
    assert timedelta(0) < feed.entries[-1].time - feed.entries[0].time
    assert Path(feed.models / "journal.jsonl").stat().st_size > 0
