"""The judge's step: verdicts become labels, once, and never over what somebody else has changed meanwhile."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from model.rollout.decisions import JUDGE, LABELS, PROMOTE, WAIT, WITHDRAW, Decisions, labels_entry
from model.rollout.journal import Journal
from model.rollout.labels import FILE_NAME, Labels, LabelsFile
from tests.artifacts import TINY_SCHEMA, publish_artifact
from tests.training.judge.joined_feed import START as JOINED
from tests.training.judge.joined_feed import Row, write_hours
from tests.training_data import training_file
from training.daily import judging
from training.daily.cycle import run_judge
from training.daily.cycle_file import Cycle
from training.daily.judging import judge_waiting
from training.judge.verdict import Decision, Verdict

START = datetime(2026, 11, 20, 2, 30, tzinfo=UTC)
BOTH = Labels.model_validate({"stable": 1, "canary": {"version": 2, "share": 0.5}})


@pytest.fixture
def cycle(tmp_path: Path) -> Cycle:
    """A cycle whose model has two versions, the second of which is the canary since START."""
    for seed in (0, 1):
        publish_artifact(tmp_path / "models", seed=seed)
    windows = {"column": "date", "end": "latest", "train": {"days": 3}, "validation": {"days": 1}}
    data = {"path": str(tmp_path / "joined"), "split": windows, "group_by": "user_id"}
    train = training_file(tmp_path, schema=yaml.safe_dump(TINY_SCHEMA), data=data)
    join = {
        "schema": str(tmp_path / "schema.yaml"),
        "impressions": "impressions",
        "events": "events",
        "out": str(tmp_path / "joined"),
        "labels": {"is_click": {"event": "click"}},
    }
    (tmp_path / "join.yaml").write_text(yaml.safe_dump(join))
    content = {
        "models": str(tmp_path / "models"),
        "model": "tiny",
        "train": str(train),
        "join": str(tmp_path / "join.yaml"),
        "judge": {"horizon": "4h", "at_most": "2d", "realised": {"click": 1.0}},
    }
    (tmp_path / "daily.yaml").write_text(yaml.safe_dump(content))
    made = Cycle.load(tmp_path / "daily.yaml")
    put(made, BOTH)
    Journal(made.folder).append(labels_entry(START, Labels(stable=1), BOTH, "daily"))
    return made


def put(cycle: Cycle, labels: Labels) -> None:
    LabelsFile(cycle.folder / FILE_NAME).write(labels)


def labels_of(cycle: Cycle) -> Labels:
    file = LabelsFile(cycle.folder / FILE_NAME)
    file.poll()
    return file.last_valid


def decided(cycle: Cycle) -> list[tuple[str, str]]:
    """Steps and decisions since START's."""
    return [(entry.step, entry.decision) for entry in Journal(cycle.folder).read().entries[1:]]


def answer(monkeypatch: pytest.MonkeyPatch, decision: Decision, **figures: Any) -> None:
    """Make every verdict this one."""
    monkeypatch.setattr(judging, "verdict_of", lambda *_: Verdict(decision, (f"so it is: {decision}",), figures))


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


@pytest.mark.parametrize(
    ("decision", "after"), [(PROMOTE, Labels(stable=2)), (WITHDRAW, Labels(stable=1)), (WAIT, BOTH)]
)
def test_labels_follow_the_verdict(
    cycle: Cycle, monkeypatch: pytest.MonkeyPatch, decision: Decision, after: Labels
) -> None:
    answer(monkeypatch, decision, users=7)
    waits = judge_waiting(cycle, Journal(cycle.folder), at(3))
    assert (waits is not None) == (decision == WAIT)
    assert labels_of(cycle) == after
    verdict = Journal(cycle.folder).read().entries[1]
    assert (verdict.step, verdict.decision) == (JUDGE, decision)
    assert verdict.figures == {"users": 7, "share": 0.5}
    assert verdict.versions == {"stable": "1", "canary": "2"}
    assert decided(cycle)[1:] == ([] if decision == WAIT else [(LABELS, "change")])
    # Nothing waits any more, and nothing is decided twice.
    assert judge_waiting(cycle, Journal(cycle.folder), at(4)) == waits
    assert len(decided(cycle)) == 2


@pytest.mark.parametrize(("decision", "after"), [(PROMOTE, BOTH), (WITHDRAW, Labels(stable=1)), (WAIT, BOTH)])
def test_the_judge_alone_withdraws_and_the_night_promotes(
    cycle: Cycle, monkeypatch: pytest.MonkeyPatch, decision: Decision, after: Labels
) -> None:
    """The day that users are judged by has not been gated yet: its labels may be inverted."""
    answer(monkeypatch, decision, users=7)
    run_judge(cycle, at(3))
    assert labels_of(cycle) == after
    last = [entry for entry in Journal(cycle.folder).read().entries if entry.step == JUDGE][-1]
    assert last.decision == (WITHDRAW if decision == WITHDRAW else WAIT)
    assert ("the night does that" in last.reasons[0]) == (decision == PROMOTE)
    assert (judge_waiting(cycle, Journal(cycle.folder), at(4)) is None) == (decision != WAIT)
    assert labels_of(cycle) == (Labels(stable=2) if decision == PROMOTE else after)


def test_damaged_lines_of_the_journal_are_said(
    cycle: Cycle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer(monkeypatch, WAIT)
    journal = Journal(cycle.folder).path
    journal.write_text("{not an entry}\n" + journal.read_text())
    run_judge(cycle, at(3))
    assert f"damaged lines of the journal count for nothing: 1; the first: {journal}: line 1" in caplog.text


@pytest.mark.parametrize(("on_timeout", "stable"), [(WITHDRAW, 1), (PROMOTE, 2)])
def test_a_canary_that_nobody_can_decide_on_ends_as_the_file_says(
    cycle: Cycle, monkeypatch: pytest.MonkeyPatch, on_timeout: str, stable: int
) -> None:
    content = yaml.safe_load(cycle.path.read_text())
    content["judge"]["on_timeout"] = on_timeout
    cycle.path.write_text(yaml.safe_dump(content))
    cycle = Cycle.load(cycle.path)
    answer(monkeypatch, WAIT)
    assert judge_waiting(cycle, Journal(cycle.folder), at(48)) is not None
    assert judge_waiting(cycle, Journal(cycle.folder), at(48.1)) is None
    assert labels_of(cycle) == Labels(stable=stable)
    assert "no decision within at_most" in Journal(cycle.folder).read().entries[-2].reasons[0]


def test_a_pin_on_another_version_withdraws_the_canary_that_waits(
    cycle: Cycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever rolls back stays there: a promotion would be on evidence against what was rolled back."""
    publish_artifact(cycle.file.models, seed=2)
    put(cycle, Labels.model_validate({"stable": 3, "canary": {"version": 2, "share": 0.5}}))
    answer(monkeypatch, PROMOTE)
    assert judge_waiting(cycle, Journal(cycle.folder), at(3)) is None
    assert labels_of(cycle) == Labels(stable=3)
    assert decided(cycle) == [(LABELS, "found"), (JUDGE, WITHDRAW), (LABELS, "change")]
    assert "stable was moved to version 3" in Journal(cycle.folder).read().entries[2].reasons[0]


def test_a_canary_of_the_night_of_a_promotion_is_judged_beside_what_was_promoted(
    cycle: Cycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night's entries have one time: what was promoted before the canary was set is no change of its question."""
    publish_artifact(cycle.file.models, seed=2)
    answer(monkeypatch, PROMOTE)
    assert judge_waiting(cycle, Journal(cycle.folder), at(3)) is None
    promoted, further = Labels(stable=2), Labels.model_validate({"stable": 2, "canary": {"version": 3, "share": 0.5}})
    assert labels_of(cycle) == promoted
    put(cycle, further)
    Journal(cycle.folder).append(labels_entry(at(3), promoted, further, "daily"))
    answer(monkeypatch, WAIT)
    assert "waits" in (judge_waiting(cycle, Journal(cycle.folder), at(27)) or "")
    assert labels_of(cycle) == further


def test_labels_that_are_changed_while_the_judge_writes_stay(cycle: Cycle, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand = Labels.model_validate({"stable": 1, "shadow": 2})

    def verdict_of(*_: object) -> Verdict:
        put(cycle, by_hand)  # after the labels were read
        return Verdict(PROMOTE, ("so it is",))

    monkeypatch.setattr(judging, "verdict_of", verdict_of)
    judge_waiting(cycle, Journal(cycle.folder), at(3))
    assert labels_of(cycle) == by_hand
    # And the next look does not apply the verdict either.
    judge_waiting(cycle, Journal(cycle.folder), at(4))
    assert labels_of(cycle) == by_hand
    assert decided(cycle) == [(JUDGE, PROMOTE), (LABELS, "found")]


def test_a_job_that_was_killed_before_the_labels_followed_goes_on(
    cycle: Cycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    answer(monkeypatch, WITHDRAW)
    monkeypatch.setattr(judging, "change_labels", killed)
    with pytest.raises(KeyboardInterrupt):
        judge_waiting(cycle, Journal(cycle.folder), at(3))
    monkeypatch.undo()
    assert labels_of(cycle) == BOTH
    answer(monkeypatch, PROMOTE)  # the verdict that was entered counts
    assert judge_waiting(cycle, Journal(cycle.folder), at(4)) is None
    assert labels_of(cycle) == Labels(stable=1)
    assert decided(cycle) == [(JUDGE, WITHDRAW), (LABELS, "change")]
    assert Decisions(Journal(cycle.folder).read().entries).withdrawn == {"2"}


def test_a_share_that_was_changed_is_no_share_to_compare_arms_by(cycle: Cycle, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[object] = []

    def verdict_of(*given: object) -> Verdict:
        shares.append(given[3])
        return Verdict(WAIT, ())

    monkeypatch.setattr(judging, "verdict_of", verdict_of)
    judge_waiting(cycle, Journal(cycle.folder), at(3))
    put(cycle, Labels.model_validate({"stable": 1, "canary": {"version": 2, "share": 0.2}}))
    judge_waiting(cycle, Journal(cycle.folder), at(4))
    assert shares == [0.5, None]


@pytest.mark.parametrize(("lift", "stable"), [(0.4, 1), (1.6, 2)])
def test_joined_rows_decide_on_a_canary_that_somebody_labelled_by_hand(cycle: Cycle, lift: float, stable: int) -> None:
    """Half of 600 users see the canary, under which clicks are `lift` times as frequent."""
    rng = np.random.default_rng(5)
    rows: list[Row] = []
    for user in range(600):
        is_canary = user % 2 == 0
        for _ in range(8):
            rate = 0.3 * (lift if is_canary else 1.0)
            row = {"_request_id": f"r{len(rows)}", "_time": JOINED + timedelta(hours=rng.uniform(1.5, 5)),
                   "_model_version": "2" if is_canary else "1", "_user": f"u{user}", "_weight": 1.0,
                   "is_click": int(rng.random() < rate), "_answer_click": rate}  # fmt: skip
            rows.append(row)
    folder = cycle.folder.parents[1] / "joined"
    write_hours(folder, rows, hours=1)
    journal = Journal(cycle.folder)
    journal.path.unlink()
    # The labels' file alone says that there is a canary: since when, the job finds out at its first look.
    assert judge_waiting(cycle, journal, JOINED + timedelta(hours=1)) is not None
    write_hours(folder, rows, hours=12)
    assert judge_waiting(cycle, journal, JOINED + timedelta(hours=12)) is None
    assert labels_of(cycle) == Labels(stable=stable)
    verdict = journal.read().entries[-2]
    assert verdict.figures["exposed"] == {"canary": 300, "stable": 300}
