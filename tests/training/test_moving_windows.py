"""Windows that move, from command to command: a run keeps the days that it began with, whatever has come since."""

import json
import logging
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.compare.test_compare_run import experiment_file
from tests.training_data import Stopped, assert_same_checkpoints, feed_table, stop_at, training_file
from training.__main__ import main
from training.config import TrainingConfig
from training.data.moving.windows import resolved
from training.run.run import Run
from training.split_config import MovingWindows
from training.train import train

CONFIGS = Path(__file__).parents[2] / "configs"

FIRST = date(2024, 3, 1)
SPLIT = {"column": "date", "end": "latest", "train": {"days": 3}, "validation": {"days": 1}, "test": {"days": 1}}


def write_days(folder: Path, days: range, rows: int = 900) -> None:
    """Folders of the days with these numbers, 1 to 6, of a feed."""
    table = feed_table(rows)
    for day in days:
        place = folder / f"date={FIRST + timedelta(days=day):%Y%m%d}"
        place.mkdir(parents=True)
        pq.write_table(table.filter(pa.compute.equal(table["day"], day)), place / "part.parquet")


def file_of(folder: Path, split: dict[str, Any], **changes: Any) -> Path:
    data = {"path": str(folder / "data"), "split": split, "group_by": "user_id", "lanes": 4, **changes}
    return training_file(folder, data=data, early_stopping=None)


@pytest.mark.parametrize("read", ["memory", "stream"])
def test_a_run_goes_on_with_its_days_when_newer_ones_have_come(
    tmp_path: Path, read: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_days(tmp_path / "data", range(1, 6))
    config = TrainingConfig.load(file_of(tmp_path, SPLIT, read=read))
    alone = train(TrainingConfig.load(file_of(tmp_path, SPLIT, read=read), [f"output={tmp_path}/alone"]), show=False)
    with monkeypatch.context() as patched:
        stop_at(patched, 12)
        with pytest.raises(Stopped):
            train(config, show=False)
    write_days(tmp_path / "data", range(6, 7))
    with caplog.at_level(logging.INFO):
        run = train(config, show=False)
    assert "its run has the days up to 20240306" in caplog.text
    assert "resuming" in caplog.text
    assert_same_checkpoints(alone, run)
    window = {"min": 20240302, "max": 20240304}
    assert json.loads((run.path / "config.json").read_text())["data"]["split"]["train"] == window
    # Everything that is made of the run has its days, and those that start from it say them.
    models = str(tmp_path / "models")
    assert main(["evaluate", str(run.path), "--replicates", "2"]) == 0
    assert main(["inspect", str(run.path)]) == 0
    assert main(["export", str(run.path), "--models", models]) == 0
    table = feed_table(900)
    assert json.loads((run.path / "evaluation-test.json").read_text())["rows"] == table["day"].to_pylist().count(5)
    manifest = json.loads((tmp_path / "models/clips/1/manifest.json").read_text())
    about = manifest["training"]["data_window"]
    assert (about["train"], about["validation"], about["windows"]["end"]) == (
        window,
        {"min": 20240305, "max": 20240305},
        "latest",
    )
    # A new run has the newer days.
    newer = train(TrainingConfig.load(file_of(tmp_path, SPLIT, read=read), [f"output={tmp_path}/newer"]), show=False)
    assert Run.open(newer.path).config.data.bounds.model_dump()["test"] == {"min": 20240307, "max": 20240307}


def test_other_windows_are_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_days(tmp_path / "data", range(1, 7))
    assert main(["train", str(file_of(tmp_path, SPLIT))]) == 0
    assert main(["train", str(file_of(tmp_path, SPLIT)), "--set", "data.split.train.days=2"]) == 2
    assert "data.split.windows.train.days: 3 there, 2 here" in capsys.readouterr().err
    assert main(["train", str(file_of(tmp_path, SPLIT)), "--set", "data.split.train=20240301"]) == 2
    assert "data.split: train: names values, beside windows that are numbers of days" in capsys.readouterr().err


def test_a_report_and_a_vocabulary_have_the_days_of_now(tmp_path: Path) -> None:
    write_days(tmp_path / "data", range(1, 7))
    file = str(file_of(tmp_path, {**SPLIT, "exclude": ["2024-03-05"]}))
    assert main(["report", file]) == 0
    report = json.loads((tmp_path / "run/data_report.json").read_text())
    assert [(part["split"], part["value"]) for part in report["partitions"]] == [
        ("train", "20240303"), ("train", "20240304"), ("validation", "20240306"), ("test", "20240307")
    ]  # fmt: skip
    assert main(["vocabulary", file]) == 0
    fitted = json.loads((tmp_path / "run-fitted/fitted_features-report.json").read_text())
    assert fitted["split"]["left_out"] == [20240305]


def test_cells_of_a_comparison_have_the_days_that_it_began_with(tmp_path: Path) -> None:
    write_days(tmp_path / "data", range(1, 6))
    file = experiment_file(tmp_path, seeds=1)
    file_of(tmp_path, SPLIT)
    assert main(["compare", str(file)]) == 0
    write_days(tmp_path / "data", range(6, 7))
    assert main(["compare", str(file), "--seeds", "2"]) == 0
    cells = sorted((tmp_path / "out/clips").glob("*/seed-*"))
    assert len(cells) == 4
    assert {str(Run.open(cell).config.data.bounds.test) for cell in cells} == {"min=20240306 max=20240306"}


def test_the_shipped_files_have_the_days_of_their_figures(tmp_path: Path) -> None:
    assert main(["simulate", "--rows", "280", "--out", str(tmp_path / "simulated")]) == 0
    config = TrainingConfig.load(CONFIGS / "simulated.yaml", [f"data.path={tmp_path}/simulated"])
    bounds = resolved(config.data).bounds.model_dump()
    splits = {split: bounds[split] for split in ("train", "validation", "test")}
    assert splits == {
        "train": {"min": 20240101, "max": 20240112},
        "validation": {"min": 20240113, "max": 20240113},
        "test": {"min": 20240114, "max": 20240114},
    }
    # The windows in the head of KuaiRand's file are the days that it names. What is prepared begins on 25 April.
    text = (CONFIGS / "kuairand.yaml").read_text(encoding="utf-8")
    shown = re.search(r"--set '(data\.split=.*)'", text)
    assert shown is not None
    split = TrainingConfig.load(CONFIGS / "kuairand.yaml", [shown[1]]).data.split
    assert isinstance(split, MovingWindows)
    assert isinstance(split.end, date)
    assert [split.end - timedelta(days=back) for back in (0, 1, 2, 12)] == [
        date(2022, 5, 7), date(2022, 5, 6), date(2022, 5, 5), date(2022, 4, 25)
    ]  # fmt: skip
    assert (split.train.days, split.validation.days, split.test.days) == (11, 1, 1)
