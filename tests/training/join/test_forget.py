"""A user who is forgotten: gone from logs, staged lines and rows, and never joined again."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from model.user import user_hash
from tests.training.join.logs import Logs, logs, write
from tests.training.join.test_join import NOW, hashes_of, rows_of
from training import files
from training.__main__ import main
from training.join.forget import forget
from training.join.join import Settings, join
from training.join.plan import Plan

KEY = b"a key of sixteen bytes or more"


def with_users(made: Logs) -> Logs:
    """The same logs, users by the key's hashes, and named by a third of the events."""
    user_of = {line["request_id"]: int(line["user"]["user_id"]) for line in made.requests}
    requests = [{**line, "user_hash": user_hash(KEY, str(user_of[line["request_id"]]))} for line in made.requests]
    events = [
        {**event, "user": user_of[event["request_id"]]} if number % 3 == 0 and event["request_id"] in user_of else event
        for number, event in enumerate(made.events)
    ]
    return Logs(requests, events)


def without(made: Logs, user: int) -> Logs:
    """The logs as if the user had never been there."""
    ids = {line["request_id"] for line in made.requests if int(line["user"]["user_id"]) == user}
    return Logs(
        [line for line in made.requests if line["request_id"] not in ids],
        [event for event in made.events if event["request_id"] not in ids and event.get("user") != user],
    )


def text_of(folder: Path) -> str:
    """All that is in lines of JSON below a folder."""
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.jsonl")))


def test_a_user_is_gone_from_logs_and_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = with_users(logs(200, 4, seed=21))
    path = write(tmp_path / "all", made)
    plan = Plan.load(path)
    assert NOW.now is not None
    join(plan, Settings(now=NOW.now.replace(day=29, hour=22, minute=36)))  # some hours are joined, some staged
    key_file = tmp_path / "key"
    key_file.write_bytes(KEY)
    assert main(["forget", str(path), "--user", "17", "--user-hash-key", str(key_file)]) == 0
    assert "nothing is of this user under this key" not in caplog.text
    assert main(["forget", str(path), "--user", "17", "--user-hash-key", str(key_file)]) == 0
    assert "nothing is of this user under this key" in caplog.text
    never = without(made, 17)
    kept = [json.dumps(line) for lines in never for line in lines]
    assert sorted(text_of(tmp_path / "all").splitlines()) == sorted(kept)
    assert 0 < len(kept) < len(made.requests) + len(made.events)
    join(plan, NOW)
    other = Plan.load(write(tmp_path / "never", never))
    join(other, NOW)
    assert rows_of(plan.out) == rows_of(other.out)


def test_lines_that_nobody_can_read_stay_and_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = Plan.load(write(tmp_path, with_users(logs(40, 4, seed=24))))
    for name in ("impressions", "events"):
        with (tmp_path / name / f"{name}-0.jsonl").open("a") as file:
            file.write('{"user": 17, "torn\n')
    forget(plan, "17", KEY)
    assert "2 lines of the logs cannot be read and stay; look whether the user is in them" in caplog.text
    assert text_of(tmp_path).count('"torn') == 2


def test_lines_that_come_later_are_joined_without_the_user(tmp_path: Path) -> None:
    made = with_users(logs(100, 4, seed=22))
    plan = Plan.load(write(tmp_path / "all", made._replace(requests=[], events=[])))
    assert forget(plan, "17", KEY) == {"requests": 0, "events": 0, "rows": 0}
    write(tmp_path / "all", made)
    for path in (tmp_path / "all").glob("*/*.jsonl"):
        path.rename(path.with_name(f"later-{path.name}"))
    join(plan, NOW)
    other = Plan.load(write(tmp_path / "never", without(made, 17)))
    join(other, NOW)
    assert rows_of(plan.out) == rows_of(other.out)


def test_ended_anywhere_it_is_done_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_users(logs(60, 4, seed=23))
    whole = Plan.load(write(tmp_path / "whole", made))
    join(whole, NOW)
    forget(whole, "17", KEY)
    plan = Plan.load(write(tmp_path / "ended", made))
    join(plan, NOW)
    replace = files.replace_file
    left = 0

    def end_after(path: Path, parts: Iterable[bytes | memoryview]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        replace(path, parts)

    monkeypatch.setattr("training.join.forget.replace_file", end_after)
    runs = 0
    for left_now in range(0, 40, 3):
        left = left_now
        runs += 1
        try:
            forget(plan, "17", KEY)
        except KeyboardInterrupt:
            continue
        break
    assert runs > 2
    assert hashes_of(plan.out) == hashes_of(whole.out)
    assert text_of(tmp_path / "ended") == text_of(tmp_path / "whole")
