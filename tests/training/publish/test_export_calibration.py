"""A calibrated version: what it answers, what its manifest says of it, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss

from model.artifact.artifact import CALIBRATION, ArtifactError, file_entry, write_manifest
from model.scorer.scorer import Scorer
from tests.training_data import Json
from training.__main__ import main
from training.data.rows import labels_of, observed_of, read_splits
from training.publish.export import export
from training.run.run import Run

USER, CANDIDATE = ("user_id", "history", "tab"), ("video", "duration")


@pytest.fixture(scope="module")
def versions(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run, as it is and calibrated. The limit on labels is lowered to what the small feed has."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.tasks.probability_maps.MIN_ROWS", 100)
        models = tmp_path_factory.mktemp("models")
        plain = export(finished_run, models)
        return plain, export(finished_run, models, calibration="isotonic", segment_by=["tab", "day"])


def answers_of(version: Path, rows: Json) -> Json:
    """Every row as a request of one candidate, as a service answers."""
    scorer = Scorer.load(version)
    count = len(rows["video"])
    answered = [
        scorer.score_values({name: rows[name][row] for name in USER}, {n: [rows[n][row]] for n in CANDIDATE}, 1)[0]
        for row in range(count)
    ]
    return dict(zip(scorer.outputs, np.array(answered).T, strict=True))


def test_served_probabilities_are_mapped_and_nothing_else(finished_run: Run, versions: tuple[Path, Path]) -> None:
    rows = read_splits(finished_run.config.data, finished_run.schema, ("test",))["test"].slice(0, 60).to_pydict()
    plain, calibrated = (answers_of(version, rows) for version in versions)
    maps = json.loads((versions[1] / CALIBRATION).read_text())["tasks"]
    assert sorted(maps) == ["click", "like", "watch"]
    for task in ("click", "like"):
        points = maps[task]
        expected = np.interp(plain[task], [0, *points["inputs"], 1], [0, *points["outputs"], 1])
        np.testing.assert_allclose(calibrated[task], expected, rtol=1e-5)  # float32 answers
    # A quantity is a mean of its label in both: where its rows were logged, and where they are served.
    assert list(json.loads((versions[0] / CALIBRATION).read_text())["tasks"]) == ["watch"]
    ratios = calibrated["watch"].astype(float) / plain["watch"]
    assert ratios == pytest.approx(ratios[0], rel=1e-5), "few rows: both are factors"
    assert ratios[0] != 1


def test_a_calibrated_quantity_has_the_labels_mean_as_it_is_served(
    finished_run: Run, versions: tuple[Path, Path]
) -> None:
    rows = read_splits(finished_run.config.data, finished_run.schema, ("validation",))["validation"].to_pydict()
    answers = answers_of(versions[1], rows)["watch"].astype(float)
    assert answers.sum() == pytest.approx(sum(rows["watch_ms"]), rel=1e-5)


def test_manifest_tells_what_changed(finished_run: Run, versions: tuple[Path, Path]) -> None:
    """NE and calibration ratio of the served answers, by scikit-learn. A sampled negative stands for two."""
    told = json.loads((versions[1] / "manifest.json").read_text())["metrics"]["calibration"]
    assert told["kind"] == "isotonic"
    assert list(told["tasks"]) == ["click", "like"], "of probabilities"
    table = read_splits(finished_run.config.data, finished_run.schema, ("test",))["test"]
    rows = table.to_pydict()
    for when, version in zip(("before", "after"), versions, strict=True):
        answers = answers_of(version, rows)
        for task in finished_run.schema.tasks[:2]:
            for segment, is_in in {"": np.ones(len(table), bool), "tab=home": np.array(rows["tab"]) == "home"}.items():
                use = observed_of(task, table) & is_in
                labels, p = labels_of(task, table)[use], answers[task.name].astype(float)[use]
                weights = np.where(labels == 0, 2.0 if task.name == "like" else 1.0, 1.0)
                base = np.full(len(labels), np.average(labels, weights=weights))
                expected = log_loss(labels, p, sample_weight=weights) / log_loss(labels, base, sample_weight=weights)
                place = told["tasks"][task.name]
                place = place["segments"][segment] if segment else place["test"]
                assert place["rows"] == len(labels)
                assert place["positives"] == int(labels.sum())
                # Served one by one in float32, reported in one pass.
                assert place[when]["normalized_entropy"] == pytest.approx(expected, rel=1e-5)
                assert place[when]["calibration_ratio"] == pytest.approx((weights @ p) / (weights @ labels), rel=1e-5)
    segments = told["tasks"]["click"]["segments"]
    assert set(segments) == {"tab=home", "tab=follow", "tab=elsewhere", "day=6"}


def test_on_the_split_of_the_fit_the_mean_is_right(versions: tuple[Path, Path]) -> None:
    told = json.loads((versions[1] / "manifest.json").read_text())["metrics"]["calibration"]["tasks"]
    for task in ("click", "like"):
        # Not exactly: one impression smooths each block, and lines stand between the blocks' means.
        assert told[task]["validation"]["after"]["calibration_ratio"] == pytest.approx(1, abs=0.05)


def test_platt_and_a_task_with_too_few_labels(finished_run: Run, tmp_path: Path) -> None:
    command = ["export", str(finished_run.path), "--models", str(tmp_path), "--calibrate", "platt"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.tasks.probability_maps.MIN_ROWS", 220)  # between the tasks' labelled rows
        assert main(command) == 0
    version = tmp_path / "clips" / "1"
    maps = json.loads((version / CALIBRATION).read_text())["tasks"]
    assert {task: mapping["kind"] for task, mapping in maps.items()} == {"click": "platt", "watch": "label_mean"}
    told = json.loads((version / "manifest.json").read_text())["metrics"]["calibration"]["tasks"]
    assert "at least 220 are needed" in told["like"]["not_calibrated"]
    assert Scorer.load(version).outputs == ["click", "like", "watch"]


@pytest.mark.parametrize(("flags", "message"), [
    (["--calibrate", "isotonic", "--segment-by", "tabb"], "tabb"),
    (["--segment-by", "tab"], "give --calibrate too"),
])  # fmt: skip
def test_wrong_wishes_are_refused(
    finished_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["export", str(finished_run.path), "--models", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(("text", "message"), [
    ('{"tasks": {"watch": {"kind": "platt", "slope": 1, "intercept": 0}}}', "calibrates 'watch' by platt: this model"),
    ('{"tasks": {"click": {"kind": "platt", "slope": 0, "intercept": 0}}}', "slope"),
    ('{"task": {}}', "did you mean 'tasks'"),
    ("[]", "expected a mapping"),
    ("{", "calibration.json"),
])  # fmt: skip
def test_a_wrong_file_is_refused_by_its_name(
    versions: tuple[Path, Path], tmp_path: Path, text: str, message: str
) -> None:
    """Listed in its manifest, and yet wrong."""
    copy = tmp_path / versions[1].name
    copy.mkdir()
    for file in versions[1].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / CALIBRATION).write_text(text)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["checksum"]
    manifest["files"][CALIBRATION] = file_entry(copy / CALIBRATION)
    write_manifest(copy, manifest)
    with pytest.raises(ArtifactError, match=message) as raised:
        Scorer.load(copy)
    assert CALIBRATION in str(raised.value)
