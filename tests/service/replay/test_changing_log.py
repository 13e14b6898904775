"""Replay of a log whose files are closed, converted and removed by the service after they were listed."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from service.impressions.convert import Conversion
from service.impressions.reader import entries, log_files
from service.impressions.to_parquet import convert
from service.replay.remote_logs import local_logs
from tests.artifacts import publish_artifact
from tests.service.in_process import client_of
from tests.service.replay.test_replay import a_request, lines_of, run

REQUESTS = 20


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A models folder, and a log of requests that its version answered, in one file of lines."""
    models, log = (tmp_path_factory.mktemp(name) for name in ("models", "log"))
    publish_artifact(models)
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conversion, "start", lambda _: None)
        with client_of(models, impression_log=log) as client:
            for number in range(REQUESTS):
                assert client.post("/v1/rank", json=a_request(rng, number)).status_code == 200
    return models, log


def test_a_log_that_changes_after_it_was_listed(
    logged: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file becomes Parquet, another is closed and then becomes Parquet, and two are removed, one of each kind."""
    models, log = logged[0], tmp_path / "log"
    log.mkdir()
    lines = [json.dumps(line) for line in lines_of(logged[1])]
    for number, name in enumerate(["-1.jsonl", ".-2.jsonl.part", "-3.jsonl", "-4.jsonl"]):
        hidden = "." if name.startswith(".") else ""
        path = log / f"{hidden}impressions{name.removeprefix('.')}"
        path.write_text("".join(f"{line}\n" for line in lines[number * 5 : number * 5 + 5]))
    assert convert_part(log, "impressions-4") == []

    def files(given: list[Path]) -> list[Path]:
        found = log_files(given)
        (log / "impressions-3.jsonl").unlink()
        (log / "impressions-4.parquet").unlink()
        (log / ".impressions-2.jsonl.part").rename(log / "impressions-2.jsonl")
        assert convert(log) == []
        return found

    monkeypatch.setattr("service.replay.replay.log_files", files)
    found = run(models, log=log, tmp_path=tmp_path)
    assert found["requests"]["replayed"] == 10
    assert found["files_gone"] == ["impressions-3.jsonl", "impressions-4.parquet"]
    assert "2 files were removed before they were read, and are left out" in capsys.readouterr().out
    # A file that is named may have become Parquet before.
    assert len(log_files([log / "impressions-1.jsonl", log / "impressions-1.parquet"])) == 1
    assert sum(1 for _ in entries(log / "impressions-1.jsonl")) == 5


def test_copies_of_a_log_that_changes_after_it_was_listed(
    logged: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps(line) for line in lines_of(logged[1])]
    for number in range(3):
        (tmp_path / f"impressions-{number}.jsonl").write_text("".join(f"{line}\n" for line in lines[number::3]))
    find = LocalFileSystem.find

    def found_before(*arguments: Any, **options: Any) -> Any:
        found = find(*arguments, **options)
        (tmp_path / "impressions-1.jsonl").unlink()
        assert convert_part(tmp_path, "impressions-2") == []
        return found

    monkeypatch.setattr(LocalFileSystem, "find", found_before)
    with local_logs([tmp_path.as_uri()]) as logs:
        assert [path.name for path in logs.paths] == ["impressions-0.jsonl", "impressions-2.parquet"]
        assert logs.gone == ["impressions-1.jsonl"]
        assert sum(1 for path in logs.paths for _ in entries(path)) == len(lines[0::3]) + len(lines[2::3])


def convert_part(log: Path, stem: str) -> list[str]:
    """Make Parquet of one file of a log. Returns what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        alone = Path(name)
        (log / f"{stem}.jsonl").rename(alone / f"{stem}.jsonl")
        faults = convert(alone)
        shutil.move(alone / f"{stem}.parquet", log)
        return faults
