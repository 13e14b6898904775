"""The command: a verdict in words, a page, statuses that scripts can read, and faults of the user in one line."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.artifacts import publish_artifact
from tests.training.experiment.drawn import Row, drawn_rows, schema, write_hours
from training.__main__ import main
from training.experiment.question import read_question

FILE = """
layers: {ranking: {salt: s, unit: user_id}}
experiments:
  - name: bold
    layer: ranking
    buckets: {from: 0, to: 10000}
    start: 2026-12-01
    horizon: 24h
    realised: {click: 1.0}
    arms: {control: {}, treatment: {value_model: bold}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiments.yaml"
    path.write_text(FILE)
    return path


def run(tmp_path: Path, file: Path, *more: str, name: str = "bold") -> int:
    command = ["experiment", str(tmp_path / "joined"), "--experiments", str(file), "--name", name]
    try:
        return main([*command, *more])
    except SystemExit as error:
        return int(str(error.code))


def test_a_better_arm_is_called_and_has_a_page(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    epoch = read_question(file, "bold", None).epoch
    write_hours(tmp_path / "joined", drawn_rows(1, 2500, effect=0.5, epoch=epoch))
    assert run(tmp_path, file, "--schema", str(schema(tmp_path)), "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "value, treatment: +" in said
    assert "at any look: better" in said
    content = json.loads((tmp_path / "out" / "experiment.json").read_text())
    value = next(one for one in content["contrasts"] if one["metric"] == "value")
    # The truth is +50 % of clicks.
    assert value["sequence"]["low"] < 0.5 < value["sequence"]["high"]
    assert 0 < value["narrowing"] < 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png") == 2
    assert epoch in page


def test_what_is_sure_before_the_end_is_not_called(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FILE.replace("    horizon", "    end: 2026-12-20\n    horizon"))
    epoch = read_question(file, "bold", None).epoch
    write_hours(tmp_path / "joined", drawn_rows(1, 2500, effect=0.5, epoch=epoch))
    assert run(tmp_path, file, "--schema", str(schema(tmp_path))) == 0
    said = capsys.readouterr().out
    assert said.count("at any look: not called before the end") == 3
    assert "no difference is sure" not in said


def test_too_few_users_end_in_3_and_a_lost_arm_in_4(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epoch = read_question(file, "bold", None).epoch
    rows = drawn_rows(2, 1200, epoch=epoch)
    named = ("--schema", str(schema(tmp_path)), "--out", str(tmp_path / "out"))
    write_hours(tmp_path / "joined", [row for row in rows if row["_user"] and int(row["_user"][1:]) < 150])
    assert run(tmp_path, file, *named) == 3
    assert "an arm takes 100 users" in capsys.readouterr().out
    lost = [row for row in rows if row["_user"] is None or int(row["_user"][1:]) % 6 != 1]
    write_hours(tmp_path / "joined", lost)
    assert run(tmp_path, file, *named) == 4
    assert "the arms are not as large as they were to be" in capsys.readouterr().out
    assert "Nothing is called" in (tmp_path / "out" / "report.html").read_text()


def test_the_schema_is_that_of_the_newest_version_beside_the_file(tmp_path: Path, file: Path) -> None:
    publish_artifact(tmp_path / "models", user="user_id")
    beside = tmp_path / "models" / "tiny" / "experiments.yaml"
    beside.write_text(FILE)
    rows = [{**row, "play_time_ms": 0.0} for row in drawn_rows(3, 100, epoch=read_question(beside, "bold", None).epoch)]
    write_hours(tmp_path / "joined", rows)
    # Labels of the tiny schema that these rows do not have are 0.
    assert run(tmp_path, beside) == 3


def gauges(path: Path) -> dict[tuple[str, str], float]:
    """Values by metric and arm."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert family.type == "gauge"
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("model"), labels.pop("experiment")) == ("town", "bold")
            found[sample.name.removeprefix("ranking_experiment_"), "".join(labels.values())] = sample.value
    return found


def test_metrics_tell_of_the_sample_ratio(tmp_path: Path, file: Path) -> None:
    epoch = read_question(file, "bold", None).epoch
    rows = drawn_rows(5, 1200, epoch=epoch)
    named = ("--schema", str(schema(tmp_path)), "--out", str(tmp_path / "out"), "--model", "town")
    lost = [row for row in rows if row["_user"] is None or int(row["_user"][1:]) % 6 != 1]
    for kept, status in ((rows, 0), (lost, 4)):
        write_hours(tmp_path / "joined", kept)
        started = time.time() - 1  # a file has whole seconds
        assert run(tmp_path, file, *named) == status
        ended = time.time() + 1
        found = gauges(tmp_path / "out" / "experiment.prom")
        content = json.loads((tmp_path / "out" / "experiment.json").read_text())
        chance = found.pop(("sample_ratio_p_value", ""))
        assert chance == pytest.approx(min(1.0, 1 / content["sample_ratio_evidence"]))
        assert (chance < 0.01) == (status == 4)
        counts = {arm: len(_users(kept, arm)) for arm in ("control", "treatment")}
        assert started <= found.pop(("analysed_timestamp_seconds", "")) <= ended
        assert found == {("analysis_status", ""): status, **{("users", arm): count for arm, count in counts.items()}}


def _users(rows: list[dict[str, Any]], arm: str) -> set[str]:
    return {row["_user"] for row in rows if row["_user"] and f'"bold":"{arm}"' in (row["_experiments"] or "")}


@pytest.mark.parametrize(
    ("name", "more", "rule"),
    [
        ("bolt", (), "--name bolt: FILE has no such experiment; did you mean 'bold'?"),
        ("bold", (), "--schema is missing: FOLDER has no version whose schema could be read"),
        ("bold", ("--epoch", "x", "--schema", "SCHEMA"), "no row is of epoch x of 'bold'; rows have: abcd0123"),
        ("bold", ("--schema", "OTHER"), "bold.realised: 'click' is no output of the schema 'feed'; did you mean 'clic"),
        ("bold", ("--schema", "SCHEMA", "--out", "OTHER"), "other.yaml: is a file; name a folder"),
    ],
)
def test_faults_of_the_user_are_one_line(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str], name: str, more: tuple[str, ...], rule: str
) -> None:
    write_hours(tmp_path / "joined", drawn_rows(4, 20))
    text = schema(tmp_path).read_text()
    (tmp_path / "other.yaml").write_text(text.replace("name: click", "name: clicked"))
    files = {"SCHEMA": "schema.yaml", "OTHER": "other.yaml"}
    given = [str(tmp_path / files[argument]) if argument in files else argument for argument in more]
    assert run(tmp_path, file, *given, name=name) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert rule.replace("FILE", str(file)).replace("FOLDER", str(tmp_path)) in error
    assert error.count("\n") == 1


def changed(row: Row, **values: object) -> Row:
    return {**row, **{name: value for name, value in values.items() if row["_experiments"] is not None}}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"_user": None}, "no row of 'bold' has a user; the log has users where the model's manifest, or its state"),
        (
            {"_experiments": '{"other":"x"}'},
            "no row since 2026-12-01T00:00Z has an arm of 'bold'; rows have arms of: other",
        ),
        ({"_experiments": '{"bold":"third"}'}, "rows of arms that the file does not have: ROWS"),
        ({"play_time_ms": -1.0, "is_played": 1}, "labels that their task may not have: ROWS"),
    ],
)
def test_what_is_not_there_is_said_beside_too_few_users(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str], values: dict[str, object], line: str
) -> None:
    rows = [row for row in drawn_rows(4, 20, epoch=read_question(file, "bold", None).epoch) if row["_user"]]
    write_hours(tmp_path / "joined", [changed(row, **values) for row in rows])
    assert run(tmp_path, file, "--schema", str(schema(tmp_path))) == 3
    said = capsys.readouterr().out.splitlines()
    counted = sum(row["_experiments"] is not None for row in rows)
    assert any(one.startswith(line.replace("ROWS", str(counted))) for one in said), said


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda rows: rows.drop_columns(["_user"]), "no column _user; these are not rows of a join"),
        (
            lambda rows: rows.set_column(rows.column_names.index("is_click"), "is_click", pa.array(["x"] * len(rows))),
            "the label of 'click', column 'is_click': is string, not a number",
        ),
        (
            lambda rows: rows.set_column(
                rows.column_names.index("_experiments"), "_experiments", pa.array(["{"] * len(rows))
            ),
            "hour 20261202T23: column '_experiments' has what no join writes",
        ),
    ],
)
def test_rows_that_no_join_writes_are_refused(
    tmp_path: Path,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[pa.Table], pa.Table],
    rule: str,
) -> None:
    write_hours(tmp_path / "joined", drawn_rows(4, 60, epoch=read_question(file, "bold", None).epoch))
    last = tmp_path / "joined" / "date=20261202" / "20261202T23.parquet"
    pq.write_table(change(pq.read_table(last, partitioning=None)), last)
    assert run(tmp_path, file, "--schema", str(schema(tmp_path))) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert rule in error
    assert error.count("\n") == 1


def test_a_label_that_no_hour_has_is_said(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_hours(tmp_path / "joined", drawn_rows(4, 20, epoch=read_question(file, "bold", None).epoch))
    for path in (tmp_path / "joined").glob("date=*/*.parquet"):
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["is_click"]), path)
    assert run(tmp_path, file, "--schema", str(schema(tmp_path))) == 3
    assert "no row has the column 'is_click', so that 'click' is 0 of every user" in capsys.readouterr().out
