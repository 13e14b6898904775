"""The report of joined rows against loops over the same rows, its metrics as Prometheus reads them, and its faults.

Shapes: N rows, U users.
"""

import json
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.training.judge.joined_feed import SCHEMA, START, Row, drawn_rows, write_hours
from training.__main__ import main
from training.judge.joined import JoinedHours
from training.observed.effects import effects_of, pair_of
from training.observed.figures import Observed, observe_days

HOURS = 74


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Rows of three days and two hours, of two versions and a little of a third."""
    return [row for row in drawn_rows(5, 1300, HOURS) if row["_user"] is not None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> Path:
    """Their joined hours."""
    folder = tmp_path_factory.mktemp("joined")
    write_hours(folder, rows, HOURS)
    return folder


@pytest.fixture(scope="module")
def observed(folder: Path) -> Observed:
    """Figures of all days."""
    return observe_days(JoinedHours(folder), SCHEMA, 14)


def test_figures_of_a_day_and_version_are_those_of_its_rows(observed: Observed, rows: list[Row]) -> None:
    assert sorted({part.day for part in observed.parts}) == [(START + timedelta(days=n)).date() for n in range(4)]
    assert observed.hours == {(START + timedelta(days=n)).date(): hours for n, hours in enumerate((2, 24, 24, 24))}
    for part in observed.parts:
        own = [row for row in rows if row["_time"].date() == part.day and row["_model_version"] == part.version]
        labels_N, answers_N, weights_N = (
            np.array([row[name] for row in own], float) for name in ("is_click", "_answer_click", "_weight")
        )
        figures = part.tasks["click"]
        assert figures.rows == pytest.approx(weights_N.sum())
        assert figures.users == len({row["_user"] for row in own})
        assert figures.outputs["click"].predicted == pytest.approx(weights_N @ answers_N / weights_N.sum())
        rate = weights_N @ labels_N / weights_N.sum()
        assert figures.outputs["click"].observed == pytest.approx(rate)
        if 0 < rate < 1:
            assert figures.outputs["click"].calibration is not None
            assert figures.outputs["click"].calibration.value == pytest.approx(
                weights_N @ answers_N / (weights_N @ labels_N)
            )
            losses_N = -np.log(np.where(labels_N == 1, answers_N, 1 - answers_N))
            constant = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
            assert figures.ne is not None
            assert figures.ne.value == pytest.approx(weights_N @ losses_N / weights_N.sum() / constant)
        played = [row for row in own if row["is_played"]]
        assert part.tasks["play_time"].rows == pytest.approx(sum(row["_weight"] for row in played))


def test_an_interval_is_that_of_drawn_users(observed: Observed, rows: list[Row]) -> None:
    part = next(part for part in observed.parts if part.version == "6" and observed.hours[part.day] == 24)
    of_user: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        if row["_time"].date() == part.day and row["_model_version"] == "6":
            of_user[row["_user"]][0] += row["_answer_click"] * row["_weight"]
            of_user[row["_user"]][1] += row["is_click"] * row["_weight"]
    sums_U2 = np.array(list(of_user.values()))
    rng = np.random.default_rng(0)
    drawn = [sums_U2[rng.integers(0, len(sums_U2), len(sums_U2))].sum(axis=0) for _ in range(600)]
    spread = np.std([np.log(answers / labels) for answers, labels in drawn])
    calibration = part.tasks["click"].outputs["click"].calibration
    assert calibration is not None
    # 600 draws know a standard deviation to 3 %, and the logarithm of a ratio is not quite linear.
    assert np.log(calibration.high / calibration.low) / 2 == pytest.approx(1.96 * spread, rel=0.12)


def test_effects_are_differences_of_labels_a_user_by_days_since_exposure(
    observed: Observed, folder: Path, rows: list[Row]
) -> None:
    pair = pair_of(observed)
    assert pair is not None
    assert (pair.newer, pair.older) == ("7", "6")
    effects = effects_of(folder, SCHEMA, pair)
    first: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["_time"]):
        if row["_model_version"] in ("6", "7") and row["_time"] >= pair.since:
            first.setdefault(row["_user"], row)
    until = START + timedelta(hours=HOURS)
    for effect in (effect for effect in effects if effect.output == "click"):
        begin = timedelta(days=effect.day)
        end = begin + timedelta(days=1)
        clicks: dict[str, dict[str, float]] = {"6": {}, "7": {}}
        for user, row in first.items():
            if row["_time"] + end <= until:
                clicks[row["_model_version"]][user] = 0.0
        for row in rows:
            of_user = first.get(row["_user"])
            if of_user is not None and begin <= row["_time"] - of_user["_time"] < end:
                arm = clicks[of_user["_model_version"]]
                if row["_user"] in arm:
                    arm[row["_user"]] += row["is_click"] * row["_weight"]
        assert effect.users == (len(clicks["7"]), len(clicks["6"]))
        means = [np.mean(list(clicks[version].values())) for version in ("7", "6")]
        assert effect.difference is not None
        assert effect.difference.value == pytest.approx(means[0] / means[1] - 1)
    # A day is there as long as 100 users of either version were seen so long.
    seen = [
        sum(row["_model_version"] == "7" and row["_time"] + timedelta(days=day + 1) <= until for row in first.values())
        for day in range(4)
    ]
    assert {effect.day for effect in effects} == {day for day, users in enumerate(seen) if users >= 100} != set()


def test_one_version_alone_has_no_effects(tmp_path: Path, rows: list[Row]) -> None:
    write_hours(tmp_path, [row for row in rows if row["_model_version"] == "6"], HOURS)
    assert pair_of(observe_days(JoinedHours(tmp_path), SCHEMA, 14)) is None


def test_the_command_writes_page_figures_and_metrics(
    folder: Path, tmp_path: Path, observed: Observed, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.yaml"
    schema.write_text(yaml.safe_dump(SCHEMA.model_dump(mode="json", exclude_none=True)))
    out = tmp_path / "observed"
    assert main(["observed", str(folder), "--schema", str(schema), "--out", str(out), "--model", 'fe"ed']) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    assert "version 7 against version 6" in (out / "report.html").read_text().lower()
    content = json.loads((out / "observed.json").read_text())
    assert len(content["parts"]) == len(observed.parts)

    newest = max(day for day, hours in observed.hours.items() if hours == 24)
    families = {family.name: family for family in text_string_to_metric_families((out / "observed.prom").read_text())}
    [end] = families["ranking_observed_day_end_timestamp_seconds"].samples
    assert end.labels == {"model": 'fe"ed'}
    assert end.value == (START.replace(hour=0) + (newest - START.date()) + timedelta(days=1)).timestamp()
    part = next(part for part in observed.parts if part.day == newest and part.version == "6")
    calibration = part.tasks["click"].outputs["click"].calibration
    assert calibration is not None
    found = {
        (sample.labels["version"], sample.labels["task"]): sample.value
        for sample in families["ranking_observed_calibration_ratio"].samples
    }
    assert found["6", "click"] == pytest.approx(calibration.value, rel=1e-5)
    # Of a version that answered a few rows nothing is said.
    assert ("5", "click") not in found
    assert ("6", "rating.good") in found


def test_faults_end_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = tmp_path / "schema.yaml"
    schema.write_text(yaml.safe_dump(SCHEMA.model_dump(mode="json", exclude_none=True)))
    (tmp_path / "empty").mkdir()
    for given, words in (
        ([str(folder), "--out", str(folder / "page")], "is inside the folder of the joined rows"),
        ([str(folder), "--out", str(tmp_path / "o"), "--days", "0"], "--days: at least 1, got 0"),
        ([str(tmp_path / "empty"), "--out", str(tmp_path / "o")], "no *.parquet file here"),
    ):
        assert main(["observed", *given, "--schema", str(schema)]) == 2
        assert words in capsys.readouterr().err
    other = SCHEMA.model_dump(mode="json", exclude_none=True)
    other["tasks"] = [{"name": "finish", "kind": "binary", "label": "finished"}]
    schema.write_text(yaml.safe_dump(other))
    assert main(["observed", str(folder), "--out", str(tmp_path / "o"), "--schema", str(schema)]) == 2
    assert "no row has an answer and a label of" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
