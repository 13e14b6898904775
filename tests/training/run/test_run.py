"""A run's folder: what is refused when it is opened, locks, and files replaced whole."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from training.run.run import CONFIG, FITTED, SCHEMA, SUMMARY, Run, locked, write_json, write_text


def copy_of(run: Run, folder: Path) -> Path:
    return Path(shutil.copytree(run.path, folder / "copy"))


def test_a_folder_opens_as_it_was_written(finished_run: Run) -> None:
    opened = Run.open(finished_run.path)
    assert opened.config == finished_run.config
    assert opened.schema == finished_run.schema
    assert opened.fitted == finished_run.fitted
    assert opened.summary()["status"] == "finished"


def test_the_best_ranker_is_in_evaluation_mode_and_has_the_best_weights(finished_run: Run) -> None:
    ranker = finished_run.best_ranker()
    assert not ranker.training
    other = Run.open(finished_run.path).best_ranker()
    for one, two in zip(ranker.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"{name}: not a training run"):
        Run.open(tmp_path / name)


@pytest.mark.parametrize("name", [CONFIG, SCHEMA, FITTED])
@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', "[]", "nul"])
def test_a_broken_file_is_named(finished_run: Run, tmp_path: Path, name: str, content: str) -> None:
    folder = copy_of(finished_run, tmp_path)
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Run.open(folder)


@pytest.mark.parametrize("name", [SCHEMA, FITTED])
def test_an_absent_file_is_named(finished_run: Run, tmp_path: Path, name: str) -> None:
    folder = copy_of(finished_run, tmp_path)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Run.open(folder)


@pytest.mark.parametrize("summary", [None, {}, {"status": "running"}])
def test_an_unfinished_run_has_no_summary(finished_run: Run, tmp_path: Path, summary: dict[str, Any] | None) -> None:
    folder = copy_of(finished_run, tmp_path)
    (folder / SUMMARY).unlink()
    if summary is not None:
        write_json(folder / SUMMARY, summary)
    with pytest.raises(ValueError, match="this run has not finished; run train again"):
        Run.open(folder).summary()


def test_weights_of_another_network_are_refused_by_name(finished_run: Run, tmp_path: Path) -> None:
    folder = copy_of(finished_run, tmp_path)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["network"]["tower"] = [7]
    write_json(folder / CONFIG, config)
    with pytest.raises(ValueError, match=r"best: .*another network"):
        Run.open(folder).best_ranker()


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(ValueError, match="run: another run is writing here"):
        locked(tmp_path / "run").__enter__()
    with locked(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_is_no_other_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ValueError, match=r"\.lock: cannot be locked \(No locks available\)"), locked(tmp_path / "run"):
        pass


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.csv"
    write_text(path, "first")
    write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "second"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"log\.csv: cannot be written \(No space left on device\)"):
        write_text(path, "third")
    assert path.read_text(encoding="utf-8") == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]


def test_json_never_holds_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert not list(tmp_path.iterdir())
