"""Training on a stream: it fits and validates on what memory does, resumes bit for bit, and says what it left out."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.features.encoder import FeatureEncoder
from tests.training_data import SCHEMA, Stopped, assert_same_state, feed_table, saved_state, stop_at, training_file
from training.config import TrainingConfig
from training.data.reader import LogReader
from training.data.rows import read_splits
from training.fit.splits import open_splits
from training.run.progress import TrainingProgress
from training.run.run import LAST
from training.train import train

ROWS = 1200


def write_log(folder: Path, table: pa.Table) -> Path:
    (folder / "data").mkdir()
    for part, start in enumerate(range(0, table.num_rows, 400)):
        pq.write_table(table.slice(start, 400), folder / "data" / f"part-{part}.parquet", row_group_size=90)
    return folder


def config_of(folder: Path, **changes: Any) -> TrainingConfig:
    sets = {"data.read": "stream", "data.lanes": 4, "output": folder / "run", **changes}
    return TrainingConfig.load(training_file(folder), [f"{key}={value}" for key, value in sets.items()])


def summary_of(folder: Path) -> Any:
    return json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))


def test_a_stream_fits_and_validates_on_what_memory_does(tmp_path: Path) -> None:
    write_log(tmp_path, feed_table(ROWS))
    streamed, held = (
        open_splits(config, config.feed_schema(), show=False)
        for config in (config_of(tmp_path), config_of(tmp_path, **{"data.read": "memory"}))
    )
    assert streamed.fitted().vocabularies == held.fitted().vocabularies
    for name, steps in held.fitted().numbers.items():
        for step, other in zip(steps, streamed.fitted().numbers[name], strict=True):
            # Sums in another order.
            assert (other.mean, other.scale) == pytest.approx((step.mean, step.scale), rel=1e-9)
    config = config_of(tmp_path)
    encoder = FeatureEncoder(config.feed_schema(), held.fitted())
    (source, rows), (other_source, other_rows) = streamed.encoded(encoder), held.encoded(encoder)
    assert rows.fingerprint() == other_rows.fingerprint()
    assert (source.rows, source.steps) == (other_source.rows, other_source.steps)


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        write_log(tmp_path / name, feed_table(ROWS))
        config = config_of(tmp_path / name, checkpoint_seconds=1e-6)
        if name == "stopped":
            for step in (5, 9):
                with monkeypatch.context() as patched:
                    stop_at(patched, step)
                    with pytest.raises(Stopped):
                        train(config, show=False)
        train(config, show=False)
        states.append(saved_state(tmp_path / name / "run" / LAST))
    for state in states:
        state["progress"]["seconds"] = 0.0
    assert_same_state(states[0], states[1])
    assert summary_of(tmp_path / "whole")["rows_left_out"] == {}
    assert (tmp_path / "whole" / "run" / "data_report.md").exists()


def test_a_second_start_neither_counts_nor_fits_nor_reports_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path, feed_table(ROWS))
    stop_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        train(config_of(tmp_path), show=False)
    monkeypatch.undo()
    stop_at(monkeypatch, 1)
    read: list[Any] = []
    parts = LogReader.parts

    def noted(self: LogReader, *where: Any) -> Any:
        read.append(where)
        return parts(self, *where)

    monkeypatch.setattr(LogReader, "parts", noted)
    with pytest.raises(Stopped):
        train(config_of(tmp_path), show=False)
    # The validation day is read whole. Of the training split the windows that the first steps stand in, one ahead.
    groups = {(file.name, group) for file, _, group in read}
    assert len(groups) < sum(-(-400 // 90) for _ in range(3))


@pytest.mark.parametrize("read", ["memory", "stream"])
def test_bad_rows_are_left_out_said_and_in_the_summary(
    tmp_path: Path, read: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = feed_table(ROWS)
    durations = np.array(table.column("duration").to_pylist(), float)
    durations[[3, 500]] = np.inf
    place = table.schema.get_field_index("duration")
    missing = np.isnan(durations)
    write_log(tmp_path, table.set_column(place, "duration", pa.array(durations, mask=missing)))
    with caplog.at_level(logging.WARNING):
        train(config_of(tmp_path, epochs=1, **{"data.max_bad_rows": 2, "data.read": read}), show=False)
    reason = "column 'duration': NaN or infinity; write null where a number is missing"
    assert summary_of(tmp_path)["rows_left_out"] == {reason: 2}
    assert f"2 rows left out: {reason}" in caplog.messages
    trains = np.asarray(table.column("day")) <= 4
    assert summary_of(tmp_path)["rows"]["train"] == int(trains.sum()) - 2
    config = config_of(tmp_path, **{"data.max_bad_rows": 1, "data.read": read, "output": tmp_path / "other"})
    with pytest.raises(ValueError, match=r"column 'duration': row .*more rows are bad than data.max_bad_rows 1 allows"):
        train(config, show=False)


@pytest.mark.parametrize("read", ["memory", "stream"])
def test_labels_all_of_one_class_are_refused_by_name(tmp_path: Path, read: str) -> None:
    table = feed_table(300)
    place = table.schema.get_field_index("is_click")
    write_log(tmp_path, table.set_column(place, "is_click", pa.array([1] * 300)))
    with pytest.raises(ValueError, match="task click: label 'is_click' is 1 in all"):
        train(config_of(tmp_path, **{"data.read": read}), show=False)


def test_a_file_that_goes_away_midway_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path, feed_table(ROWS))
    config = config_of(tmp_path, checkpoint_seconds=1e-6, **{"data.readers": 0})
    steps, advance = [0], TrainingProgress.advance

    def move_away(self: TrainingProgress, rows: int, loss: float) -> None:
        advance(self, rows, loss)
        steps[0] += 1
        if steps[0] == 6:
            for file in (tmp_path / "data").glob("*.parquet"):
                file.rename(file.with_suffix(".away"))

    with monkeypatch.context() as patched:
        patched.setattr(TrainingProgress, "advance", move_away)
        with pytest.raises(ValueError, match=r"part-\d\.parquet: is not there; put it back"):
            train(config, show=False)
    for file in (tmp_path / "data").glob("*.away"):
        file.rename(file.with_suffix(".parquet"))
    stood = saved_state(tmp_path / "run" / LAST)["progress"]
    assert (stood["epoch"], stood["step_in_epoch"]) > (0, 0)
    train(config, show=False)
    assert summary_of(tmp_path)["status"] == "finished"
    rows = read_splits(config.data, config.feed_schema(), ("train",))["train"].num_rows
    assert summary_of(tmp_path)["rows"]["train"] == rows


@pytest.mark.parametrize("read", ["memory", "stream"])
def test_a_label_beside_which_all_others_vanish_is_named(
    tmp_path: Path, read: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = feed_table(300)
    watched = table.column("watch_ms").to_pylist()
    watched[5] = 1e30
    place = table.schema.get_field_index("watch_ms")
    write_log(tmp_path, table.set_column(place, "watch_ms", pa.array(watched)))
    schema = SCHEMA.replace("label: watch_ms, transform: log1p", "label: watch_ms")
    path = training_file(tmp_path, schema=schema, epochs=1)
    config = TrainingConfig.load(path, [f"data.read={read}", "data.lanes=4"])
    with caplog.at_level(logging.WARNING):
        train(config, show=False)
    says = "task watch: label 'watch_ms' is 1e+30 in a row of split train, over 1e+06 times the mean of all others"
    assert says in caplog.text
    assert "task watch has labels that are equal in float32 in the validation split" in caplog.text
