"""A training file beside the run in its output folder. Longer runs go on and equal runs that were as long from the
start. Other runs are refused by the keys that differ, with both values."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from tests.training_data import SCHEMA, assert_same_checkpoints, files_of, training_file, write_feed
from training.config import TrainingConfig
from training.evaluate.evaluate import evaluate
from training.run.checkpoints import FOLDER
from training.run.run import Run
from training.train import train


def trained(folder: Path, **changes: Any) -> Run:
    """A run in `folder`/run, on a small log."""
    if not (folder / "data").exists():
        write_feed(folder / "data", 300)
    return train(TrainingConfig.load(training_file(folder, **{"early_stopping": None, **changes})), show=False)


def test_a_finished_run_with_more_epochs_equals_one_that_had_them_from_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_feed(tmp_path / "data", 300)
    whole = trained(tmp_path, epochs=3, output=str(tmp_path / "whole"))
    run = trained(tmp_path, epochs=1)
    evaluate(run, "test", replicates=2)
    with caplog.at_level(logging.INFO):
        longer = trained(tmp_path, epochs=3)
    assert "its run of 1 epoch goes on, to 3" in caplog.text
    assert_same_checkpoints(whole, longer)
    assert Run.open(run.path).config.epochs == 3
    summaries = [one.summary() for one in (whole, longer)]
    assert [(one["epochs"], one["best_objective"]) for one in summaries] == [(3, summaries[0]["best_objective"])] * 2
    assert not (run.path / "evaluation-test.json").exists()


def test_a_schedule_over_all_epochs_is_said_to_give_other_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, epochs=1, optimizer={"schedule": "cosine"})
    caplog.clear()
    trained(tmp_path, epochs=2, optimizer={"schedule": "cosine"})
    assert "cosine: until here the rates fell as over 1 epoch, from here as over 2" in caplog.text


def test_more_patience_goes_on_where_a_run_stopped_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # So large a rate makes every epoch worse than the first.
    rates = {"dense": {"learning_rate": 0.5}, "tables": {"learning_rate": 5.0}}
    changes = {"epochs": 5, "optimizer": rates}
    run = trained(tmp_path, **changes, early_stopping={"patience": 1})
    stopped = run.summary()["epochs"]
    assert stopped < 5
    with caplog.at_level(logging.INFO):
        trained(tmp_path, **changes, early_stopping={"patience": 1})
    assert f"has finished after {stopped} epochs (early_stopping); nothing is left to train" in caplog.text
    with caplog.at_level(logging.INFO):
        assert trained(tmp_path, **changes, early_stopping=None).summary()["epochs"] == 5
    assert f"{run.path}: its run goes on with other early stopping" in caplog.text


def test_what_decides_no_weight_may_change(tmp_path: Path) -> None:
    trained(tmp_path, epochs=1)
    again = trained(tmp_path, epochs=1, checkpoint_seconds=5.0, checkpoints_kept=4)
    assert Run.open(again.path).config.checkpoints_kept == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 9}, "the configuration differs (seed: 3 there, 9 here)"),
        ({"epochs": 1}, "the configuration differs (epochs: 3 there, 1 here)"),
        ({"batch_size": 32, "threads": 2}, "(batch_size: 64 there, 32 here; threads: 1 there, 2 here)"),
        ({"early_stopping": {"patience": 1}}, "(early_stopping.patience: 2 there, 1 here)"),
        (
            {"network": {"fusion": {"kind": "adatt_sp", "levels": [8], "experts_per_task": 2}, "tower": [4]}},
            "(network.fusion.experts_per_task: 1 there, 2 here)",
        ),
        (
            {"schema": SCHEMA.replace("max_length: 3", "max_length: 2")},
            "the schema differs (features.history.max_length: 3 there, 2 here)",
        ),
    ],
)
def test_another_run_is_refused_by_its_keys_with_both_values(
    finished_run: Run, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    given = {**finished_run.config.model_dump(mode="json", by_alias=True), **changes}
    if "schema" in changes:
        (tmp_path / "schema.yaml").write_text(changes["schema"], encoding="utf-8")
        given["schema"] = str(tmp_path / "schema.yaml")
    before = files_of(finished_run.path / FOLDER)
    with pytest.raises(ValueError, match=re.escape(says)):
        train(TrainingConfig.from_mapping(given, "test"), show=False)
    assert files_of(finished_run.path / FOLDER) == before
