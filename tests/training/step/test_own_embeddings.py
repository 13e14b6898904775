"""Embeddings of each task's own through the commands: training resumes, export agrees, inspect names what it omits."""

import json
import logging
from pathlib import Path

import pytest

from model.artifact.artifact import Artifact
from tests.training_data import assert_same_checkpoints, training_file, write_feed
from training.__main__ import main
from training.compare.cost import sizes
from training.config import TrainingConfig
from training.publish.export import export
from training.run.progress import TrainingProgress
from training.run.run import Run
from training.step.balancing import KINDS
from training.train import train

FUSION = {"kind": "no_sharing", "levels": [8], "own_embeddings": True}
NETWORK = {"fusion": FUSION, "tower": [4]}
SHARED = {"fusion": {**FUSION, "own_embeddings": False}, "tower": [4]}


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with fused tables of each task's own."""
    folder = tmp_path_factory.mktemp("own")
    write_feed(folder / "data")
    return train(TrainingConfig.load(training_file(folder, network=NETWORK)), show=False)


def test_a_killed_run_resumes_to_the_same_tables(own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_feed(tmp_path / "data")
    config = TrainingConfig.load(training_file(tmp_path, network=NETWORK, checkpoint_seconds=1e-9))
    steps = 0
    advance = TrainingProgress.advance

    def killed(self: TrainingProgress, rows: int, loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 20:
            raise KeyboardInterrupt
        advance(self, rows, loss)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, show=False)
    run = train(config, show=False)
    assert_same_checkpoints(run, own_run)


def test_it_is_exported_and_sized_with_all_its_tables(own_run: Run, tmp_path: Path) -> None:
    folder = export(own_run, tmp_path / "models")  # which compares trained, eager, scripted and reloaded answers
    assert Artifact.open(folder).manifest.network["fusion"]["own_embeddings"] is True
    write_feed(tmp_path / "data")
    shared = train(TrainingConfig.load(training_file(tmp_path, network=SHARED, epochs=1)), show=False)
    own, one = sizes(own_run), sizes(shared)
    assert own["embedding_parameters"] == 3 * one["embedding_parameters"]
    assert own["parameters"] == one["parameters"]
    assert own["multiply_adds_per_row"] == one["multiply_adds_per_row"]


def test_inspect_says_that_nothing_is_shared(own_run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert main(["inspect", str(own_run.path)]) == 0
    assert "share nothing" in caplog.text
    written = json.loads((own_run.path / "inside" / "inside.json").read_text(encoding="utf-8"))
    assert written["gradient_conflicts"] is None
    assert [path.name for path in (own_run.path / "inside").iterdir()] == ["inside.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_methods_at_the_shared_row_are_refused(tmp_path: Path, kind: str) -> None:
    path = training_file(tmp_path, network=NETWORK, balancing={"kind": kind})
    if kind in ("none", "uncertainty", "famo"):
        TrainingConfig.load(path)
        return
    with pytest.raises(ValueError, match=rf"training\.yaml: balancing: {kind} .* own_embeddings: false"):
        TrainingConfig.load(path)
