"""First lines of every job: files, folders, rows, rows by split and in none, what was left out and why."""

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.artifacts import publish_artifact
from tests.training.score.test_score import log_table
from tests.training_data import feed_table, training_file
from training.config import TrainingConfig
from training.fit.report import report_of_file
from training.fit.vocabulary import build_vocabulary
from training.score.job import Job
from training.score.run import score
from training.train import train


def write_log(folder: Path) -> None:
    """Two folders of a file, days 1 to 6 in all, a bad row on days 2 and 6 each, and nulls among the users."""
    table = feed_table(240)
    days = table.column("day").to_pylist()
    clicks = table.column("is_click").to_pylist()
    clicks[days.index(2)] = clicks[days.index(6)] = 7
    table = table.set_column(table.schema.get_field_index("is_click"), "is_click", pa.array(clicks, pa.int8()))
    table = table.append_column("person", pa.array([None if row % 5 == 0 else row % 9 for row in range(240)]))
    for part, rows in enumerate((table.slice(0, 100), table.slice(100))):
        place = folder / f"part={part}"
        place.mkdir(parents=True)
        pq.write_table(rows, place / "log.parquet", row_group_size=30)
        (place / "_SUCCESS").touch()
    (folder / "truth").mkdir()


def expected(folder: Path) -> str:
    table = feed_table(240)
    days = table.column("day").to_pylist()
    rows = {day: days.count(day) for day in range(1, 7)}
    of_train = [row for row, day in enumerate(days) if day <= 4]
    train_rows, none = rows[1] + rows[2] + rows[3] + rows[4] - 1, rows[6]
    ungrouped = sum(row % 5 == 0 for row in [*of_train, *(row for row, day in enumerate(days) if day == 5)])
    return (
        f"{folder}: 2 files in 2 folders, 240 rows\n"
        f"  train {train_rows} rows, validation {rows[5]} rows; in no split {none} rows\n"
        "  left out 1 row: column 'is_click' (task click): must be 0 or 1\n"
        f"  one group of {ungrouped} rows without 'person' (data.group_by)\n"
        "  not read: 2 hidden: part=0/_SUCCESS, part=1/_SUCCESS\n"
        "  not read: 1 neither *.parquet nor a partition: truth"
    )


JOBS: dict[str, Callable[[TrainingConfig], object]] = {
    "train": lambda config: train(config, show=False),
    "report": lambda config: report_of_file(config, show=False),
    "vocabulary": lambda config: build_vocabulary(config, show=False),
}


@pytest.mark.parametrize(
    ("job", "read"), [("train", "memory"), ("train", "stream"), ("report", "stream"), ("vocabulary", "memory")]
)
def test_a_job_says_first_what_it_found(tmp_path: Path, caplog: pytest.LogCaptureFixture, job: str, read: str) -> None:
    write_log(tmp_path / "data")
    path = training_file(tmp_path, epochs=1)
    changes = [
        "data.split.test=null",
        "data.group_by=person",
        "data.max_bad_rows=1",
        f"data.read={read}",
        "data.lanes=2",
    ]
    config = TrainingConfig.load(path, changes)
    with caplog.at_level(logging.INFO, "training"):
        JOBS[job](config)
    said = [message for message in caplog.messages if " files in " in message]
    assert said == [expected(tmp_path / "data")]
    if job == "report":
        assert "240 rows" in (config.output / "data_report.md").read_text(encoding="utf-8")


def test_scoring_says_first_what_it_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    version = publish_artifact(tmp_path / "models")
    table = log_table(3)
    (tmp_path / "log").mkdir()
    for name in ("a.parquet", ".b.parquet"):
        pq.write_table(table, tmp_path / "log" / name)
    with caplog.at_level(logging.INFO, "training"):
        score(Job.of(version, str(tmp_path / "log"), tmp_path / "out"), show=False)
    rows = table.num_rows
    assert f"{tmp_path}/log: 1 file in 1 folder, {rows} rows\n  not read: 1 hidden: .b.parquet" in caplog.messages
