"""Bad lines, writers that lag or died, and a join that is killed: named or counted, and nothing joined twice."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.impression_lines import stamp
from tests.training.join.logs import START, logs, write
from tests.training.join.test_join import NOW, hashes_of, rows_of
from training.join.counts import event_counts, impression_counts, write_counts
from training.join.join import join
from training.join.plan import Plan

ROOT = Path(__file__).parents[3]


def change(path: Path, key: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change each line of a file."""
    lines = [key(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_lines_that_are_none_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = logs(60, 4, seed=8)
    clean = Plan.load(write(tmp_path / "clean", made))
    join(clean, NOW)
    plan = Plan.load(write(tmp_path / "bad", made))
    one = json.loads((tmp_path / "bad/impressions/impressions-0.jsonl").read_text().splitlines()[0])
    wrong_requests: list[dict[str, Any]] = [
        {"order": [0, 0]}, {"order": [99]}, {"order": [-1]}, {"share": 0}, {"share": None}, {"score": []},
        {"time": "2026-11-29T20:00:00"}, {"time": "yesterday"}, {"user": {"user_id": 2**63}},
        {"user": {"user_id": 1.5}}, {"user_hash": 7}, {"propensity": [1.0] * 99}, {"request_id": None},
    ]  # fmt: skip
    bad_requests = [
        b"\x00\xff garbage",
        b'{"format": 2',
        b"[]",
        b'{"format": 2, "time": "2026-11-29T20:00:00Z"}',
        *(json.dumps({**one, **wrong}).encode() for wrong in wrong_requests),
    ]
    event = made.events[0]
    wrong_events: list[dict[str, Any]] = [
        {"id": None}, {"type": 7}, {"value": "1"}, {"time": "2026-11-29T20:00:00"}, {"received": "?"},
        {"value": 1e300}, {"position": "first"},
    ]  # fmt: skip
    bad_events = [
        b"nothing",
        b'{"request_id": "\\ud800", "type": "click", "id": "v1", "received": "2026-11-29T20:00:00Z"}',
        *(json.dumps({**event, **wrong}).encode() for wrong in wrong_events),
        b'{"request_id": "r-1", "type": "click", "id": "v1"}',
        json.dumps(event).encode()[:-9],  # the torn end of a writer that died
    ]
    for name, lines in (("impressions", bad_requests), ("events", bad_events)):
        with (tmp_path / "bad" / name / f"{name}-1.jsonl").open("ab") as file:
            file.write(b"\n".join(lines))
    join(plan, NOW)
    assert hashes_of(plan.out) == hashes_of(clean.out)
    assert write_counts(plan.out)["bad_lines"] == len(bad_requests) + len(bad_events)
    number = len((tmp_path / "clean/impressions/impressions-1.jsonl").read_text().splitlines()) + 1
    assert f"{tmp_path}/bad/impressions/impressions-1.jsonl:{number}: left out: no request" in caplog.text
    assert "r-" not in "".join(record.getMessage() for record in caplog.records if "left out: " in record.getMessage())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format": 1}, "a line of format 1, which does not say what share of requests was kept"),
        ({"catalogue": "7"}, "features came from a catalogue; write into .*join.yaml `models:`"),
        ({"hashes": {"user": 1}}, "has hashes in the place of features"),
        ({"model": "another"}, "an impression of model 'another' beside those of 'feed'"),
    ],
)
def test_a_log_that_makes_no_rows_is_refused(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    plan = Plan.load(write(tmp_path, logs(20, 2, seed=9)))
    change(tmp_path / "impressions/impressions-2.jsonl", lambda line: {**line, **changed})
    with pytest.raises(ValueError, match=says) as refused:
        join(plan, NOW)
    assert f"{tmp_path}/impressions/impressions-2.jsonl:1: " in str(refused.value)
    assert hashes_of(plan.out) == {}


def test_other_models_are_counted_where_the_file_names_one(tmp_path: Path) -> None:
    made = logs(60, 4, seed=10)
    path = write(tmp_path, made)
    path.write_text(path.read_text().replace("window:", "model: feed\nwindow:"))
    before = [len(lines) for lines in made]
    others = (
        [{**line, "model": "other"} for line in made.requests],
        [{**line, "model": "other"} for line in made.events],
    )
    for name, lines in zip(("impressions", "events"), others, strict=True):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / f"{name}-other.jsonl").write_text(text)
    plan = Plan.load(path)
    join(plan, NOW)
    assert write_counts(plan.out)["left_out"] == {
        "requests_of_other_models": before[0], "events_of_other_models": before[1], "requests_of_forgotten_users": 0
    }  # fmt: skip
    assert sum(counts.total() for counts in event_counts(plan.out).values()) == before[1]


def test_lost_lines_are_counted_by_their_hour(tmp_path: Path) -> None:
    plan = Plan.load(write(tmp_path, logs(40, 4, seed=11)))
    lost = [{"format": 2, "time": stamp(START + timedelta(minutes=61)), "lost": 7, "reason": "full"}] * 2
    (tmp_path / "impressions/impressions-lost.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lost))
    join(plan, NOW)
    found = {hour: counts["lost_requests"] for hour, counts in impression_counts(plan.out).items()}
    assert {hour: count for hour, count in found.items() if count} == {START + timedelta(hours=1): 14}


def test_clients_that_send_no_shown_event_are_refused(tmp_path: Path) -> None:
    made = logs(40, 4, seed=12)
    plan = Plan.load(write(tmp_path, made._replace(events=[e for e in made.events if e["type"] != "shown"])))
    with pytest.raises(ValueError, match=r"hour 20261129T20: none of its .* has a shown event; .*rows: answered"):
        join(plan, NOW)
    assert hashes_of(plan.out) == {}


def watermark(folder: Path, log: str, passed: datetime, written: datetime) -> Path:
    """The watermark of a writer, as the service has it."""
    path = folder / log / f"{log}-host-1.watermark"
    path.write_text(json.dumps({"writer": "host-1", "watermark": stamp(passed), "written": stamp(written)}))
    return path


def test_an_hour_waits_for_every_writer_of_both_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = Plan.load(write(tmp_path, logs(60, 4, seed=13)))
    assert NOW.now is not None
    # Hour 20 closes 35 minutes after its end.
    behind, done = START + timedelta(minutes=94), START + timedelta(minutes=95)
    watermark(tmp_path, "impressions", NOW.now, NOW.now)
    watermark(tmp_path, "events", behind, NOW.now)
    assert join(plan, NOW).hours == []
    watermark(tmp_path, "impressions", behind, NOW.now)
    watermark(tmp_path, "events", NOW.now, NOW.now)
    assert join(plan, NOW).hours == []
    watermark(tmp_path, "impressions", done, NOW.now)
    assert len(join(plan, NOW).hours) == 1
    assert "silent" not in caplog.text
    died = NOW.now - timedelta(minutes=11)
    path = watermark(tmp_path, "events", done, died)
    assert join(plan, NOW).hours == []
    assert "writer host-1 has been silent since" in caplog.text
    # It speaks for the silent writer alone: the other one still holds its hours.
    assert join(plan, NOW._replace(until=START + timedelta(hours=4))).hours == []
    watermark(tmp_path, "impressions", NOW.now, NOW.now)
    assert len(join(plan, NOW._replace(until=START + timedelta(minutes=155))).hours) == 1
    path.write_text("{}")
    with pytest.raises(ValueError, match="no watermark of a writer"):
        join(plan, NOW)


def test_what_comes_after_its_hour_was_joined_is_late(tmp_path: Path) -> None:
    """From a writer that was given up: its lines are counted, and no file changes."""
    made = logs(60, 4, seed=14)
    plan = Plan.load(write(tmp_path, made))
    joined = join(plan, NOW).hours
    before, counts = hashes_of(plan.out), event_counts(plan.out)
    for name, lines in (("impressions", made.requests[:5]), ("events", made.events[:50])):
        (tmp_path / name / f"{name}-late.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert join(plan, NOW).hours == []
    assert hashes_of(plan.out) == before
    assert len(before) == len(joined)
    assert sum(found["late_requests"] for found in impression_counts(plan.out).values()) == 5
    more = {kind: sum((event_counts(plan.out)[hour] - counts[hour])[kind] for hour in counts) for kind in ("late",)}
    assert more == {"late": 50}


def test_killed_anywhere_it_goes_on(tmp_path: Path) -> None:
    """Whole files or none, and in the end the bytes of a run that nothing ended."""
    made = logs(300, 4, seed=15)
    whole = Plan.load(write(tmp_path / "whole", made))
    join(whole, NOW)
    path = write(tmp_path / "killed", made)
    plan = Plan.load(path)
    assert NOW.now is not None
    command = [sys.executable, "-m", "training", "join", str(path), "--now", NOW.now.isoformat()]
    draw = random.Random(15)
    for kills in range(2):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        folder = plan.out / "_join" / ("staged" if kills == 0 else "hours")
        wanted = draw.randrange(kills, 3 * kills + 1)
        while process.poll() is None and len(list(folder.glob("*") if folder.is_dir() else [])) <= wanted:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for hour, rows in rows_of(plan.out).items():
            assert rows == rows_of(whole.out)[hour]
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    assert hashes_of(plan.out) == hashes_of(whole.out)
    assert event_counts(plan.out) == event_counts(whole.out)


def test_options_that_are_no_times_are_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, logs(5, 1, seed=16))
    command = [sys.executable, "-m", "training", "join", str(path), "--until", "yesterday"]
    run = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        "error: --until: expected a time with its zone, such as 2026-11-29T20:00:00Z, got 'yesterday'"
    ]
