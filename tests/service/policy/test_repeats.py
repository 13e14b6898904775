"""Repeated ids of explored requests."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.policy.repeats import RepeatedIds


def test_an_id_that_came_before_is_repeated_under_the_same_version() -> None:
    ids = RepeatedIds()
    assert [ids.take_id("r-1", "v") for _ in range(1_000)] == [False] + [True] * 999
    assert not ids.take_id("r-1", "w")
    assert not ids.take_id("\ud800", "v")
    assert ids.take_id("\ud800", "v")


def test_ids_that_never_came_are_not_repeated() -> None:
    ids = RepeatedIds()
    assert not any(ids.take_id(f"r-{number}", "v") for number in range(200_000))
    # Of the newest, all but those whose slot a later one has taken: after n ids in s slots each is there with
    # probability (1 - 1/s)^(later ones).
    kept = sum(ids.take_id(f"r-{number}", "v") for number in range(199_000, 200_000))
    assert kept > 950


def test_an_id_of_another_process_is_repeated(tmp_path: Path) -> None:
    ids = RepeatedIds(tmp_path)
    assert not ids.take_id("r-1", "v")
    code = f"""
from pathlib import Path
from service.policy.repeats import RepeatedIds
ids = RepeatedIds(Path({str(tmp_path)!r}))
print([ids.take_id(f"r-{{number}}", "v") for number in (1, 2)])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[True, False]"
    assert ids.take_id("r-2", "v")


def test_without_room_each_worker_counts_for_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = RepeatedIds(tmp_path / "absent")
    assert [ids.take_id("r-1", "v") for _ in range(2)] == [False, True]
    assert "counted by each worker for itself" in caplog.text
