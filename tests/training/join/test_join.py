"""Joined rows against a slow loop, to the last row, and counts that add up."""

import hashlib
import json
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from service.impressions.to_parquet import convert
from tests.impression_lines import stamp
from tests.training.join.logs import JOIN, START, logs, write
from tests.training.join.loops import Truth, join_slowly
from training.join.counts import event_counts, impression_counts
from training.join.join import JoinAtWork, Settings, join, locked
from training.join.plan import Plan
from training.join.sources import Source, SourceFile

ROOT = Path(__file__).parents[3]
# All hours of the logs are closed then, 13 hours after their start: the last is the hour before 11 h and 25 min.
NOW = Settings(now=START + timedelta(hours=13))
HOURS = "%Y%m%dT%H"
LAST = START + timedelta(hours=11)


def tie(line: dict[str, Any]) -> int:
    """The order of requests that have one id and one time: a hash of what was answered."""
    ids = [text.encode() for text in line["candidates"]["id"]]
    lengths, order = (struct.pack(f"<{len(numbers)}q", *numbers) for numbers in ([*map(len, ids)], line["order"]))
    scores = struct.pack(f"<{len(line['score'])}d", *line["score"])
    return xxhash.xxh3_64_intdigest(b"".join((line["model_version"].encode(), lengths, *ids, scores, order))) - 2**63


def rows_of(out: Path) -> dict[datetime, list[dict[str, Any]]]:
    """The rows of each hour's file."""
    found = {}
    for path in sorted(out.glob("date=*/*.parquet")):
        hour = datetime.strptime(path.stem, "%Y%m%dT%H").replace(tzinfo=UTC)
        assert path.parent.name == f"date={hour:%Y%m%d}"
        found[hour] = pq.ParquetFile(path).read().to_pylist()
    return found


def hashes_of(out: Path) -> dict[str, str]:
    """The sha256 of each hour's file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("date=*/*"))}


def check(out: Path, truth: Truth) -> None:
    """Rows and counts are those of the loop."""
    rows = rows_of(out)
    assert set(truth.rows) <= set(rows)
    for hour, found in rows.items():
        assert found == truth.rows.get(hour, [])
    assert event_counts(out) == truth.events


@pytest.mark.parametrize(
    ("rows", "seed", "with_digits"), [("shown", 1, True), ("answered", 2, False), ("shown", 3, False)]
)
def test_rows_are_those_of_a_slow_loop(tmp_path: Path, rows: str, seed: int, with_digits: bool) -> None:
    """With strings of digits lines are read whole, without them by Arrow."""
    made = logs(400, 4, seed, with_digits=with_digits)
    plan = Plan.load(write(tmp_path, made, join=JOIN + f"rows: {rows}\n"))
    join(plan, NOW)
    truth = join_slowly(made, rows, LAST, tie)
    assert {kind for counts in truth.events.values() for kind in counts} == {
        "matched", "doubled", "late", "out_of_window", "ambiguous", "no_identity", "other_type", "wrong_value",
        "unmatched",
    }  # fmt: skip
    check(plan.out, truth)
    assert sum(counts.total() for counts in event_counts(plan.out).values()) == len(made.events)


def test_the_same_lines_give_the_same_bytes(tmp_path: Path) -> None:
    """In whatever files and order they come, and with any number of threads."""
    made = logs(200, 4, seed=4)
    made.events.sort(key=lambda event: str(event["received"]))
    other = made._replace(requests=made.requests[::-1], events=made.events[::-1])
    plans = [
        Plan.load(write(tmp_path / "one", made, files=1)),
        Plan.load(write(tmp_path / "other", other, files=5)),
    ]
    join(plans[0], NOW)
    join(plans[1], NOW._replace(threads=2, memory="64MB"))
    assert hashes_of(plans[0].out) == hashes_of(plans[1].out)
    assert len(hashes_of(plans[0].out)) > 3


def test_hour_by_hour_is_as_all_at_once(tmp_path: Path) -> None:
    """As lines come: each run sees the files that were closed before it."""
    made = logs(200, 4, seed=5)
    at_once = Plan.load(write(tmp_path / "at_once", made))
    join(at_once, NOW)
    plan = Plan.load(write(tmp_path / "by_hour", made._replace(requests=[], events=[])))
    joined = []
    for step in range(1, 14):
        now = START + timedelta(hours=step)
        before = now - timedelta(hours=1)
        for name, lines, key in (("impressions", made.requests, "time"), ("events", made.events, "received")):
            new = [line for line in lines if before <= datetime.fromisoformat(line[key]) < now or (step == 1 and
                   datetime.fromisoformat(line[key]) < before)]  # fmt: skip
            text = "".join(json.dumps(line) + "\n" for line in new)
            (tmp_path / "by_hour" / name / f"{name}-{step:04d}.jsonl").write_text(text, encoding="utf-8")
        joined += join(plan, Settings(now=now)).hours
        staged = {path.name[:11] for path in (plan.out / "_join" / "staged").rglob("*T*.parquet")}
        # Nothing of an earlier run is left but what is still staged.
        folders = {path for path in (plan.out / "_join" / "staged").iterdir() if path.is_dir()}
        assert folders <= {path.parents[1] for path in (plan.out / "_join" / "staged").rglob("*T*.parquet")}
        # An hour and a half before the next hour, events may still belong to an impression.
        assert not joined or all(name >= (START + timedelta(hours=len(joined) - 2)).strftime(HOURS) for name in staged)
    assert len(joined) == len(set(joined)) == len(hashes_of(at_once.out))
    assert hashes_of(plan.out) == hashes_of(at_once.out)
    assert event_counts(plan.out) == event_counts(at_once.out)


def test_a_run_without_anything_new_changes_nothing(tmp_path: Path) -> None:
    plan = Plan.load(write(tmp_path, logs(50, 4, seed=6)))
    assert join(plan, NOW).hours
    before = hashes_of(plan.out)
    assert join(plan, NOW).hours == []
    assert hashes_of(plan.out) == before


def test_the_second_of_two_joins_says_so(tmp_path: Path) -> None:
    plan = Plan.load(write(tmp_path, logs(50, 4, seed=6)))
    with locked(plan.out), pytest.raises(JoinAtWork, match="another join writes it"):
        join(plan, NOW)
    assert hashes_of(plan.out) == {}
    assert join(plan, NOW).hours


def test_events_of_other_sources_are_read_from_parquet(tmp_path: Path) -> None:
    made = logs(100, 4, seed=7)
    lines = Plan.load(write(tmp_path / "lines", made))
    plan = Plan.load(write(tmp_path / "parquet", made))
    names = sorted({name for event in made.events for name in event})
    table = pa.Table.from_pydict({name: [event.get(name) for event in made.events] for name in names})
    for name in ("time", "received"):
        times = [event.get(name) for event in made.events]
        column = pa.array([None if text is None else datetime.fromisoformat(text) for text in times])
        table = table.set_column(table.schema.get_field_index(name), name, column)
    folder = tmp_path / "parquet" / "events"
    for file in folder.iterdir():
        file.unlink()
    (folder / "dt=1").mkdir()
    pq.write_table(table, folder / "dt=1" / "part.parquet")
    join(lines, NOW)
    join(plan, NOW)
    assert hashes_of(lines.out) == hashes_of(plan.out)


def test_impressions_as_parquet_give_the_same_bytes(tmp_path: Path) -> None:
    """As the service makes it of its closed files, all of them or some."""
    made = logs(120, 4, seed=8)
    lost = {"format": 2, "time": stamp(START + timedelta(minutes=61)), "lost": 7, "reason": "full"}
    made = made._replace(requests=[*made.requests, lost])
    lines = Plan.load(write(tmp_path / "lines", made))
    plan = Plan.load(write(tmp_path / "parquet", made))
    folder = tmp_path / "parquet" / "impressions"
    kept = (folder / "impressions-1.jsonl").rename(tmp_path / "kept")
    command = [sys.executable, "-m", "service", "parquet", str(folder)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    kept.rename(folder / "impressions-1.jsonl")
    assert [path.suffix for path in sorted(folder.glob("impressions-*"))] == [".parquet", ".jsonl", ".parquet"]
    join(lines, NOW)
    join(plan, NOW)
    assert hashes_of(lines.out) == hashes_of(plan.out)
    assert sum(map(len, rows_of(plan.out).values())) > 100
    assert impression_counts(lines.out) == impression_counts(plan.out)
    assert {counts["lost_requests"] for counts in impression_counts(plan.out).values()} >= {7}


def test_lines_that_become_parquet_after_they_were_listed_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service makes Parquet of its closed files at any time."""
    made = logs(60, 4, seed=8)
    lines = Plan.load(write(tmp_path / "lines", made))
    join(lines, NOW)
    plan = Plan.load(write(tmp_path / "parquet", made))
    listed, folder = Source.files, tmp_path / "parquet" / "impressions"

    def files(source: Source) -> list[SourceFile]:
        found = listed(source)
        assert convert(folder) == []
        return found

    monkeypatch.setattr(Source, "files", files)
    join(plan, NOW)
    assert not list(folder.glob("*.jsonl"))
    assert hashes_of(lines.out) == hashes_of(plan.out)
