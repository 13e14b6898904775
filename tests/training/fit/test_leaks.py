"""Warnings of leaks, by name: training rows later than validation's, labels among the features. No false alarm."""

import json
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray

from tests.training_data import SCHEMA, feed_table, training_file
from training.config import TrainingConfig
from training.fit.leaks import Times
from training.fit.report import report_of_file
from training.train import train

ROWS = 700
READ = ["memory", "stream", "report"]


def warnings_of(
    folder: Path, table: pa.Table, read: str, caplog: pytest.LogCaptureFixture, schema: str = SCHEMA, **split: Any
) -> list[str]:
    """Warnings of train, or report, for a log."""
    (folder / "data").mkdir()
    pq.write_table(table, folder / "data" / "log.parquet", row_group_size=150)
    changes = [f"data.split={json.dumps(split)}"] if split else []
    config = TrainingConfig.load(training_file(folder, schema=schema, epochs=1), changes)
    caplog.set_level(logging.WARNING, "training")
    if read == "report":
        report_of_file(config, show=False)
    else:
        train(config.model_copy(update={"data": config.data.model_copy(update={"read": read})}), show=False)
    return [line for line in caplog.messages if "later than" in line or "another name" in line]


def dated(table: pa.Table, kind: str) -> pa.Table:
    """The feed with a column of times in place of its days: 1 to 6 January 2024, an hour's offset a row."""
    days = table.column("day").to_pylist()
    times = [datetime(2024, 1, day) + timedelta(minutes=row % 1000) for row, day in enumerate(days)]
    values = {
        "timestamp": pa.array(times, pa.timestamp("ns")),
        "date": pa.array([time.date() for time in times]),
        "text": pa.array([time.strftime("%Y-%m-%d") for time in times]),
        "yyyymmdd": pa.array([int(time.strftime("%Y%m%d")) for time in times]),
        "epoch_ms": pa.array([1_704_067_200_000 + 86_400_000 * (day - 1) for day in days]),
    }[kind]
    return table.append_column("when", values)


BOUNDS: dict[str, tuple[Any, Any]] = {  # 3 January, for the validation split, and what is said of the last day
    "timestamp": ("2024-01-03", "2024-01-06"),
    "date": ("2024-01-03", "2024-01-06"),
    "text": ("2024-01-03", "2024-01-06"),
    "yyyymmdd": (20240103, "20240106"),
    "epoch_ms": (1_704_240_000_000, "1704499200000"),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_training_rows_later_than_validations_are_named(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A split whose validation day stands in the middle of the training days."""
    validation, last = BOUNDS[kind]
    table = dated(feed_table(ROWS), kind)
    days = table.column("when").cast(pa.string()).to_pylist() if kind == "text" else table.column("when").to_pylist()
    others = {"timestamp": {"min": "2024-01-04"}, "text": sorted(set(days) - {validation})}
    train_on = others.get(kind, {"min": BOUNDS[kind][0] + 1} if isinstance(validation, int) else {"min": "2024-01-04"})
    (line,) = warnings_of(tmp_path, table, "report", caplog, column="when", train=train_on, validation=validation)
    assert line.startswith(f"split train: has rows up to {last}")
    assert "later than the first of split validation" in line
    assert "column 'when'" in line


@pytest.mark.parametrize("read", READ)
def test_every_way_of_reading_says_it(read: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = dated(feed_table(ROWS), "date")
    train_on = {"min": "2024-01-03"}
    (line,) = warnings_of(tmp_path, table, read, caplog, column="when", train=train_on, validation="2024-01-02")
    assert "2024-01-06, later than the first of split validation (2024-01-02" in line


@pytest.mark.parametrize(
    "split",
    [
        {"column": "fold", "train": [1, 2, 3], "validation": 0},
        {"column": "name", "train": "training", "validation": "held_out"},
        {"column": "when", "train": {"max": "2024-01-04"}, "validation": "2024-01-05", "test": "2024-01-06"},
        {"column": "share", "train": {"min": 0.2}, "validation": {"max": 0.1}},
    ],
)
@pytest.mark.parametrize("read", ["memory", "report"])
def test_a_split_by_no_time_and_one_in_order_say_nothing(
    read: str, split: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = dated(feed_table(ROWS), "date")
    fold = np.arange(ROWS) % 4
    table = table.append_column("fold", pa.array(fold))
    table = table.append_column("name", pa.array(np.where(fold > 0, "training", "held_out")))
    table = table.append_column("share", pa.array(np.random.default_rng(0).random(ROWS)))
    assert warnings_of(tmp_path, table, read, caplog, **split) == []


def test_hashes_and_small_numbers_are_no_times() -> None:
    for values in ([0, 2**32 - 1], [20240101, 99999999], [1, 31], [True, False]):
        times = Times("column")
        times.add("train", pa.chunked_array([pa.array(values[1:])]))
        times.add("validation", pa.chunked_array([pa.array(values[:1])]))
        assert times.warnings() == [], values


def with_feature(table: pa.Table, values: Any, **feature: Any) -> tuple[pa.Table, str]:
    content = yaml.safe_load(SCHEMA)
    content["features"].append({"name": "twin", "side": "candidate", **feature})
    return table.append_column("twin", values), yaml.safe_dump(content)


NUMBER = {"kind": "number"}
# By name: the feature's values from click and watch time, its schema, the task.
Values = Callable[[NDArray[np.float64], NDArray[np.float64]], pa.Array]
TWINS: dict[str, tuple[Values, dict[str, Any], str]] = {
    "equal": (lambda click, watch: pa.array(click), NUMBER, "click"),
    "inverted, with nulls": (
        lambda click, watch: pa.array(1.0 - click, mask=np.arange(ROWS) % 3 == 0),
        NUMBER,
        "click",
    ),
    "as text": (
        lambda click, watch: pa.array(np.where(click > 0, "yes", "no")),
        {"kind": "id", "dtype": "string", "vocabulary": "fitted", "dim": 4},
        "click",
    ),
    "as ids": (
        lambda click, watch: pa.array(click.astype(np.int64) + 7),
        {"kind": "id", "buckets": 100, "dim": 4},
        "click",
    ),
    "in seconds": (lambda click, watch: pa.array(watch / 1000), NUMBER, "watch"),
}


@pytest.mark.parametrize(
    ("case", "read"), [*((case, "memory") for case in TWINS), ("inverted, with nulls", "stream"), ("as text", "report")]
)
def test_a_label_among_the_features_is_named(
    case: str, read: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, feature, task = TWINS[case]
    table = feed_table(ROWS)
    click, watch = (np.array(table.column(name).to_pylist(), float) for name in ("is_click", "watch_ms"))
    table, schema = with_feature(table, made(click, watch), **feature)
    (line,) = warnings_of(tmp_path, table, read, caplog, schema)
    assert line.startswith("feature twin: its values are decided by label")
    assert f"of task {task} in all" in line


@pytest.mark.parametrize("read", ["memory", "report"])
@pytest.mark.parametrize("case", ["one row differs", "constant", "rounded", "of few rows"])
def test_a_feature_that_is_no_label_says_nothing(
    case: str, read: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = feed_table(ROWS)
    click, watch = (np.array(table.column(name).to_pylist(), float) for name in ("is_click", "watch_ms"))
    values = {
        "one row differs": np.where(np.arange(ROWS) == 5, 1 - click, click),
        "constant": np.ones(ROWS),
        "rounded": np.rint(watch / 1000),
        "of few rows": click,
    }[case]
    is_null = np.arange(ROWS) >= (12 if case == "of few rows" else ROWS)
    table, schema = with_feature(table, pa.array(values, mask=is_null), **NUMBER)
    assert warnings_of(tmp_path, table, read, caplog, schema) == []
