"""Training: it learns, repeats bit for bit, stops and resumes exactly, and refuses what it cannot train."""

import csv
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import expit, logit
from sklearn.metrics import log_loss, roc_auc_score

from tests.training_data import (
    SCHEMA,
    Stopped,
    assert_same_checkpoints,
    assert_same_state,
    feed_table,
    files_of,
    saved_state,
    stop_at,
    training_file,
    write_feed,
)
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.datasets.simulate import simulate
from training.evaluate.evaluate import evaluate
from training.evaluate.validation import predict, relative_errors, validation_objective
from training.fit.id_report import IDS
from training.run.checkpoints import FOLDER, MANIFEST
from training.run.data_record import RECORD
from training.run.run import BEST, CONFIG, FITTED, LAST, LOG, SUMMARY, Run, locked
from training.run.run import SCHEMA as SCHEMA_FILE
from training.train import train


def config_of(folder: Path, *changes: str, **top_level: Any) -> TrainingConfig:
    """A training file in `folder`, its data in place."""
    if not (folder / "data").exists():
        write_feed(folder / "data", 600)
    return TrainingConfig.load(training_file(folder, **top_level), changes)


def finish(config: TrainingConfig) -> Run:
    return train(config, show=False)


def log_of(run: Run) -> list[dict[str, str]]:
    return list(csv.DictReader((run.path / LOG).read_text(encoding="utf-8").splitlines()))


def assert_same_run(one: Run, other: Run) -> None:
    """Weights, optimizer state and history of two runs are equal bit for bit. Only their clocks differ."""
    assert_same_checkpoints(one, other)
    assert (one.path / LOG).read_bytes() == (other.path / LOG).read_bytes()
    summaries = [run.summary() for run in (one, other)]
    for summary in summaries:
        del summary["seconds"], summary["peak_memory_mib"]
    assert summaries[0] == summaries[1]


# Learning


def test_training_beats_the_base_rate_and_popularity_on_the_simulated_feed(tmp_path: Path) -> None:
    simulate(20_000, 5, tmp_path / "data", users=300, items=80)
    schema = Path("configs/schemas/simulated.yaml").read_text(encoding="utf-8")
    split = {"column": "date", "train": {"max": 20240112}, "validation": 20240113, "test": 20240114}
    data = {"path": str(tmp_path / "data"), "split": split, "group_by": "user_id"}
    changes = ["network.fusion.levels=[16, 8]", "optimizer.tables.learning_rate=0.1"]
    changes.append("optimizer.dense.learning_rate=0.005")
    config = config_of(tmp_path, *changes, schema=schema, data=data, epochs=3, batch_size=256)
    run = finish(config)
    assert run.summary()["best_objective"] < 0.95

    tables = read_splits(config.data, run.schema, ("train", "validation"))
    columns = columns_from_arrow(run.schema, tables["validation"])
    rows = Rows.encode(run.schema, run.encoder, tables["validation"], columns, as_served=False)
    clicks = tables["validation"].column("click").to_numpy()
    score = predict(run.best_ranker(), rows)[:, 0]
    # Popularity: the item's smoothed click rate in the training days, by plain counting.
    seen: dict[str, list[int]] = {}
    for item, click in zip(*(tables["train"].column(name).to_pylist() for name in ("item_id", "click")), strict=True):
        seen.setdefault(item, []).append(click)
    popularity = [
        (sum(seen.get(item, [])) + 1) / (len(seen.get(item, [])) + 10)
        for item in tables["validation"].column("item_id").to_pylist()
    ]
    assert roc_auc_score(clicks, score) > roc_auc_score(clicks, popularity) + 0.01


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first = finish(config_of(tmp_path))
    assert_same_run(first, finish(config_of(tmp_path, f"output={tmp_path}/again")))
    other = finish(config_of(tmp_path, f"output={tmp_path}/other", "seed=4"))
    weights = [run.best_ranker().network.state_dict() for run in (first, other)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_each_epoch_sees_every_row_once_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[int]] = []
    original = Rows.take_batch

    def remember(self: Rows, rows_B: torch.Tensor) -> Any:
        taken.append(rows_B.tolist())
        return original(self, rows_B)

    monkeypatch.setattr(Rows, "take_batch", remember)
    config = config_of(tmp_path)
    run = finish(config)
    counts = run.summary()["rows"]
    steps = math.ceil(counts["train"] / config.batch_size)
    passes = steps + math.ceil(counts["validation"] / 8192)
    # The first of all are the validation rows on which gates are watched.
    epochs = [taken[start : start + steps] for start in range(1, config.epochs * passes, passes)]
    orders = [[row for batch in epoch for row in batch] for epoch in epochs]
    assert all(sorted(order) == list(range(counts["train"])) for order in orders)
    assert orders[0] != orders[1]


# What is measured and kept


def test_the_best_checkpoint_is_the_minimum_of_the_log(finished_run: Run) -> None:
    lines = log_of(finished_run)
    objectives = [float(line["validation_objective"]) for line in lines]
    best = int(np.argmin(objectives))
    progress = saved_state(finished_run.path / BEST)["progress"]
    assert progress["best_epoch"] == best == progress["epoch"] - 1
    assert finished_run.summary()["best_epoch"] == best + 1
    assert finished_run.summary()["best_objective"] == objectives[best]
    assert [int(line["epoch"]) for line in lines] == [1, 2, 3]


def test_the_objective_is_the_weighted_mean_of_ne_and_relative_squared_error(finished_run: Run) -> None:
    table = read_splits(finished_run.config.data, finished_run.schema, ("validation",))["validation"]
    columns = columns_from_arrow(finished_run.schema, table)
    rows = Rows.encode(finished_run.schema, finished_run.encoder, table, columns, as_served=False)
    logits_BO = predict(finished_run.best_ranker(), rows).astype(np.float64)
    known = np.array(table.column("like_known").to_pylist())
    expected = []
    for position, (label, observed) in enumerate((("is_click", np.ones_like(known)), ("is_like", known))):
        labels = np.array(table.column(label).to_pylist(), float)[observed]
        base = log_loss(labels, np.full(len(labels), labels.mean()))
        expected.append(log_loss(labels, expit(logits_BO[observed, position])) / base)
    logs = np.log1p(table.column("watch_ms").to_numpy())
    train_logs = np.log1p(
        read_splits(finished_run.config.data, finished_run.schema, ("train",))["train"].column("watch_ms").to_numpy()
    )
    predicted = logits_BO[:, 2] * train_logs.std() + train_logs.mean()
    expected.append(np.mean((predicted - logs) ** 2) / np.var(logs))
    # Targets are kept as float32.
    line = log_of(finished_run)[finished_run.summary()["best_epoch"] - 1]
    logged = [float(line[f"validation_{task}"]) for task in ("click", "like", "watch")]
    np.testing.assert_allclose(logged, expected, rtol=1e-5)
    weighted = (expected[0] + 0.5 * expected[1] + expected[2]) / 2.5
    assert float(line["validation_objective"]) == pytest.approx(weighted, rel=1e-5)


def test_a_constant_at_the_base_rate_has_an_objective_of_one(finished_run: Run) -> None:
    table = read_splits(finished_run.config.data, finished_run.schema, ("validation",))["validation"]
    columns = columns_from_arrow(finished_run.schema, table)
    rows = Rows.encode(finished_run.schema, finished_run.encoder, table, columns, as_served=False)
    observed, targets = rows.observed_BT.double().numpy(), rows.targets_BT.double().numpy()
    means_T = (observed * targets).sum(axis=0) / observed.sum(axis=0)
    constant_T = np.array([logit(means_T[0]), logit(means_T[1]), means_T[2]])
    errors = relative_errors(finished_run.schema, np.tile(constant_T, (len(rows), 1)).astype(np.float32), rows)
    assert errors == pytest.approx({"click": 1.0, "like": 1.0, "watch": 1.0}, rel=1e-5)
    assert validation_objective(finished_run.schema, errors) == pytest.approx(1.0, rel=1e-5)


def test_early_stopping_ends_after_patience_epochs_without_gain(tmp_path: Path) -> None:
    # So high a rate learns the training days by heart at once, and gets worse on the validation day.
    config = config_of(
        tmp_path,
        "optimizer.tables={kind: adam, learning_rate: 0.3}",
        "optimizer.dense.learning_rate=0.1",
        "early_stopping.patience=2",
        epochs=40,
    )
    run = finish(config)
    objectives = [float(line["validation_objective"]) for line in log_of(run)]
    assert len(objectives) < 40
    assert int(np.argmin(objectives)) == len(objectives) - 1 - 2
    assert run.summary()["epochs"] == len(objectives)


def test_without_early_stopping_every_epoch_is_run(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, "optimizer.dense.learning_rate=0.1", "early_stopping=null", "batch_size=1000", epochs=6
    )
    assert len(log_of(finish(config))) == 6


# Interruption


@pytest.mark.parametrize(
    ("tables", "schedule"),
    [("rowwise_adagrad", "constant"), ("rowwise_adagrad", "cosine"), ("adam", "cosine"), ("adagrad", "cosine")],
)
@pytest.mark.parametrize("save_every_step", [True, False])
def test_an_interrupted_run_ends_with_the_weights_of_one_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: str, schedule: str, save_every_step: bool
) -> None:
    changes = [
        f"optimizer={{tables: {{kind: {tables}}}, schedule: {schedule}}}",
        f"checkpoint_seconds={1e-9 if save_every_step else 1000}",
    ]
    whole = finish(config_of(tmp_path, *changes, f"output={tmp_path}/whole"))
    steps = math.ceil(whole.summary()["rows"]["train"] / 64)
    assert steps > 4
    # In the middle of the first epoch, again in the second, and at the very last step of all.
    for step in (3, 2 if save_every_step else steps + 2, steps):
        with monkeypatch.context() as patched:
            stop_at(patched, step)
            with pytest.raises(Stopped):
                finish(config_of(tmp_path, *changes))
        assert not (tmp_path / "run" / SUMMARY).exists()
        if save_every_step:
            assert saved_state(tmp_path / "run" / LAST)["progress"]["step_in_epoch"] > 0
    assert_same_run(finish(config_of(tmp_path, *changes)), whole)


def test_a_finished_run_started_again_changes_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    run = finish(config)
    shutil.copytree(run.path, tmp_path / "before", symlinks=True)
    finish(config)
    assert files_of(run.path / FOLDER) == files_of(tmp_path / "before" / FOLDER)
    assert (run.path / LOG).read_bytes() == (tmp_path / "before" / LOG).read_bytes()


def test_a_fresh_start_does_not_pass_for_the_run_that_was_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finish(config_of(tmp_path))
    evaluate(run, "test", replicates=2)
    shutil.rmtree(run.path / FOLDER)
    stop_at(monkeypatch, 2)
    with pytest.raises(Stopped):
        finish(config_of(tmp_path, "seed=8"))
    left = {path.name for path in run.path.iterdir() if path.is_file()}
    assert left == {".lock", CONFIG, SCHEMA_FILE, FITTED, RECORD, IDS}
    with pytest.raises(ValueError, match="has not finished"):
        Run.open(run.path).summary()


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("the configuration", {"batch_size": 32}),
        ("the configuration", {"seed": 9}),
        ("the schema", {"schema": SCHEMA.replace("max_length: 3", "max_length: 2")}),
        ("the data", {}),
    ],
)
def test_another_run_in_the_same_folder_is_refused(tmp_path: Path, what: str, changes: dict[str, Any]) -> None:
    run = finish(config_of(tmp_path))
    before = files_of(run.path / FOLDER)
    if not changes:
        shutil.rmtree(tmp_path / "data")
        write_feed(tmp_path / "data", 600, seed=1)
    with pytest.raises(ValueError, match=f"run: holds a run from which .*{what}.* differ"):
        finish(config_of(tmp_path, **changes))
    assert files_of(run.path / FOLDER) == before


@pytest.mark.parametrize("day", [1, 5])
def test_data_with_one_other_label_is_refused_although_nothing_was_fitted_on_it(tmp_path: Path, day: int) -> None:
    config = config_of(tmp_path)
    finish(config)
    part = next(path for path in sorted((tmp_path / "data").iterdir()) if day in pq.read_table(path)["day"].to_pylist())
    table = pq.read_table(part)
    clicks = table.column("is_click").to_pylist()
    row = table.column("day").to_pylist().index(day)
    clicks[row] = 1 - clicks[row]
    place = table.schema.get_field_index("is_click")
    pq.write_table(table.set_column(place, "is_click", pa.array(clicks, pa.int8())), part)
    with pytest.raises(ValueError, match=r"the data differs \(rows of split (train|validation) have changed\)"):
        finish(config)


def test_a_second_run_in_one_folder_at_the_same_time_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with locked(config.output), pytest.raises(ValueError, match="another run is writing here"):
        finish(config)
    finish(config)


def test_damaged_checkpoints_are_passed_over_aloud_and_all_of_them_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, "checkpoint_seconds=1e-9")
    run = finish(config)
    whole = saved_state(run.path / LAST)
    newest = (run.path / LAST).resolve()
    tables = newest / "tables-0.pt"
    tables.write_bytes(tables.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        finish(config)
    assert f"{newest}: the checkpoint is damaged (tables-0.pt: its checksum does not match); using" in caplog.text
    again = saved_state(run.path / LAST)
    for state in (whole, again):
        del state["progress"]["seconds"]
    assert_same_state(again, whole)
    for folder in (run.path / FOLDER).glob("[0-9]*"):
        (folder / MANIFEST).write_text("{}", encoding="utf-8")
    before = files_of(run.path / FOLDER)
    with pytest.raises(ValueError, match="every checkpoint is damaged"):
        finish(config)
    assert files_of(run.path / FOLDER) == before


# What cannot be trained


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(tmp_path: Path) -> None:
    changes = ["optimizer.dense.learning_rate=1e30", "checkpoint_seconds=1e-9"]
    with pytest.raises(ValueError, match=r"not finite in epoch 1, step [23]; .*; the last good checkpoint is kept"):
        finish(config_of(tmp_path, *changes))
    state = saved_state(tmp_path / "run" / LAST)
    for name, weights in state["ranker"].items():
        assert torch.isfinite(weights).all(), name
    assert not (tmp_path / "run" / SUMMARY).exists()


def test_weights_that_break_in_the_last_step_of_an_epoch_are_not_kept(tmp_path: Path) -> None:
    # One step an epoch: the loss is finite, the step is not, and the validation split is the first to see it.
    config = config_of(tmp_path, "optimizer.dense.learning_rate=1e38", "batch_size=10000")
    with pytest.raises(ValueError, match=r"not finite after epoch 1, \d+ rows; .*; the last good checkpoint is kept"):
        finish(config)
    assert not (tmp_path / "run" / LAST).exists()
    assert not (tmp_path / "run" / BEST).exists()


def one_label_only(folder: Path, columns: list[str]) -> None:
    """Sets labels of the validation day to 0."""
    table = feed_table(600)
    validation = np.array(table.column("day").to_pylist()) == 5
    for name in columns:
        values = np.where(validation, 0, np.nan_to_num(np.array(table.column(name).to_pylist(), float)))
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    folder.mkdir()
    pq.write_table(table, folder / "all.parquet")


def test_a_task_with_one_label_in_validation_is_warned_about_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one_label_only(tmp_path / "data", ["is_like"])
    with caplog.at_level(logging.WARNING):
        run = finish(config_of(tmp_path, epochs=1))
    assert "task like has one label only in the validation split" in caplog.text
    (line,) = log_of(run)
    assert "validation_like" not in line
    expected = (float(line["validation_click"]) + float(line["validation_watch"])) / 2
    assert float(line["validation_objective"]) == pytest.approx(expected, rel=1e-12)


def test_a_validation_split_that_measures_nothing_is_refused(tmp_path: Path) -> None:
    one_label_only(tmp_path / "data", ["is_like", "is_click", "watch_ms"])
    with pytest.raises(ValueError, match="no task with a positive loss_weight has both labels in the validation split"):
        finish(config_of(tmp_path))


def test_a_full_disk_ends_training_and_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, "checkpoint_seconds=1e-9")
    whole = finish(config_of(tmp_path, "checkpoint_seconds=1e-9", f"output={tmp_path}/whole"))
    saves = [0]
    original = os.fsync

    def full(descriptor: int) -> None:
        saves[0] += 1
        if saves[0] == 30:  # five or six a checkpoint
            raise OSError(28, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ValueError, match="No space left on device"):
            finish(config)
    assert saved_state(config.output / LAST)["progress"]["step_in_epoch"] > 0
    assert_same_run(finish(config), whole)


def test_the_configuration_of_a_run_is_kept_whole(finished_run: Run) -> None:
    content = json.loads((finished_run.path / "config.json").read_text(encoding="utf-8"))
    assert content == finished_run.config.dump()
    assert content["optimizer"]["dense"] == {"kind": "adam", "learning_rate": 0.001, "weight_decay": 0.0}
