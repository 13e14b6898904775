"""Logs whose files change under a join or a forgetting: converted, removed, closed or rewritten by others."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from service.impressions.to_parquet import convert
from tests.training.join.logs import Logs, logs, write
from tests.training.join.test_forget import KEY, text_of, with_users, without
from tests.training.join.test_join import NOW, hashes_of, rows_of
from tests.training.join.test_rejoin import ANEW
from training.join import forget as forgetting
from training.join.forget import forget
from training.join.join import join
from training.join.plan import Plan
from training.join.sources import Source, SourceFile

ROOT = Path(__file__).parents[3]


def counts_of(plan: Plan) -> dict[str, object]:
    """The counts that the last run wrote."""
    content: dict[str, object] = json.loads((plan.out / "_join" / "counts.json").read_bytes())
    return content


@pytest.fixture
def after_listing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], object]], None]:
    """Something that others do to a log's folder once a join has listed it."""

    def arrange(change: Callable[[Path], object]) -> None:
        listed = Source.files

        def files(source: Source) -> list[SourceFile]:
            found = listed(source)
            change(Path(source.root))
            return found

        monkeypatch.setattr(Source, "files", files)

    return arrange


@pytest.mark.parametrize("log", ["impressions", "events"])
def test_a_file_that_was_removed_after_it_was_listed_is_left_out_and_counted(
    tmp_path: Path,
    log: str,
    caplog: pytest.LogCaptureFixture,
    after_listing: Callable[[Callable[[Path], object]], None],
) -> None:
    made = logs(60, 4, seed=51)
    without_it = Plan.load(write(tmp_path / "without", made))
    (tmp_path / "without" / log / f"{log}-1.jsonl").unlink()
    join(without_it, NOW)
    plan = Plan.load(write(tmp_path / "with", made))
    after_listing(lambda folder: (folder / f"{log}-1.jsonl").unlink(missing_ok=True))
    join(plan, NOW)
    assert hashes_of(plan.out) == hashes_of(without_it.out)
    assert f"{log}-1.jsonl: was removed after it was listed" in caplog.text
    left_out = counts_of(plan)["left_out"]
    assert isinstance(left_out, dict)
    assert left_out["files_gone"] == 1
    # It is not taken for one that was read.
    assert {path.name for path in (tmp_path / "with" / log).iterdir()} == {f"{log}-0.jsonl", f"{log}-2.jsonl"}
    kept = json.loads((plan.out / "_join" / "staged" / "done.json").read_bytes())
    assert [name for reading in kept.values() for name in reading[log]] == [f"{log}-0", f"{log}-2"]


def test_a_file_that_a_listing_misses_is_found_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What readdir gives of an entry that is made or removed meanwhile is not specified (POSIX)."""
    made = logs(60, 4, seed=57)
    whole = Plan.load(write(tmp_path / "whole", made))
    join(whole, NOW)
    plan = Plan.load(write(tmp_path / "missed", made))
    folder = tmp_path / "missed" / "impressions"
    find = LocalFileSystem.find

    def found_without(system: LocalFileSystem, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = find(system, path, **options)
        if (folder / "impressions-1.jsonl").exists():
            found.pop(str(folder / "impressions-1.jsonl"), None)
            assert convert(folder) == []
        return found

    monkeypatch.setattr(LocalFileSystem, "find", found_without)
    join(plan, NOW)
    assert hashes_of(plan.out) == hashes_of(whole.out)


def test_a_file_that_was_read_and_then_changed_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = logs(60, 4, seed=52)
    plan = Plan.load(write(tmp_path, made))
    join(plan, NOW)
    before = hashes_of(plan.out)
    join(plan, NOW)
    # What the service makes of its lines is no change.
    assert convert(tmp_path / "impressions") == []
    join(plan, NOW)
    assert counts_of(plan)["changed_files"] == 0
    with (tmp_path / "events" / "events-2.jsonl").open("a") as file:
        file.write(json.dumps(made.events[0]) + "\n")
    for path in (tmp_path / "impressions").glob("*-0.parquet"):
        path.write_bytes(path.read_bytes() + b"more")
    assert "changed after being read" not in caplog.text
    join(plan, NOW)
    assert counts_of(plan)["changed_files"] == 2
    assert f"2 files of the logs changed after being read, the first: {tmp_path}/impressions/impr" in caplog.text
    assert hashes_of(plan.out) == before


def test_a_file_of_the_same_size_has_its_content_compared(tmp_path: Path) -> None:
    made = logs(60, 4, seed=52)
    plan = Plan.load(write(tmp_path, made))
    join(plan, NOW)
    file = tmp_path / "events" / "events-2.jsonl"
    before = file.read_bytes()
    # A copy of what was read, as of a folder that was moved, is no change.
    file.unlink()
    file.write_bytes(before)
    os.utime(file, (1, 1))
    join(plan, NOW)
    assert counts_of(plan)["changed_files"] == 0
    file.write_bytes(before.replace(b"click", b"clack"))
    os.utime(file, (2, 2))
    join(plan, NOW)
    assert counts_of(plan)["changed_files"] == 1


def test_a_file_that_is_read_again_counts_as_it_is_now(tmp_path: Path) -> None:
    made = logs(60, 4, seed=53)
    plan = Plan.load(write(tmp_path, made))
    join(plan, NOW)
    with (tmp_path / "events" / "events-2.jsonl").open("a") as file:
        file.write(json.dumps(made.events[0]) + "\n")
    join(plan, NOW._replace(rejoin=ANEW))
    assert counts_of(plan)["changed_files"] == 1
    join(plan, NOW)
    assert counts_of(plan)["changed_files"] == 0


@pytest.mark.parametrize("log", ["impressions", "events"])
def test_hours_whose_files_are_gone_are_not_joined_again(tmp_path: Path, log: str) -> None:
    plan = Plan.load(write(tmp_path, logs(60, 4, seed=54)))
    join(plan, NOW)
    before = hashes_of(plan.out)
    path = tmp_path / log / f"{log}-1.jsonl"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=r"1 file that were read are gone from the logs; hour 20261129T2\d was joined"):
        join(plan, NOW._replace(rejoin=ANEW))
    assert hashes_of(plan.out) == before
    join(plan, NOW)  # the wish is withdrawn
    path.write_bytes(content)
    join(plan, NOW._replace(rejoin=ANEW))
    assert rows_of(plan.out)


def test_lines_are_not_converted_while_a_user_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that has begun before would write the user's lines back."""
    made = with_users(logs(60, 4, seed=55))
    plan = Plan.load(write(tmp_path, made))
    join(plan, NOW)
    folder = tmp_path / "impressions"
    (folder / ".impressions-9.parquet.part").write_bytes(b"lines of a conversion that was killed")
    listed = forgetting._local_files

    def files(source: Source) -> list[Path]:
        found = listed(source)
        command = [sys.executable, "-m", "service", "parquet", str(folder)]
        assert subprocess.run(command, cwd=ROOT, check=False, timeout=300).returncode == 0
        return found

    monkeypatch.setattr(forgetting, "_local_files", files)
    gone = forget(plan, "17", KEY)
    never = without(made, 17)
    assert gone["requests"] == len(made.requests) - len(never.requests) > 0
    assert sorted(text_of(tmp_path).splitlines()) == sorted(json.dumps(line) for lines in never for line in lines)
    assert list(folder.glob(".*.part")) == []
    # The files that were rewritten are no others than those that were read.
    join(plan, NOW)
    assert counts_of(plan)["changed_files"] == 0
    # Nothing stops it afterwards, and of Parquet the same holds.
    assert convert(folder) == []
    join(plan, NOW)
    assert forget(plan, "18", KEY)["requests"] > 0
    join(plan, NOW)
    assert counts_of(plan)["changed_files"] == 0


def test_a_forgetting_says_what_others_removed_and_closed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = with_users(logs(60, 4, seed=56))
    plan = Plan.load(write(tmp_path, made))
    folder = tmp_path / "impressions"
    part = folder / ".impressions-3.jsonl.part"
    part.write_text(json.dumps(made.requests[0]) + "\n")
    found = forgetting._request_ids

    def request_ids(path: Path, hashed: str) -> set[str]:
        (folder / "impressions-1.jsonl").unlink(missing_ok=True)
        (tmp_path / "events" / "events-0.jsonl").unlink(missing_ok=True)
        if part.exists():
            part.rename(folder / "impressions-3.jsonl")
        return found(path, hashed)

    monkeypatch.setattr(forgetting, "_request_ids", request_ids)
    forget(plan, "17", KEY)
    assert "1 file of the logs are still written, or were closed meanwhile; run it again" in caplog.text
    assert "2 files of the logs were removed meanwhile" in caplog.text
    kept = Logs([line for n, line in enumerate(made.requests) if n % 3 != 1], made.events[1::3] + made.events[2::3])
    hashed = {line["request_id"] for line in without(made, 17).requests}
    lines = [line for line in kept.requests if line["request_id"] in hashed] + [made.requests[0]]
    texts = [path.read_text() for path in sorted(folder.glob("*.jsonl"))]
    assert sorted("".join(texts).splitlines()) == sorted(map(json.dumps, lines))
