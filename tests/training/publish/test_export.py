"""Export: what is published answers as the run was measured, and nothing half-made is ever visible."""

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from model.artifact.artifact import REFERENCE, Artifact, ArtifactError
from model.artifact.quality_rows import QualityRows
from model.embeddings.embeddings import Embeddings
from model.features.block import BLOCKS
from model.scorer.scorer import Scorer
from tests.artifacts import tiny_schema, writable
from tests.training_data import Json, sigmoid, small_disk
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.evaluate.evaluate import evaluate
from training.evaluate.validation import predict
from training.publish import export as export_module
from training.publish.export import export, user_feature
from training.run.run import Run

USER = ("user_id", "history", "tab")
CANDIDATE = ("video", "duration")


@pytest.fixture(scope="module")
def run(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy with an evaluation of its test split alone."""
    folder = Path(shutil.copytree(finished_run.path, tmp_path_factory.mktemp("measured") / "run-a"))
    for evaluation in folder.glob("evaluation-*"):
        evaluation.unlink()
    copy = Run.open(folder)
    evaluate(copy, "test", replicates=10)
    return copy


@pytest.fixture(scope="module")
def artifact(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def scorer(artifact: Path) -> Scorer:
    return Scorer.load(artifact)


def factor_to_the_mean(run: Run) -> float:
    """Labels over bare answers on the validation split, as logged: what few rows make of a map to the label's mean."""
    table = read_splits(run.config.data, run.schema, ("validation",))["validation"]
    rows = Rows.encode(run.schema, run.encoder, table, columns_from_arrow(run.schema, table), as_served=False)
    scale = run.fitted.targets["watch"]
    logits_B = predict(run.best_ranker(), rows)[:, 2].astype(np.float64)
    bare = np.expm1(np.maximum(logits_B * scale.scale + scale.mean, 0))
    return float(table.column("watch_ms").to_numpy().sum() / bare.sum())


def measured_answers(run: Run) -> tuple[pa.Table, NDArray[np.float64]]:
    """The test split and the run's own answers, as served, in the labels' units, computed by hand from its logits."""
    table = read_splits(run.config.data, run.schema, ("test",))["test"]
    rows = Rows.encode(run.schema, run.encoder, table, columns_from_arrow(run.schema, table), as_served=True)
    logits_BO = predict(run.best_ranker(), rows).astype(np.float64)
    scale = run.fitted.targets["watch"]
    click = sigmoid(logits_BO[:, 0])
    # Half of the likes' negatives were dropped from the log: their odds are half of what the log shows.
    odds = np.exp(logits_BO[:, 1]) / 2
    watch = np.expm1(np.maximum(logits_BO[:, 2] * scale.scale + scale.mean, 0)) * factor_to_the_mean(run)
    return table, np.stack([click, odds / (1 + odds), watch], axis=1)


def assert_answers_close(answers: NDArray[Any], expected: NDArray[Any]) -> None:
    """1e-5 for probabilities, 1e-5 of the value for quantities: float32 sums in another order."""
    np.testing.assert_allclose(answers[:, :2], expected[:, :2], rtol=0, atol=1e-5)
    np.testing.assert_allclose(answers[:, 2], expected[:, 2], rtol=1e-5)


def test_a_published_version_answers_each_logged_row_as_the_run_was_measured(run: Run, scorer: Scorer) -> None:
    table, expected_BO = measured_answers(run)
    answers = []
    for row in table.to_pylist():
        user = {name: row[name] for name in USER}
        answers.append(scorer.score_values(user, {name: [row[name]] for name in CANDIDATE}, 1)[0])
    assert_answers_close(np.stack(answers), expected_BO)


def test_many_candidates_of_one_user_are_answered_as_one_by_one(run: Run, scorer: Scorer) -> None:
    table, expected_BO = measured_answers(run)
    rows = table.to_pylist()
    features = {name: [row[name] for row in rows] for name in CANDIDATE}
    together = scorer.score_values({name: rows[0][name] for name in USER}, features, len(rows))
    assert_answers_close(together[:1], expected_BO[:1])
    for place in range(0, len(rows), 40):
        alone = scorer.score_values(
            {name: rows[0][name] for name in USER}, {name: [features[name][place]] for name in CANDIDATE}, 1
        )
        assert_answers_close(together[place : place + 1], alone)


def test_the_manifest_says_what_was_published(run: Run, artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["name"], manifest["version"], manifest["format"]) == ("clips", 1, "torchscript")
    assert [feature["name"] for feature in manifest["schema"]["features"]] == [f.name for f in run.schema.features]
    assert manifest["user"] == "user_id"
    assert [task["name"] for task in manifest["schema"]["tasks"]] == ["click", "like", "watch"]
    assert manifest["network"] == run.config.network.model_dump(mode="json")
    assert manifest["training"]["data_window"]["train"] == {"min": None, "max": 4}
    assert manifest["training"]["data_window"]["test"] == [6]
    assert manifest["training"]["config"]["seed"] == 3
    assert manifest["training"]["best_epoch"] == run.summary()["best_epoch"]
    assert manifest["training"]["rows"] == run.summary()["rows"]
    evaluation = json.loads((run.path / "evaluation-test.json").read_text(encoding="utf-8"))
    watch = manifest["metrics"].pop("label_means")["watch"]
    assert watch["calibration_ratio_before"] == pytest.approx(1 / factor_to_the_mean(run), rel=1e-9)
    assert watch["rows"] == read_splits(run.config.data, run.schema, ("validation",))["validation"].num_rows
    assert manifest["metrics"] == {"test": evaluation}
    assert {"torch", "torchrec", "numpy"} <= set(manifest["libraries"])
    files = {path.name for path in artifact.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == files
    for name, entry in manifest["files"].items():
        content = (artifact / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


@pytest.mark.parametrize(
    ("group_by", "user"),
    [
        ("user_id", "user_id"),
        ("country", "country"),
        ("history", None),  # a list
        ("age_days", None),  # a number
        ("tab", None),  # of the context
        ("video_id", None),  # of a candidate
        ("row", None),  # no feature
        (None, None),
    ],
)
def test_an_id_of_the_user_that_groups_rows_names_the_user_of_a_request(group_by: str | None, user: str | None) -> None:
    assert user_feature(tiny_schema(), group_by) == user


def test_the_manifest_names_no_folder_of_the_training_machine(run: Run, artifact: Path) -> None:
    text = (artifact / "manifest.json").read_text(encoding="utf-8")
    assert str(run.config.output) not in text
    assert str(run.config.feed) not in text


def test_golden_requests_hold_real_rows_and_one_of_defaults_alone(run: Run, scorer: Scorer) -> None:
    golden = scorer.golden_requests()
    table, _ = measured_answers(run)
    videos = set(table.column("video").to_pylist())
    # Wide enough for the kernels of another CPU, far below what a wrong weight does.
    assert 1e-6 < golden["tolerance"] <= 1e-3
    assert [len(request["candidates"]["id"]) for request in golden["requests"]] == [1, 2, 5, 20, 100, 1]
    for request in golden["requests"][:-1]:
        assert set(request["user"]) == set(USER)
        assert set(request["candidates"]["features"]) == set(CANDIDATE)
        assert set(request["candidates"]["features"]["video"]) <= videos
    assert golden["requests"][-1]["user"] == {}
    assert golden["requests"][-1]["candidates"]["features"] == {}
    for request in golden["requests"]:
        rows = len(request["candidates"]["id"])
        answers = scorer.score_values(request["user"], request["candidates"]["features"], rows)
        expected = np.stack([request["expected"][task] for task in ("click", "like", "watch")], axis=1)
        assert_answers_close(answers, expected)


def test_reference_histograms_count_the_answers_as_served(run: Run, scorer: Scorer) -> None:
    _, expected_BO = measured_answers(run)
    reference = scorer.artifact.read_json(REFERENCE)
    for position, task in enumerate(("click", "like", "watch")):
        histogram = reference[task]
        edges, answers = np.array(histogram["edges"]), expected_BO[:, position]
        assert sum(histogram["counts"]) == len(answers)
        assert histogram["mean"] == pytest.approx(answers.mean(), rel=1e-5)
        counts, _ = np.histogram(np.clip(answers, edges[0], edges[-1]), bins=edges)
        # An answer within rounding of an edge may fall on either side of it.
        assert np.abs(np.cumsum(counts) - np.cumsum(histogram["counts"])).max() <= 1
        if task != "watch":
            assert (edges[0], edges[-1]) == (0.0, 1.0)


def test_the_weights_are_those_of_the_best_epoch(run: Run, tmp_path: Path) -> None:
    # A later, worse epoch in the newest checkpoint changes nothing.
    copy = Path(shutil.copytree(run.path, tmp_path / "run-b"))
    shutil.rmtree(copy / "checkpoints" / "last")
    one, two = (Scorer.load(export(opened, tmp_path / "models")) for opened in (run, Run.open(copy)))
    request = one.golden_requests()["requests"][3]
    answers = [s.score_values(request["user"], request["candidates"]["features"], 20) for s in (one, two)]
    np.testing.assert_array_equal(answers[0], answers[1])


def test_each_export_is_the_next_version_and_leaves_the_old_ones_alone(run: Run, tmp_path: Path) -> None:
    first = export(run, tmp_path, "feed")
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    second = export(run, tmp_path, "feed")
    assert (first, second) == (tmp_path / "feed" / "1", tmp_path / "feed" / "2")
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    shutil.rmtree(first)
    assert export(run, tmp_path, "feed") == tmp_path / "feed" / "3"
    assert Scorer.load(tmp_path / "feed" / "3").version == "3"


def test_one_flipped_byte_is_refused_by_the_reader(artifact: Path, tmp_path: Path) -> None:
    for name in [path.name for path in artifact.iterdir()]:
        copy = writable(shutil.copytree(artifact, tmp_path / name / "1"))
        content = bytearray((copy / name).read_bytes())
        # Of the manifest a byte that counts: the last digit of a number may be another and the number the same.
        content[content.rindex(b"checksum") + 20 if name == "manifest.json" else len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            Scorer.load(copy)


# Nothing half-made


def nothing_published(models: Path, name: str = "clips") -> bool:
    return not any((models / name).iterdir()) if (models / name).exists() else True


def test_tables_that_differ_from_the_trained_ones_are_not_published(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Embeddings.table_weights

    def off(self: Embeddings) -> dict[str, torch.Tensor]:
        return {name: weight + 1e-3 for name, weight in original(self).items()}

    monkeypatch.setattr(Embeddings, "table_weights", off)
    with pytest.raises(ValueError, match="eager against trained: the answers differ by"):
        export(run, tmp_path)
    assert nothing_published(tmp_path)


def test_a_version_that_fails_its_own_golden_requests_is_not_published(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = export_module.golden_requests

    def off(*arguments: Any) -> Json:
        golden = original(*arguments)
        golden["requests"][2]["expected"]["click"][0] += 0.01
        return golden

    monkeypatch.setattr(export_module, "golden_requests", off)
    with pytest.raises(ValueError, match=r"request 2, output click: the answer is off by 0\.01"):
        export(run, tmp_path)
    assert nothing_published(tmp_path)


@pytest.mark.parametrize("kibibytes", [8, 64])
def test_a_full_disk_publishes_nothing_and_keeps_the_version_before(run: Run, tmp_path: Path, kibibytes: int) -> None:
    size = sum(path.stat().st_size for path in export(run, tmp_path / "measure").iterdir())
    with small_disk(tmp_path / "small", (size // 4096 + 8) * 4 + kibibytes) as disk:
        first = export(run, disk)
        with pytest.raises(ValueError, match="clips: nothing was published, No space left on device"):
            export(run, disk)
        assert [entry.name for entry in (disk / "clips").iterdir()] == ["1"]
        Scorer.load(first)


@pytest.mark.parametrize("call", range(1, 6))
def test_a_disk_that_fails_at_any_write_publishes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    left = [call]
    original = os.fsync

    def full(descriptor: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="nothing was published, No space left on device"):
        export(run, tmp_path)
    assert nothing_published(tmp_path)


def test_a_killed_export_leaves_nothing_that_a_reader_sees(run: Run, tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from training.publish import export\n"
        "from training.run.run import Run\n"
        f"export.reference_scores = lambda *_: os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "export.export(Run.open(Path(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run.path), str(tmp_path)], capture_output=True, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (left,) = (tmp_path / "clips").iterdir()
    assert left.name.startswith(".")
    assert export(run, tmp_path) == tmp_path / "clips" / "1"


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "x" * 70])
def test_a_name_that_is_no_folder_name_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must match"):
        export(run, tmp_path / "models", name)
    assert not (tmp_path / "up").exists()


def test_an_unfinished_run_is_refused(run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    (copy / "summary.json").unlink()
    with pytest.raises(ValueError, match="has not finished"):
        export(Run.open(copy), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_run_without_an_evaluation_is_published_with_a_warning(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    (copy / "evaluation-test.json").unlink()
    with caplog.at_level(logging.WARNING):
        path = export(Run.open(copy), tmp_path / "models")
    assert "has no evaluation" in caplog.text
    assert json.loads((path / "manifest.json").read_text(encoding="utf-8"))["metrics"].keys() == {"label_means"}


def test_a_broken_evaluation_is_named(run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    (copy / "evaluation-test.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"evaluation-test\.json: not readable as JSON"):
        export(Run.open(copy), tmp_path / "models")
    assert nothing_published(tmp_path / "models")


def test_validation_rows_are_kept_for_the_acceptance_of_compiled_packages(run: Run, artifact: Path) -> None:
    kept = QualityRows.of_artifact(Artifact.open(artifact))
    table = read_splits(run.config.data, run.schema, ("validation",))["validation"]
    assert kept is not None
    assert len(kept.labels_RT) == table.num_rows
    # All of the split's rows, in their order: each is encoded as a request and its candidate of that row alone are.
    columns = columns_from_arrow(run.schema, table)
    for block, rows in zip(BLOCKS, (kept.request, kept.candidate), strict=True):
        whole = run.encoder.encode(block, columns, table.num_rows, as_served=True).block
        for name, array in rows._asdict().items():
            np.testing.assert_array_equal(array, getattr(whole, name))
    for task, labels_R in zip(run.schema.tasks, kept.labels_RT.T, strict=True):
        logged_R = table.column(task.label).to_numpy().astype(np.float32)
        counts_R = np.ones(len(logged_R), bool) if task.mask is None else table.column(task.mask).to_numpy() == 1
        np.testing.assert_array_equal(labels_R, np.where(counts_R, logged_R, np.nan))
