"""A calibration fitted again beside a published version: its maps, what it is measured by, undone, refused, killed."""

import json
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from model.artifact.artifact import CALIBRATION, ArtifactError, file_entry, write_manifest
from model.recalibration import GOLDEN_ANSWERS, generations
from model.rollout.journal import Journal
from model.scorer.scorer import Scorer
from tests.artifacts import writable
from tests.training_data import feed_table
from training.__main__ import main
from training.daily.serving import open_version
from training.publish.export import export
from training.publish.recalibrate import Days, recalibrate
from training.run.run import Run

ROWS = 1500
USER, CANDIDATE = ("user_id", "history", "tab"), ("video", "duration")


@pytest.fixture(scope="module")
def published(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(finished_run, tmp_path_factory.mktemp("models"))


@pytest.fixture
def version(published: Path, tmp_path: Path) -> Path:
    """A version of its own for each test."""
    copied = tmp_path / "models" / published.parent.name / published.name
    shutil.copytree(published, copied)
    return copied


def write_days(folder: Path, *, clicks: float = 0.5) -> pa.Table:
    """Days 1 to 6 of March, a folder each. Of the clicks of the last, `clicks` are undone and watch times halved."""
    table = feed_table(ROWS, seed=9)
    days = table["day"].to_numpy()
    rng = np.random.default_rng(4)
    is_click = table["is_click"].to_numpy() * ((days < 6) | (rng.random(ROWS) < clicks))
    watch = table["watch_ms"].to_numpy() * np.where(days == 6, 0.5, 1.0)
    for name, values in (("is_click", pa.array(is_click, pa.int8())), ("watch_ms", pa.array(watch))):
        table = table.set_column(table.schema.get_field_index(name), name, values)
    for day in range(1, 7):
        place = folder / f"date=2024030{day}"
        place.mkdir(parents=True)
        pq.write_table(table.filter(pa.compute.equal(table["day"], day)), place / "part.parquet")
    return table.filter(pa.compute.equal(table["day"], 6))


def answers_of(scorer: Scorer, table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Every row as a request of one candidate, as a service answers."""
    rows = table.to_pydict()
    answers = [
        scorer.score_values({name: rows[name][row] for name in USER}, {n: [rows[n][row]] for n in CANDIDATE}, 1)[0]
        for row in range(table.num_rows)
    ]
    return dict(zip(scorer.outputs, np.array(answers, np.float64).T, strict=True))


def taken(version: Path) -> Scorer:
    """The scorer of a version by its newest generation."""
    scorer = Scorer.load(version)
    scorer.take_calibration(scorer.open_calibration(scorer.calibration_generations()[-1]))
    return scorer


@pytest.fixture(autouse=True)
def few_rows_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on labels is lowered to what the small feed has."""
    monkeypatch.setattr("training.tasks.probability_maps.MIN_ROWS", 100)


def test_answers_of_the_last_day_are_calibrated(version: Path, tmp_path: Path) -> None:
    day = write_days(tmp_path / "data")
    folder = recalibrate(version, tmp_path / "data", Days())
    assert folder == version.parent / "derived" / version.name / "calibration" / "1"
    before, after = answers_of(Scorer.load(version), day), answers_of(taken(version), day)
    clicks = day["is_click"].to_numpy().astype(float)
    assert before["click"].sum() / clicks.sum() > 1.5, "half of the clicks are undone"
    # The maximum likelihood of a slope and an intercept on the logit, by scikit-learn without a penalty.
    logits = np.log(before["click"] / (1 - before["click"]))[:, None]
    by_others = LogisticRegression(C=np.inf, tol=1e-10).fit(logits, clicks).predict_proba(logits)[:, 1]
    # Platt's targets are a little off 0 and 1, by one row in as many as there are of each.
    np.testing.assert_allclose(after["click"], by_others, atol=0.02)
    assert after["click"].sum() / clicks.sum() == pytest.approx(1, abs=0.02)
    # A quantity's map gives answers and labels one sum.
    assert after["watch"].sum() == pytest.approx(day["watch_ms"].to_numpy().sum(), rel=1e-4)  # float32 answers
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"] == day.num_rows
    assert manifest["data_window"] == {"column": "date", "days": ["2024-03-06"]}
    assert manifest["tasks"]["click"]["before"]["calibration_ratio"] == pytest.approx(
        before["click"].sum() / clicks.sum(), rel=1e-5
    )
    assert manifest["means"]["click"] == pytest.approx(after["click"].mean(), rel=1e-5)
    assert [file.stat().st_mode & 0o777 for file in sorted(folder.iterdir())] == [0o444] * 3
    (entry,) = Journal(version.parent).read().entries
    assert (entry.step, entry.decision) == ("recalibrate", "publish")
    assert entry.versions == {"version": version.name, "calibration": "1"}


def test_jobs_answer_by_the_newest_generation_that_verifies(
    version: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_days(tmp_path / "data")
    rows = tmp_path / "data" / "date=20240306"
    recalibrate(version, tmp_path / "data", Days())
    expected = answers_of(taken(version), pq.read_table(rows / "part.parquet"))["click"]
    spoil(recalibrate(version, tmp_path / "data", Days(), kind="isotonic"), "a byte")
    assert open_version(version.parent, int(version.name)).scorer.calibration.generation == "1"
    assert "calibration/2/calibration.json: checksum differs" in caplog.text
    assert main(["score", str(version), str(rows), "--out", str(tmp_path / "scores"), "--processes", "1"]) == 0
    scored = pq.read_table(tmp_path / "scores")["answer_click"].to_numpy()
    np.testing.assert_allclose(scored, expected, rtol=1e-5)  # float32 answers, in other sums
    assert json.loads((tmp_path / "scores" / "_scored.json").read_text())["calibration"] == "1"


def test_rows_count_by_their_weights(version: Path, tmp_path: Path) -> None:
    day = write_days(tmp_path / "data")
    times = np.random.default_rng(5).integers(1, 3, day.num_rows)  # so few that both are one bin of label_mean_map
    folders = []
    for name, table in (
        ("weighted", day.append_column("shown", pa.array(0.5 * times))),
        ("repeated", day.take(np.repeat(np.arange(day.num_rows), times))),
    ):
        place = tmp_path / name / "date=20240306"
        place.mkdir(parents=True)
        pq.write_table(table, place / "part.parquet")
        folders.append(recalibrate(version, tmp_path / name, Days(weight="shown" if name == "weighted" else None)))
    weighted, repeated = (json.loads((folder / CALIBRATION).read_text())["tasks"] for folder in folders)
    # Sums in another order, and a likelihood that ends at a gradient of 1e-10.
    for task, key in (("click", "slope"), ("click", "intercept"), ("watch", "inputs"), ("watch", "outputs")):
        assert weighted[task][key] == pytest.approx(repeated[task][key], rel=1e-6)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    assert manifests[0]["data_window"] == {"column": "date", "days": ["2024-03-06"], "weight": "shown"}
    assert manifests[0]["means"] == pytest.approx(manifests[1]["means"], rel=1e-6)
    answers, clicks = answers_of(Scorer.load(version), day)["click"], day["is_click"].to_numpy()
    before = manifests[0]["tasks"]["click"]["before"]["calibration_ratio"]
    assert before == pytest.approx((times @ answers) / (times @ clicks), rel=1e-5)  # float32 answers


def test_joined_rows_count_by_the_weights_of_the_join(version: Path, tmp_path: Path) -> None:
    day = write_days(tmp_path / "data")
    day = day.append_column("_weight", pa.array(np.linspace(1, 5, day.num_rows)))
    folder = tmp_path / "joined" / "date=20240306"
    folder.mkdir(parents=True)
    for hour in range(24):
        pq.write_table(day if hour == 20 else day.slice(0, 0), folder / f"20240306T{hour:02}.parquet")
    generation = recalibrate(version, tmp_path / "joined", Days())
    manifest = json.loads((generation / "manifest.json").read_text())
    assert manifest["data_window"]["weight"] == "_weight"
    answers, weights = answers_of(taken(version), day)["click"], day["_weight"].to_numpy()
    assert manifest["means"]["click"] == pytest.approx(np.average(answers, weights=weights), rel=1e-5)  # float32


def test_days_that_are_left_out_are_not_read(version: Path, tmp_path: Path) -> None:
    write_days(tmp_path / "data")
    folder = recalibrate(version, tmp_path / "data", Days(days=2, exclude=frozenset({date(2024, 3, 6)})))
    assert json.loads((folder / "manifest.json").read_text())["data_window"]["days"] == ["2024-03-04", "2024-03-05"]
    with pytest.raises(ValueError, match="every day up to 2024-03-04 is left out"):
        recalibrate(version, tmp_path / "data", Days(end=date(2024, 3, 4), exclude=frozenset({date(2024, 3, 4)})))


def test_the_versions_own_calibration_comes_back(version: Path, tmp_path: Path) -> None:
    day = write_days(tmp_path / "data")
    assert main(["recalibrate", str(version), str(tmp_path / "data"), "--kind", "isotonic"]) == 0
    assert main(["recalibrate", str(version), "--undo"]) == 0
    assert generations(version.parent / "derived" / version.name / "calibration") == [1, 2]
    own, undone = answers_of(Scorer.load(version), day.slice(0, 20)), answers_of(taken(version), day.slice(0, 20))
    assert all(np.array_equal(own[output], undone[output]) for output in own)


def test_what_is_said_of_a_command_that_cannot_be(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_days(tmp_path / "data")
    data = str(tmp_path / "data")
    (version.parent / "labels.yaml").write_text(f"stable: {version.name}\ncanary: {{version: 9, share: 0.1}}\n")
    assert main(["recalibrate", str(version), data]) == 2
    assert f"is judged, canary 9 against stable {version.name}" in capsys.readouterr().err
    assert main(["recalibrate", str(version), data, "--even-if-judged"]) == 0
    (version.parent / "labels.yaml").unlink()
    for arguments, says in (
        ([str(version)], "give DATA to fit a calibration on, or --undo"),
        ([str(version.parent), data], f"one version's; name {version}, or another of {version.name}"),
        ([str(version), data, "--undo"], "give DATA to fit a calibration on, or --undo"),
        ([str(version), data, "--end", "today"], "expected a day as 2024-01-31"),
        ([str(version), data, "--days", "0"], "--days 0: at least 1"),
        ([str(version), data, "--column", "duration"], "column 'duration' is double; windows of days need"),
        ([str(version), data, "--end", "2025-01-01"], "no row is in split train"),
    ):
        assert main(["recalibrate", *arguments]) == 2
        assert says in capsys.readouterr().err
    monkeypatch.setattr("training.tasks.probability_maps.MIN_ROWS", 10**6)
    monkeypatch.setattr("training.tasks.label_mean_map.MIN_POSITIVE", 10**6)
    assert main(["recalibrate", str(version), data]) == 2
    assert "no task has enough labels in" in capsys.readouterr().err


def test_a_task_with_few_labels_keeps_its_map(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_days(tmp_path / "data")
    monkeypatch.setattr("training.tasks.probability_maps.MIN_ROWS", 10**6)
    folder = recalibrate(version, tmp_path / "data", Days())
    assert "task click keeps its calibration" in caplog.text
    own = json.loads((version / CALIBRATION).read_text())["tasks"]
    assert list(json.loads((folder / CALIBRATION).read_text())["tasks"]) == list(own), "none of probabilities"


def spoil(folder: Path, how: str) -> None:
    writable(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]
    if how == "a byte":
        content = (folder / CALIBRATION).read_bytes()
        (folder / CALIBRATION).write_bytes(content.replace(b"1", b"2", 1))
        return
    if how == "other golden answers":
        golden = json.loads((folder / GOLDEN_ANSWERS).read_text())
        golden[0]["click"][0] += 0.01
        (folder / GOLDEN_ANSWERS).write_text(json.dumps(golden))
        manifest["files"][GOLDEN_ANSWERS] = file_entry(folder / GOLDEN_ANSWERS)
    elif how == "fewer golden answers":
        (folder / GOLDEN_ANSWERS).write_text("[]")
        manifest["files"][GOLDEN_ANSWERS] = file_entry(folder / GOLDEN_ANSWERS)
    elif how == "another parent":
        manifest["parent"] = "0" * 64
    elif how == "no map":
        (folder / CALIBRATION).write_text('{"tasks": {"clack": {"kind": "platt", "slope": 1, "intercept": 0}}}')
        manifest["files"][CALIBRATION] = file_entry(folder / CALIBRATION)
    write_manifest(folder, manifest)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("a byte", "checksum differs from the manifest's"),
        ("other golden answers", "calibration 1: request 0, output click: the answer is off by 0.01"),
        ("fewer golden answers", "answers 0 golden requests"),
        ("another parent", "made for another model version"),
        ("no map", "calibrates 'clack' by platt: this model has no such task"),
    ],
)
def test_a_generation_that_does_not_verify_is_refused(version: Path, tmp_path: Path, how: str, says: str) -> None:
    write_days(tmp_path / "data")
    folder = recalibrate(version, tmp_path / "data", Days())
    spoil(folder, how)
    with pytest.raises(ArtifactError, match=says):
        Scorer.load(version).open_calibration(folder)


KILLED = """
import os, signal, sys
import training.publish.recalibrate as job
import training.tasks.probability_maps as maps
from training.__main__ import main

maps.MIN_ROWS = 100
*arguments, places = sys.argv[1:]
for place in places.split(","):  # a child for each, so that all is imported once
    if (child := os.fork()) == 0:
        setattr(job, place, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        main(arguments)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    family = arguments[1].rpartition("/")
    folder = f"{family[0]}/derived/{family[2]}/calibration"
    print(place, sorted(name for name in os.listdir(folder) if not name.startswith(".")))
"""


def test_a_job_that_is_killed_leaves_whole_generations_and_the_next_says_so(version: Path, tmp_path: Path) -> None:
    write_days(tmp_path / "data")
    places = "write_manifest,seal,_journal"
    command = [sys.executable, "-c", KILLED, "recalibrate", str(version), str(tmp_path / "data"), places]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines() == ["write_manifest []", "seal []", "_journal ['1']"]
    taken(version)  # verifies
    assert not (version.parent / "journal.jsonl").exists()
    recalibrate(version, tmp_path / "data", Days(), now=datetime(2024, 3, 7, tzinfo=UTC))
    told = [(entry.decision, entry.versions["calibration"]) for entry in Journal(version.parent).read().entries]
    assert told == [("found", "1"), ("publish", "2")]
