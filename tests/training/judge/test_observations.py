"""Observations of joined rows against a loop over the same rows, and folders that are none of a join's.

Shapes: U users.
"""

from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.judge.joined_feed import SCHEMA, START, Row, drawn_rows, write_hours
from training.judge.guards import normalized_error
from training.judge.observations import Question, Span, observe
from training.judge.users import Observed
from training.tasks import learned

HOURS = 30
SINCE = START + timedelta(hours=3, minutes=20)
HORIZON = timedelta(hours=8)
REALISED = {"click": 1.0, "play_time": 0.001, "rating.good": 0.5}
QUESTION = Question("7", "6", SINCE, 0.1, HORIZON, REALISED)


def _by_hand(rows: list[Row], until: datetime, left_out: tuple[Span, ...] = ()) -> dict[str, Any]:
    """What users did, row by row."""
    first: dict[str, tuple[datetime, str]] = {}
    seen: dict[str, set[str]] = defaultdict(set)
    for row in sorted(rows, key=lambda row: row["_time"]):
        if row["_time"] >= SINCE and row["_user"] is not None and row["_model_version"] in ("6", "7"):
            first.setdefault(row["_user"], (row["_time"], row["_model_version"]))
            seen[row["_user"]].add(row["_model_version"])
    mature = {user for user, (time, _) in first.items() if time + HORIZON <= until}
    believed = {user for user in mature if all(first[user][0] + HORIZON <= one or first[user][0] >= end
                                              for one, end in left_out)}  # fmt: skip
    immature, mature = len(first) - len(mature), believed
    values: dict[str, dict[str, float]] = {"6": dict.fromkeys(mature, 0.0), "7": dict.fromkeys(mature, 0.0)}
    clicks: dict[str, list[tuple[int, float, float]]] = {"6": [], "7": []}
    for row in rows:
        user = row["_user"]
        if user not in mature or not first[user][0] <= row["_time"] < first[user][0] + HORIZON:
            continue
        arm = first[user][1]
        worth = row["is_click"] + 0.001 * row["play_time_ms"] * row["is_played"] + 0.5 * (row["stars"] == 2)
        values[arm][user] += worth * row["_weight"]
        if row["_model_version"] == arm:
            clicks[arm].append((row["is_click"], row["_answer_click"], row["_weight"]))
    of_arms = {
        arm: sorted(value for user, value in of_arm.items() if first[user][1] == arm) for arm, of_arm in values.items()
    }
    exposed = tuple(sum(version == arm for _, version in first.values()) for arm in ("7", "6"))
    return {
        "values": of_arms,
        "clicks": clicks,
        "exposed": exposed,
        "mixed": sum(len(versions) == 2 for versions in seen.values()),
        "immature": immature,
    }


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Rows of 400 users."""
    return drawn_rows(1, 400, HOURS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> Path:
    """Their joined hours."""
    folder = tmp_path_factory.mktemp("joined")
    write_hours(folder, rows, HOURS)
    return folder


def _check(observed: Observed, by_hand: dict[str, Any]) -> None:
    assert observed.exposed == by_hand["exposed"]
    assert observed.mixed == by_hand["mixed"]
    assert observed.left_out["users who are not mature"] == by_hand["immature"]
    kind = learned(SCHEMA.tasks[0])
    for arm, version in ((observed.canary, "7"), (observed.stable, "6")):
        np.testing.assert_allclose(sorted(arm.values_U), by_hand["values"][version], rtol=1e-9)
        labels, answers, weights = (np.array(column, float) for column in zip(*by_hand["clicks"][version], strict=True))
        sums = arm.tasks["click"]
        assert sums.rows_U.sum() == pytest.approx(weights.sum())
        assert sums.labels_UO.sum() == pytest.approx(weights @ labels)
        losses = -np.log(np.where(labels == 1, answers, 1 - answers))
        rate = weights @ labels / weights.sum()
        constant = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)) * weights.sum()
        assert normalized_error(sums, kind) == pytest.approx(weights @ losses / constant)


def test_arms_are_those_of_a_loop_over_the_rows(folder: Path, rows: list[Row]) -> None:
    observed = observe(folder, SCHEMA, QUESTION)
    _check(observed, _by_hand(rows, START + timedelta(hours=HOURS)))
    since = [row for row in rows if row["_time"] >= SINCE]
    assert observed.left_out["rows of other versions"] == sum(row["_model_version"] == "5" for row in since)
    of_nobody = sum(row["_user"] is None and row["_model_version"] != "5" for row in since)
    assert observed.left_out["rows without a user"] == of_nobody
    assert observed.share == 0.1


def test_users_whose_horizon_has_a_part_in_what_is_left_out_take_no_part(folder: Path, rows: list[Row]) -> None:
    span = (START + timedelta(hours=14), START + timedelta(hours=17))
    observed = observe(folder, SCHEMA, replace(QUESTION, left_out=(span,)))
    by_hand = _by_hand(rows, START + timedelta(hours=HOURS), (span,))
    _check(observed, by_hand)
    before = observe(folder, SCHEMA, QUESTION)
    kept, all_users = (len(one.canary.values_U) + len(one.stable.values_U) for one in (observed, before))
    assert observed.left_out["users of days that are quarantined"] == all_users - kept > 0


def test_an_hour_that_is_missing_ends_what_is_known(tmp_path: Path, rows: list[Row]) -> None:
    write_hours(tmp_path, rows, HOURS)
    missing = START + timedelta(hours=20)
    (tmp_path / f"date={missing:%Y%m%d}" / f"{missing:%Y%m%dT%H}.parquet").unlink()
    known = [row for row in rows if row["_time"] < missing]
    _check(observe(tmp_path, SCHEMA, QUESTION), _by_hand(known, missing))


def test_a_user_of_a_thousand_requests_is_no_person(tmp_path: Path, rows: list[Row]) -> None:
    at = SINCE + timedelta(minutes=1)
    bot = {**rows[0], "_user": "bot", "_model_version": "6", "_time": at.replace(microsecond=0), "is_click": 1}
    many = [*rows, *({**bot, "_request_id": f"b{number}"} for number in range(1001))]
    write_hours(tmp_path, many, HOURS)
    observed = observe(tmp_path, SCHEMA, QUESTION)
    assert observed.left_out["users of more than 1,000 requests"] == 1
    by_hand = _by_hand(rows, START + timedelta(hours=HOURS))
    np.testing.assert_allclose(sorted(observed.stable.values_U), by_hand["values"]["6"])


def test_nobody_is_seen_before_the_canary_began_nor_without_rows(folder: Path, tmp_path: Path) -> None:
    write_hours(tmp_path, [], 3)
    late = Question("7", "6", START + timedelta(hours=HOURS + 5), None, HORIZON, REALISED)
    for observed in (observe(tmp_path, SCHEMA, QUESTION), observe(folder, SCHEMA, late)):
        assert observed.exposed == (0, 0)
        assert len(observed.canary.values_U) == len(observed.stable.values_U) == 0


def test_faults_are_said_by_file_or_key(tmp_path: Path, folder: Path) -> None:
    wrong = Question("7", "6", SINCE, None, HORIZON, {"clicks": 1.0})
    with pytest.raises(ValueError, match=r"realised: 'clicks' is no output of the model; there are: click, play_time"):
        observe(folder, SCHEMA, wrong)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "part.parquet")
    with pytest.raises(ValueError, match="no file of an hour here"):
        observe(tmp_path, SCHEMA, QUESTION)
    path = tmp_path / f"date={SINCE:%Y%m%d}" / f"{SINCE:%Y%m%dT%H}.parquet"
    path.parent.mkdir()
    (tmp_path / "part.parquet").unlink()
    pq.write_table(pa.table({"_time": ["noon"], "_user": ["u"], "_model_version": ["6"]}), path)
    with pytest.raises(ValueError, match="column '_time' is string, and the join writes timestamp"):
        observe(tmp_path, SCHEMA, QUESTION)
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        observe(tmp_path, SCHEMA, QUESTION)
