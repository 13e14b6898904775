"""The folder of metrics: there while in use, removed after a killed service, never another user's."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from service.metrics.folder import PREFIX, metrics_folder
from tests.service.running import ROOT

PARENT = """
import sys
from service.metrics.folder import metrics_folder
with metrics_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""
WORKER = """
import sys
from pathlib import Path
from service.metrics.folder import hold_folder
hold_folder(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
SERVICE = """
import sys, tempfile
tempfile.tempdir = sys.argv.pop()
from service.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextmanager
def killed_at_the_end(script: str, *arguments: str) -> Iterator[str]:
    """A process and its first line, killed when the block ends."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_killed_parent_s_folder_goes_with_the_next_start_once_no_worker_holds_it(parent: Path) -> None:
    with ExitStack() as worker:
        with killed_at_the_end(PARENT) as line:
            left = Path(line)
            assert worker.enter_context(killed_at_the_end(WORKER, line)) == "held"
            with metrics_folder() as folder:
                assert left.is_dir(), "its service lives"
                assert left.parent == parent == Path(folder).parent
            assert not Path(folder).exists()
        with metrics_folder():
            assert left.is_dir(), "a worker still drains"
    (left / "counter_1.db").touch()
    with metrics_folder():
        assert not left.exists()


def test_what_others_put_there_is_left_alone(parent: Path) -> None:
    kept = parent / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (parent / f"{PREFIX}link").symlink_to(kept)
    (parent / f"{PREFIX}file").touch()
    foreign = parent / f"{PREFIX}foreign"
    foreign.mkdir()
    if os.geteuid() == 0:
        os.chown(foreign, 12345, 12345)
    with metrics_folder():
        pass
    assert (kept / "file").exists()
    assert (parent / f"{PREFIX}link").is_symlink()
    assert (parent / f"{PREFIX}file").exists()
    assert foreign.exists() == (os.geteuid() == 0)


def test_a_folder_of_temporary_files_that_cannot_be_written_ends_the_start_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVICE, "--models", str(tmp_path), "--port", "0", "--workers", "2"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "absent")}
    command.append(environment["TMPDIR"])
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    *_, line = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["level"].lower(), line["message"]) == ("error", "cannot start")
    assert line["reason"].startswith(f"{tmp_path}/absent: no folder of temporary files can be written")
    assert "set TMPDIR to one with room, or serve with --workers 1" in line["reason"]


def test_a_tmpdir_that_is_passed_over_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with metrics_folder() as folder:
        assert Path(folder).parent == tmp_path
    assert caplog.messages == ["TMPDIR cannot be written; another folder is used"]
