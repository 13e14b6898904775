"""Impressions as Parquet: requests and answers, through deaths and full disks, hashes, and replay of both."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from service.impressions import to_parquet
from service.impressions.folder import impression_files
from service.impressions.reader import entries
from service.impressions.record import Logged, Loss
from service.replay import replay
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, sample
from tests.service.running import ROOT, RunningService
from tests.training_data import small_disk

COMMAND = [sys.executable, "-m", "service", "parquet"]
WAIT_SECONDS = 90.0


def a_line(number: int, characters: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    ids = [f"video-{n}" for n in rng.integers(0, 1000, 3)]
    answers = [
        {task: [float(str(value)) for value in rng.random(3, np.float32)] for task in ("click", "like")}
        for _ in ("calibrated", "raw")
    ]
    return {
        "format": 2,
        "time": f"2026-01-02T03:04:{number % 60:02}.250Z",
        "request_id": f"r-{number}",
        **dict.fromkeys(("model", "model_version", "value_model", "value_model_version"), "x"),
        "calibration": "3" if number % 2 else None,
        **dict.fromkeys(("policy", "policy_version"), "p" if number % 3 else None),
        "experiments": {"bold": "treatment"} if number % 2 else {},
        "epochs": {"bold": "9f2c01ab"} if number % 2 else {},
        "fell_back": ["bold"] if number % 3 else [],
        "user_hash": f"{number:032x}" if number % 2 else None,
        "share": 0.25,
        "top_k": number or None,
        "catalogue": "7" if number % 2 else None,
        "user": {"country": "é" + rng.bytes(characters // 2).hex(), "tab": None},
        "candidates": {"id": ids, "features": {"video_id": [3, None, 2**60], "topics": [[], [1, 2], None]}},
        "histories": {"seen": [[2**60, 1.7e9 + 0.125], ["é", 1.8e9]], "liked": []} if number % 2 else None,
        "score": rng.normal(size=3).tolist(),
        "tasks": answers[0],
        "raw": answers[1],
        "order": rng.permutation(3)[: number or None].tolist(),
        "propensity": rng.random(min(number, 3)).tolist() if number % 2 else None,
    }


def a_loss(number: int) -> dict[str, Any]:
    return {"format": 2, "time": "2026-01-02T03:04:05.678Z", "lost": number, "reason": 'no "space" left'}


def written(folder: Path, lines: list[dict[str, Any]], name: str = "impressions-a.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def convert(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS
    )


def test_every_value_is_kept_in_typed_columns_and_bounded_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.impressions.parquet.GROUP_ROWS", 7)
    lines = [a_line(number) for number in range(19)] + [a_loss(3)]
    written(tmp_path, lines)
    assert to_parquet.convert(tmp_path) == []
    (file,) = impression_files(tmp_path).whole_files()
    assert file.name == "impressions-a.parquet"
    assert file.stat().st_mode & 0o777 == 0o600
    assert lines_of(tmp_path) == lines
    found = pq.ParquetFile(file)
    assert [found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)] == [7, 7, 6]
    assert found.metadata.row_group(0).column(0).compression == "ZSTD"
    schema = found.schema_arrow
    assert schema.field("time").type == pa.timestamp("ms", tz="UTC")
    assert schema.field("candidate_id").type == pa.list_(pa.string())
    assert schema.field("score").type == pa.list_(pa.float64())
    assert schema.field("tasks").type == pa.map_(pa.string(), pa.list_(pa.float32()))
    # The program's own reader gives the same from either.
    again = tmp_path / "again"
    again.mkdir()
    both = [list(entries(path)) for path in (file, written(again, lines))]
    for row, line in zip(*both, strict=True):
        assert not isinstance(row.logged, ValueError)
        assert not isinstance(line.logged, ValueError)
        if isinstance(row.logged, Loss) or isinstance(line.logged, Loss):
            assert row.logged == line.logged
            continue
        assert isinstance(row.logged, Logged)
        assert isinstance(line.logged, Logged)
        assert row.logged[1:] == line.logged[1:]
        # Answers are float32 in Parquet. The text of features is compared as it is decoded, above.
        apart = dict.fromkeys(("tasks", "raw", "user", "candidates"))
        kept, wrote = ({**msgspec.structs.asdict(one.logged.line), **apart} for one in (row, line))
        assert kept == wrote
        for task, column in line.logged.line.tasks.items():
            assert np.array_equal(np.array(column, np.float32), np.array(row.logged.line.tasks[task], np.float32))


def test_a_service_makes_parquet_of_what_it_closes(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    folder = tmp_path / "log"
    folder.mkdir()
    flags = ("--impression-log", str(folder), "--impression-log-max-bytes", str(2**20))  # files of 128 KiB
    asked: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    with RunningService(tmp_path / "models", *flags) as service:
        service.wait_ready()
        for number in range(24):  # of 20 KB each, together within the bound of what is kept
            user = {**TINY_REQUEST["user"], "country": f"{number:02}" * 10_000}
            asked.append({**TINY_REQUEST, "user": user, "request_id": f"r-{number:03}"})
            answers.append(service.client.post("/v1/rank", json=asked[-1]).json())
        service.wait_for(lambda: len(list(folder.glob("*.parquet"))) >= 3 and not list(folder.glob("*.jsonl")))
        imported = Path(f"/proc/{service.process.pid}/maps").read_text()
        assert "libarrow" not in imported
        assert service.stop(signal.SIGTERM) == 0
    assert convert(folder).returncode == 0  # what a busy machine did not come to before the end
    assert {file.suffix for file in impression_files(folder).whole_files()} == {".parquet"}
    assert list(folder.glob(".*.part")) == []
    lines = lines_of(folder)
    assert [line["request_id"] for line in lines] == [request["request_id"] for request in asked]
    for line, request, answer in zip(lines, asked, answers, strict=True):
        assert (line["user"], line["candidates"]) == (request["user"], request["candidates"])
        for key in ("model", "model_version", "value_model", "value_model_version"):
            assert line[key] == answer[key]
        ranked = answer["candidates"]
        order = [ranked["id"].index(identifier) for identifier in line["candidates"]["id"]]
        assert line["score"] == [ranked["score"][n] for n in order]
        for task, column in ranked["tasks"].items():
            assert line["tasks"][task] == [column[n] for n in order]


def test_a_killed_conversion_loses_nothing_and_is_taken_up(tmp_path: Path) -> None:
    lines = [a_line(number, 40_000) for number in range(1500)]
    path = written(tmp_path, lines)
    before = path.read_bytes()
    part = tmp_path / ".impressions-a.parquet.part"
    process = subprocess.Popen([*COMMAND, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + WAIT_SECONDS
    while not (part.exists() and part.stat().st_size > 1000):  # a row group is written, others are not
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(WAIT_SECONDS) == -signal.SIGKILL
    assert impression_files(tmp_path).whole_files() == [path]
    assert path.read_bytes() == before
    assert part.exists()
    assert convert(tmp_path).returncode == 0
    assert [file.name for file in impression_files(tmp_path).whole_files()] == ["impressions-a.parquet"]
    assert not part.exists()
    assert not path.exists()
    assert lines_of(tmp_path) == lines


def test_one_that_died_before_the_lines_went_is_ended(tmp_path: Path) -> None:
    path = written(tmp_path, [a_line(0)])
    kept = path.read_bytes()
    assert to_parquet.convert(tmp_path) == []
    path.write_bytes(kept)
    assert to_parquet.convert(tmp_path) == []
    assert not path.exists()
    assert lines_of(tmp_path) == [a_line(0)]


def test_a_full_disk_leaves_the_lines(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512) as folder:
        path = written(folder, [a_line(number, 20_000) for number in range(20)])  # 400 KiB that hardly compress
        before = path.read_bytes()
        done = convert(folder)
        assert done.returncode == 1
        assert done.stderr == "impressions-a.jsonl: No space left on device\n"
        assert path.read_bytes() == before
        assert [file.name for file in folder.iterdir() if file.suffix != ".lock"] == [path.name]


def test_a_damaged_line_keeps_its_file_and_is_told_by_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_artifact(tmp_path / "models")
    folder = tmp_path / "log"
    folder.mkdir()
    damaged = written(folder, [a_line(0), {"format": 1}])
    written(folder, [a_line(1)], "impressions-b.jsonl")
    with client_of(tmp_path / "models", impression_log=folder) as client:
        deadline = time.monotonic() + WAIT_SECONDS
        while not sample(client, "ranking_impression_log_conversions_failed_total"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
    told = [record.fields for record in caplog.records if record.name == "feedrank.impressions"]  # type: ignore[attr-defined]
    assert len(told) == 1
    assert told[0]["reason"].startswith("impressions-a.jsonl: line 2: ")
    assert damaged.exists()
    assert (folder / "impressions-b.parquet").exists()


def test_hashes_stand_for_values_and_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, folder = tmp_path / "models", tmp_path / "log"
    folder.mkdir()
    publish_artifact(models)
    rows = [
        {"id": name, "features": {key: column[n] for key, column in TINY_REQUEST["candidates"]["features"].items()}}
        for n, name in enumerate(TINY_REQUEST["candidates"]["id"])
    ]
    with client_of(models, impression_log=folder, impression_log_features="hash") as client:
        for candidates in (TINY_REQUEST["candidates"], rows):
            assert client.post("/v1/rank", json={**TINY_REQUEST, "candidates": candidates}).status_code == 200
        # Ids as strings of their digits are the same ids.
        digits = json.loads(json.dumps(TINY_REQUEST))
        digits["user"] |= {"user_id": "17", "history": ["3", 9, "4", 5]}
        digits["candidates"]["features"] |= {
            "video_id": ["3", "9", None, "-4"],
            "topics": [["7"], [], None, [8, "9", 1000]],
        }
        assert client.post("/v1/rank", json=digits).status_code == 200
    publish_artifact(models, seed=1)
    in_files = b"".join(file.read_bytes() for file in impression_files(folder).whole_files())
    assert convert(folder).returncode == 0
    lines = lines_of(folder)
    canonical = msgspec.json.Encoder(order="sorted")

    def hashed(value: Any) -> int:
        return xxhash.xxh3_64_intdigest(canonical.encode(value))

    for line in lines:
        assert line["hashes"] == {
            "user": hashed(TINY_REQUEST["user"]),
            "candidate_id": [hashed(row["id"]) for row in rows],
            "features": [hashed({k: v for k, v in row["features"].items() if v is not None}) for row in rows],
        }
        assert not {"user", "candidates"} & line.keys()
    assert b"country" not in in_files
    assert b"video_id" not in in_files
    arguments = [str(folder), "--models", str(models), "--json", str(tmp_path / "found.json")]
    assert replay.main(arguments) == 0  # by value model: the answers are there
    assert replay.main([*arguments, "--version", "2"]) == 2
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["requests"]["unscorable"] == 3
    assert "the log has a hash of the features, not their values" in found["unscorable"][0]["fault"]


@pytest.mark.parametrize("flags", [[], ["--version", "2"]])
def test_replay_says_the_same_of_either_kind(tmp_path: Path, flags: list[str]) -> None:
    models, folder, parquet = (tmp_path / name for name in ("models", "log", "parquet"))
    folder.mkdir()
    publish_artifact(models)
    with client_of(models, impression_log=folder) as client:
        for number in range(5):
            user = {**TINY_REQUEST["user"], "tab": number % 3}
            client.post("/v1/rank", json={**TINY_REQUEST, "user": user, "request_id": f"r-{number}"})
    publish_artifact(models, seed=1)
    lines = lines_of(folder)
    shutil.rmtree(folder)
    reports = []
    for place in (folder, parquet):
        place.mkdir()
        written(place, lines)
        if place == parquet:
            assert to_parquet.convert(place) == []
        found = tmp_path / "found.json"
        arguments = [str(place), "--models", str(models), "--json", str(found), "--show-ids", *flags]
        assert replay.main(arguments) == 0
        reports.append(json.loads(found.read_text().replace(".parquet:", ".jsonl:")))
    assert reports[0]["requests"]["replayed"] == 5
    assert reports[0] == reports[1]


@pytest.mark.parametrize("damage", ["cut", "flipped", "another table"])
def test_replay_refuses_a_damaged_parquet_file_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    publish_artifact(tmp_path / "models")
    written(tmp_path, [a_line(number) for number in range(20)])
    assert to_parquet.convert(tmp_path) == []
    (file,) = impression_files(tmp_path).whole_files()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-20])
    elif damage == "flipped":
        group = pq.read_metadata(file).row_group(0)
        columns = map(group.column, range(group.num_columns))
        scores = next(column for column in columns if column.path_in_schema.startswith("score."))
        assert scores.path_in_schema == "score.list.element"
        end = (scores.dictionary_page_offset or scores.data_page_offset) + scores.total_compressed_size
        content[end - 2] ^= 0x10  # in its last page of values
        file.write_bytes(content)
    else:
        pq.write_table(pa.table({"x": [1]}), file)
    assert replay.main([str(tmp_path), "--models", str(tmp_path / "models")]) == 2
    said = capsys.readouterr().err
    assert str(file) in said
    assert said.count("\n") == 1
