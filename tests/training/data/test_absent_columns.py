"""Columns that some files of a log lack: the rows are those of a log in which the column is there, and null."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.training_data import SCHEMA, assert_same_checkpoints, feed_table, training_file
from training.__main__ import main
from training.config import DataConfig, TrainingConfig
from training.data.files import LogFiles
from training.data.index import index_of
from training.data.reader import LogReader
from training.data.rows import read_log
from training.fit.report import data_report
from training.train import train

RATED = """  - {name: rating, kind: multiclass, label: stars, classes: [bad, good], mask: is_rated}
"""
# A feature of each kind, a training_only one, and the labels of two tasks with their masks.
NEW = ("history", "tab", "duration", "position", "is_like", "like_known", "stars", "is_rated")
ROWS = 300


def rated_table(seed: int) -> pa.Table:
    rng = np.random.default_rng(seed + 10)
    table = feed_table(ROWS, seed).append_column("stars", pa.array(rng.choice(["bad", "good"], ROWS)))
    return table.append_column("is_rated", pa.array(rng.random(ROWS) < 0.5))


def with_nulls(table: pa.Table) -> pa.Table:
    """The table with nulls for what is new, and masks that are false."""
    for name in NEW:
        kind = table.schema.field(name).type
        values = pa.array([False] * ROWS) if name in ("like_known", "is_rated") else pa.nulls(ROWS, kind)
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def write_logs(folder: Path, *, absent: bool) -> TrainingConfig:
    """An old file, an hour without rows, a new file, and columns of the loop's own."""
    data = folder / "data"
    data.mkdir(parents=True)
    old, new = rated_table(0), rated_table(1)
    old = old.drop_columns([*NEW]) if absent else with_nulls(old)
    for place, table in enumerate((old, new.slice(0, 0), new)):
        own = pa.array([float(row % 3) for row in range(table.num_rows)], pa.float64())
        own_columns = table.append_column("_weight", own).append_column("_model_version", own.cast(pa.string()))
        pq.write_table(own_columns, data / f"part-{place}.parquet")
    file = training_file(folder, schema=SCHEMA + RATED, early_stopping=None, epochs=1)
    return TrainingConfig.load(file, ["data.weight=_weight"])


@pytest.mark.parametrize("read", ["memory", "stream"])
def test_a_run_equals_that_of_a_log_with_nulls(tmp_path: Path, read: str, caplog: pytest.LogCaptureFixture) -> None:
    runs = []
    for name, absent in (("absent", True), ("null", False)):
        config = write_logs(tmp_path / name, absent=absent)
        changed = config.model_copy(update={"data": config.data.model_copy(update={"read": read, "lanes": 4})})
        with caplog.at_level("INFO"):
            runs.append(train(changed, show=False))
        said = [f"column '{column}' is null in 1 file without it" in caplog.text for column in NEW]
        assert said == [absent] * len(NEW)
        caplog.clear()
    one, other = runs
    if read == "memory":  # a stream is bound to its files' footers, which differ
        assert_same_checkpoints(one, other)
    assert one.fitted == other.fitted
    columns = [line.split(",") for line in (one.path / "log.csv").read_text().splitlines()]
    others = [line.split(",") for line in (other.path / "log.csv").read_text().splitlines()]
    is_time = [name == "seconds" for name in columns[0]]
    assert [[v for v, t in zip(line, is_time, strict=True) if not t] for line in columns] == [
        [v for v, t in zip(line, is_time, strict=True) if not t] for line in others
    ]


def test_a_report_counts_the_files(tmp_path: Path) -> None:
    write_logs(tmp_path, absent=True)
    assert main(["report", str(tmp_path / "training.yaml")]) == 0
    page = (tmp_path / "run/data_report.md").read_text(encoding="utf-8")
    assert "- column 'duration' is null in 1 file without it" in page


def write_pair(folder: Path, old: pa.Table, new: pa.Table) -> DataConfig:
    for name, table in (("a", old), ("b", new)):
        pq.write_table(table, folder / f"{name}.parquet")
    split = {"column": "day", "train": {"max": 4}, "validation": 5}
    return DataConfig.from_mapping({"path": folder, "split": split, "group_by": "user_id", "weight": "_weight"}, "test")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"video": (None, None)}, r"a\.parquet: no column 'video', nor in another file of the log"),
        ({"is_click": (None, 1)}, r"a\.parquet: no column 'is_click'"),
        ({"user_id": (None, 1)}, r"a\.parquet: no column 'user_id'"),  # it names the groups
        ({"_weight": (1, None)}, r"b\.parquet: no column '_weight'"),
        ({"day": (1, None)}, r"b\.parquet: no column 'day'"),
        (
            {"is_like": (None, 1)},
            r"a\.parquet.*: no column 'is_like' \(task like\), whose mask 'like_known' is 1 in",
        ),
        ({"like_known": (1, None)}, r"b\.parquet: no column 'like_known', the mask of label 'is_like'; write both or"),
        ({"duration": (None, "text")}, r"b\.parquet: column 'duration'.* is string, not a number"),
    ],
)
@pytest.mark.parametrize("read", ["memory", "stream"])
def test_what_cannot_be_null_is_refused(tmp_path: Path, changes: dict[str, Any], says: str, read: str) -> None:
    tables = []
    for which in (0, 1):
        table = feed_table(100).append_column("_weight", pa.array([1.0] * 100))
        for name, kept in changes.items():
            if kept[which] is None:
                table = table.drop_columns([name])
            elif kept[which] == "text":
                table = table.set_column(table.schema.get_field_index(name), name, pa.array(["x"] * 100))
        tables.append(table)
    config = write_pair(tmp_path, *tables)
    schema = TrainingConfig.load(training_file(tmp_path)).feed_schema()
    reader = LogReader(config, schema)
    with pytest.raises(ValueError, match=says):
        read_log(config, schema, ("train",)) if read == "memory" else data_report(reader, index_of(reader), show=False)


def test_nothing_is_asked_of_days_that_no_split_takes(tmp_path: Path) -> None:
    """Old folders may lack what is in no later one: a label without a mask, the weight."""
    table = feed_table(100).drop_columns(["day"])
    for day in range(4):
        folder = tmp_path / "data" / f"day={day}"
        folder.mkdir(parents=True)
        kept = table.drop_columns(["is_click", "user_id", "watch_ms"]) if day == 0 else table
        pq.write_table(kept, folder / "part.parquet")
    content = yaml.safe_load(training_file(tmp_path).read_text())
    content["data"]["split"] = {"column": "day", "train": [1, 2], "validation": 3}
    config = TrainingConfig.from_mapping(content, "test")
    schema = config.feed_schema()
    tables, found = read_log(config.data, schema, ("train", "validation"))
    index = index_of(LogReader(config.data, schema))
    assert (tables["train"].num_rows, found.rows, found.in_no_split) == (200, 400, 100)
    assert index.found(LogFiles(config.data.path), None).in_no_split == 100
