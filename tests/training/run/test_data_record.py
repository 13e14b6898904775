"""Measurements after the data changed say so, by the file's name. A copy of the same bytes is the same data."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training_data import training_file, write_feed
from training.config import TrainingConfig
from training.evaluate.evaluate import evaluate
from training.inspect.inspect import inspect
from training.publish.export import export
from training.run.run import Run
from training.train import train

READERS: list[Callable[[Run, Path], object]] = [
    lambda run, folder: evaluate(run, "test", replicates=2),
    lambda run, folder: inspect(run, num_batches=2),
    lambda run, folder: export(run, folder / "models"),
]


@pytest.fixture(scope="module", params=["memory", "stream"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("recorded")
    write_feed(folder / "data", 600)
    return train(TrainingConfig.load(training_file(folder, epochs=1), [f"data.read={request.param}"]), show=False)


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy of the run whose data is a copy too."""
    shutil.copytree(trained.path, tmp_path / "run", symlinks=True)
    shutil.copytree(trained.path.parent / "data", tmp_path / "data")  # copystat keeps the times
    config = trained.config.model_copy(
        update={"data": trained.config.data.model_copy(update={"path": tmp_path / "data"}), "output": tmp_path / "run"}
    )
    return Run(tmp_path / "run", config, trained.schema, trained.fitted)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "was trained" in record.getMessage()]


def inverted(path: Path) -> None:
    """Other labels, in a file of the same size, kept at the same rows."""
    table = pq.read_table(path)
    labels = pa.array(1 - np.asarray(table.column("is_click")))
    pq.write_table(table.set_column(table.schema.get_field_index("is_click"), "is_click", labels), path)


@pytest.mark.parametrize("read", READERS)
def test_a_changed_file_is_named(
    read: Callable[[Run, Path], object], run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "training")
    read(run, tmp_path)
    assert said(caplog) == []
    inverted(tmp_path / "data" / "part-1.parquet")
    read(run, tmp_path)
    (line,) = said(caplog)
    how = "has changed" if run.config.data.read == "memory" else "has another size or time"
    assert line.startswith(f"{tmp_path}/data/part-1.parquet: {how} since {run.path} was trained")


def test_files_that_are_gone_and_new_are_named(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "training")
    (tmp_path / "data" / "part-0.parquet").rename(tmp_path / "data" / "part-7.parquet")
    evaluate(run, "test", replicates=2)
    gone, new = said(caplog)
    assert gone.startswith(f"{tmp_path}/data/part-0.parquet: is gone since")
    assert "1 file new since" in new
    assert new.endswith("part-7.parquet")


def test_a_copy_with_other_times_is_the_same_data(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (tmp_path / "data").iterdir():
        os.utime(path, (1, 1))
    evaluate(run, "test", replicates=2)
    # A stream's bytes are not read once more for this: its files are identified by size and time.
    assert len(said(caplog)) == (0 if run.config.data.read == "memory" else 3)


def test_a_run_without_a_record_says_nothing(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run.path / "data_files.json").unlink()
    inverted(tmp_path / "data" / "part-1.parquet")
    evaluate(run, "test", replicates=2)
    assert said(caplog) == []
