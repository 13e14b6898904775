"""A full disk, and log files that are replaced under a join: said in one line, and no row is wrong."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.training.join.logs import logs, write
from tests.training.join.test_join import NOW, hashes_of, rows_of
from training.join.counts import event_counts
from training.join.join import join
from training.join.plan import Plan
from training.join.sources import Source, SourceFile

ROOT = Path(__file__).parents[3]
# A file that grows beyond the limit fails as one on a full disk does, in Python, Arrow and the engine.
LIMITED = """
import resource, runpy, sys
from training.join.staging import Staging

def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))

def read_and_fill(*arguments):
    read(*arguments)
    fill()

read = Staging.read
if sys.argv[1] == "rows":
    Staging.read = read_and_fill
else:
    fill()
sys.argv = ["training", *sys.argv[2:]]
runpy.run_module("training", run_name="__main__")
"""


def test_a_full_disk_is_said_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """Full while lines are staged, and while rows are written."""
    made = logs(120, 4, seed=30)
    whole = Plan.load(write(tmp_path / "whole", made))
    join(whole, NOW)
    path = write(tmp_path / "full", made)
    plan = Plan.load(path)
    assert NOW.now is not None
    for phase in ("lines", "rows"):
        command = [sys.executable, "-c", LIMITED, phase, "join", str(path), "--now", NOW.now.isoformat()]
        run = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        assert run.returncode == 2
        [error] = [line for line in run.stderr.splitlines() if "error" in line.lower()]
        assert error.startswith(f"error: {plan.out}")
        assert "cannot be written (" in error
        assert "Traceback" not in run.stderr
        assert hashes_of(plan.out) == {}
    join(plan, NOW)
    assert hashes_of(plan.out) == hashes_of(whole.out)
    assert event_counts(plan.out) == event_counts(whole.out)


def test_a_file_that_is_replaced_while_it_is_read_gives_the_rows_of_one_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backfill renames another file over each, the moment that it is open."""
    made = logs(60, 4, seed=31)
    whole = Plan.load(write(tmp_path / "whole", made))
    join(whole, NOW)
    plan = Plan.load(write(tmp_path / "replaced", made))
    opened = Source.opened
    replaced = []

    @contextmanager
    def replace_open(self: Source, file: SourceFile) -> Iterator[tuple[SourceFile, BinaryIO]]:
        with opened(self, file) as found:
            path = Path(file.path)
            other = path.with_name(f".{path.name}")
            lines = [json.loads(line) for line in path.read_bytes().splitlines()]
            other.write_text("".join(json.dumps({**line, "request_id": "another"}) + "\n" for line in lines))
            other.rename(path)
            replaced.append(file.name)
            yield found

    monkeypatch.setattr(Source, "opened", replace_open)
    join(plan, NOW)
    assert len(replaced) == len(set(replaced)) > 2
    assert rows_of(plan.out) == rows_of(whole.out)
