"""Users of an experiment: equal to a slow loop over the rows, with all that is left out counted."""

from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from model.schema import FeedSchema
from tests.training.experiment.drawn import AFTER, EPOCH, START, Row, drawn_rows, schema, write_hours
from training.experiment import users as users_module
from training.experiment.question import Question
from training.experiment.users import Users, collect_users

HORIZON = timedelta(hours=24)
REALISED = {"click": 1.0, "play_time": 0.001}
SHARES = {"control": 0.5, "treatment": 0.5}


def question(**changes: object) -> Question:
    given = {
        "name": "bold",
        "epoch": EPOCH,
        "shares": SHARES,
        "start": START,
        "end": None,
        "horizon": HORIZON,
        "realised": REALISED,
        **changes,
    }
    return Question(**given)  # type: ignore[arg-type]


def collected(tmp_path: Path, rows: list[Row], asked: Question, **hours: int) -> Users:
    return collect_users(write_hours(tmp_path / "joined", rows, **hours), FeedSchema.from_yaml(schema(tmp_path)), asked)


def by_loop(rows: list[Row], cap: int) -> dict[str, dict[str, list[float]]]:
    """Values by metric and arm of mature users, sorted, user by user."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    until = START + timedelta(hours=AFTER)
    of_user: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["_user"] is not None:
            of_user[row["_user"]].append(row)
    for theirs in of_user.values():
        within = sorted((row for row in theirs if row["_experiments"]), key=lambda row: row["_time"])
        if not within or within[0]["_time"] > until - HORIZON:
            continue
        exposure = within[0]["_time"]
        arm = "treatment" if "treatment" in within[0]["_experiments"] else "control"
        counted = [row for row in within if row["_time"] < exposure + HORIZON]
        first = list(dict.fromkeys(row["_request_id"] for row in counted))[:cap]
        counted = [row for row in counted if row["_request_id"] in first]
        clicks = sum(row["_weight"] * row["is_click"] for row in counted)
        played = sum(row["_weight"] * row["play_time_ms"] for row in counted if row["is_played"])
        past = [row for row in theirs if row["_time"] < START]
        before = sum(row["_weight"] * row["is_click"] for row in past)
        for metric, value in (
            ("click", clicks),
            ("play_time", played),
            ("value", clicks + 0.001 * played),
            ("click before", before),
            ("was there", float(bool(past))),
        ):
            found[metric][arm].append(value)
    return found


@pytest.mark.parametrize("cap", [1000, 2])
def test_labels_of_users_are_those_of_a_slow_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: int) -> None:
    monkeypatch.setattr(users_module, "REQUEST_CAP", cap)
    rows = drawn_rows(3, 400)
    users, expected = collected(tmp_path, rows, question()), by_loop(rows, cap)
    assert users.before is not None
    for place, arm in enumerate(SHARES):
        is_in_U = users.arm_U == place
        given = {
            **{metric: users.of_arm(metric, place) for metric in ("value", "click", "play_time")},
            "click before": users.before["click"][is_in_U],
            "was there": users.was_there_U[is_in_U],
        }
        for metric, values_U in given.items():
            np.testing.assert_allclose(sorted(values_U), sorted(expected[metric][arm]), rtol=1e-9, err_msg=metric)

    assert sum(users.exposed.values()) == len({row["_user"] for row in rows if row["_experiments"]} - {None})
    assert users.left_out["rows without a user"] == sum(
        row["_user"] is None for row in rows if row["_experiments"] is not None
    )
    assert sum(users.exposed.values()) == len(users.arm_U) + users.left_out["users whose horizon is not over"]
    assert users.fell_back["control"] == 0
    assert 0 < users.fell_back["treatment"] <= 10
    assert (users.capped > 0) == (cap == 2)
    assert not users.is_over


def test_a_value_by_days_since_exposure_adds_up_to_that_of_a_horizon_of_these_days(tmp_path: Path) -> None:
    rows = drawn_rows(5, 150)
    users = collected(tmp_path, rows, question())
    arm_U, values_U = users.days[0]
    assert sorted(values_U) == pytest.approx(sorted(users.labels["value"]))
    assert len(arm_U) == len(users.arm_U)
    assert len(users.days[2][0]) == 0


def test_users_of_an_earlier_epoch_take_no_part_and_epochs_are_named(tmp_path: Path) -> None:
    rows = drawn_rows(7, 200)
    change = START + timedelta(hours=6)
    for row in rows:
        if row["_epochs"] and row["_time"] < change:
            row["_epochs"] = '{"bold":"00000000"}'
    early = {row["_user"] for row in rows if row["_epochs"] and row["_time"] < change} - {None}
    later = {row["_user"] for row in rows if row["_epochs"] and row["_time"] >= change} - {None}
    users = collected(tmp_path, rows, question())
    assert users.left_out["users of another epoch before"] == len(early)
    assert sum(users.exposed.values()) == len(later - early)
    first = collected(tmp_path, rows, question(epoch="00000000"))
    assert sum(first.exposed.values()) == len(early)
    with pytest.raises(ValueError, match=r"no row is of epoch x of 'bold'; rows have: 00000000, abcd0123"):
        collected(tmp_path, rows, question(epoch="x"))


def test_users_of_several_arms_are_counted_and_stay_in_the_first(tmp_path: Path) -> None:
    rows = drawn_rows(9, 100)
    late = START + timedelta(hours=30)
    for row in rows:
        if row["_user"] == "u4" and row["_time"] >= late:
            row["_experiments"] = '{"bold":"treatment"}'
    moved = {bool(row["_time"] >= late) for row in rows if row["_user"] == "u4" and row["_experiments"]}
    users = collected(tmp_path, rows, question())
    assert moved == {True, False}, "the seed has the user on both sides"
    assert users.mixed == 1
    whole = collected(tmp_path / "whole", drawn_rows(9, 100), question())
    assert users.exposed == whole.exposed


def test_an_end_bounds_exposure_and_says_when_the_experiment_is_over(tmp_path: Path) -> None:
    rows = drawn_rows(11, 200)
    end = START + timedelta(hours=12)
    users = collected(tmp_path, rows, question(end=end))
    exposed = {row["_user"] for row in rows if row["_experiments"] and row["_time"] < end} - {None}
    assert sum(users.exposed.values()) == len(exposed)
    assert users.is_over
    assert not collected(tmp_path, rows, question(end=START + timedelta(hours=AFTER - 23))).is_over


def test_quarantined_days_are_not_believed(tmp_path: Path) -> None:
    rows = drawn_rows(13, 200)
    day = START + timedelta(days=1)
    users = collected(tmp_path, rows, question(left_out=((day, day + timedelta(days=1)),)))
    # Whoever was exposed on the first day has the second within the horizon of a day, but for the first instant.
    assert len(users.arm_U) == 0
    assert users.left_out["users of days that are quarantined"] > 100


def test_hours_that_begin_after_the_start_have_no_past(tmp_path: Path) -> None:
    users = collected(tmp_path, drawn_rows(15, 100), question(), before=0)
    assert users.before is None
    with pytest.raises(ValueError, match=r"no hour since 2027-01-01T00:00Z, when 'bold' starts"):
        collected(tmp_path, [], question(start=START.replace(year=2027, month=1)))
