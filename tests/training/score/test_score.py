"""Batch scoring: the service's answers, row by row, with kill -9, several processes, bad rows and other versions."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.artifacts import publish_artifact, tiny_schema
from tests.service.in_process import client_of
from training.__main__ import main
from training.score.job import Job
from training.score.run import SCORED, score

TASKS = ("click", "like", "play_time")
REQUESTS = 12
# float32 rounds a probability by about 1e-7. Of a play time the logarithm is computed, whose rounding expm1 makes
# relative and as large as the logarithm itself, here up to 20.
TOLERANCE = {"click": 1e-6, "like": 1e-6, "play_time": 2e-5, "score": 2e-6}


def log_table(requests: int = REQUESTS, seed: int = 0) -> pa.Table:
    """Requests of one to seven candidates, shuffled, with nulls in every feature."""
    rng = np.random.default_rng(seed)

    def some(value: Any) -> Any:
        return None if rng.random() < 0.15 else value

    rows = []
    for request in range(requests):
        user = {
            "user_id": some(int(rng.integers(-(2**62), 2**62))),
            "country": some(str(rng.choice(["de", "fr", "xx"]))),
            "history": some(rng.integers(0, 500, int(rng.integers(0, 6))).tolist()),
            "age_days": some(float(rng.lognormal(2, 2))),
            "tab": some(int(rng.integers(0, 4))),
        }
        rows += [
            {
                "request": f"r{request}",
                "row": f"r{request}-{candidate}",
                **user,
                "video_id": some(int(rng.integers(0, 10**9))),
                "tag": some(str(rng.choice(["x", "y", "é"]))),
                "topics": some([some(int(topic)) for topic in rng.integers(5, 11, int(rng.integers(0, 6)))]),
                "duration_ms": some(float(rng.lognormal(9, 2))),
            }
            for candidate in range(int(rng.integers(1, 8)))
        ]
    lists = pa.list_(pa.int64())
    kinds = {"history": lists, "topics": lists}
    order = rng.permutation(len(rows))
    return pa.table({
        name: pa.array([rows[row][name] for row in order], kinds.get(name)) for name in rows[0]
    })  # fmt: skip


def write_log(folder: Path, table: pa.Table, row_group_size: int = 20) -> Path:
    """Two files of a log."""
    folder.mkdir(exist_ok=True)
    half = table.num_rows // 2
    pq.write_table(table.slice(0, half), folder / "a.parquet", row_group_size=row_group_size)
    pq.write_table(table.slice(half), folder / "b.parquet", row_group_size=row_group_size)
    return folder


def served(models: Path, table: pa.Table) -> dict[str, dict[str, float]]:
    """By row: score and answers of POST /v1/rank, a request for each value of `request`."""
    asked = {side: [feature.name for feature in tiny_schema().requested(side)] for side in ("request", "candidate")}
    by_request: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        by_request.setdefault(row["request"], []).append(row)
    answers: dict[str, dict[str, float]] = {}
    with client_of(models) as client:
        for rows in by_request.values():
            features = {name: [row[name] for row in rows] for name in asked["candidate"]}
            user = {name: rows[0][name] for name in asked["request"]}
            ids = [row["row"] for row in rows]
            reply = client.post("/v1/rank", json={"user": user, "candidates": {"id": ids, "features": features}})
            assert reply.status_code == 200, reply.text
            ranked = reply.json()["candidates"]
            for place, name in enumerate(ranked["id"]):
                tasks = {task: ranked["tasks"][task][place] for task in TASKS}
                answers[name] = {"score": ranked["score"][place], **tasks}
    return answers


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("scored") / "models"
    path = publish_artifact(models)
    weights = {"click": 1.0, "like": 3.5, "play_time": 1e-6}
    (models / "tiny" / "value_models.yaml").write_text(
        json.dumps({"default": {"kind": "weighted_sum", "weights": weights}}), encoding="utf-8"
    )
    return path


def scored(out: Path) -> dict[str, dict[str, Any]]:
    """By row, what was written, tasks by their names. pyarrow reads the folder as one dataset."""
    rows = [
        {name.removeprefix("answer_"): value for name, value in row.items()} for row in pq.read_table(out).to_pylist()
    ]
    return {row["row"]: row for row in rows}


@pytest.mark.parametrize("group_by", [None, "request"])
def test_batch_scores_are_what_the_service_answers(version: Path, tmp_path: Path, group_by: str | None) -> None:
    table = log_table()
    out = tmp_path / "out"
    job = Job.of(version, str(write_log(tmp_path / "in", table)), out, columns=["row"], group_by=group_by)

    manifest = score(job, rows_per_part=20, show=False)

    expected, got = served(version.parents[1], table), scored(out)
    assert got.keys() == expected.keys()
    assert len(got) == manifest["rows"] == table.num_rows
    for name, answers in expected.items():
        for column, value in answers.items():
            assert abs(got[name][column] - value) <= TOLERANCE[column] * max(1.0, abs(value)), (name, column)
    # The rows stand as they stood in the input: parts by name, rows within.
    assert pq.read_table(out).column("row").to_pylist() == table.column("row").to_pylist()
    assert (manifest["model"], manifest["model_version"], manifest["engine"]) == ("tiny", "1", "torchscript")
    assert manifest["missing"]["tag"] == table.column("tag").null_count


def _runs(process: psutil.Process) -> bool:
    # Where nobody reaps orphans, one that has ended stays as a zombie.
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_bytes(version: Path, tmp_path: Path) -> None:
    folder = write_log(tmp_path / "in", log_table(150), row_group_size=10)
    options = ["score", str(version), str(folder), "--columns", "row,request", "--group-by", "request"]
    options += ["--rows-per-part", "10"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*options, "--out", str(whole), "--processes", "1"]) == 0
    files = sorted(path.name for path in whole.glob("*.parquet"))

    command = [sys.executable, "-m", "training", *options, "--out", str(out), "--processes", "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.glob("part-*.parquet")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    while any(_runs(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.01)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 0 < len(finished) < len(files)
    assert not (out / SCORED).exists()
    # Of what a crash leaves half written, nothing is taken.
    (out / ".part-00000-00000.parquet.partial").write_bytes(b"PAR1")

    assert main([*options, "--out", str(out), "--processes", "1"]) == 0

    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == sorted([SCORED, *files])
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in files)
    assert all((out / name).stat().st_mtime_ns == then for name, then in finished.items())
    checksums = [part["sha256"] for part in json.loads((out / SCORED).read_text())["parts"]]
    assert checksums == [part["sha256"] for part in json.loads((whole / SCORED).read_text())["parts"]]


def test_what_changed_is_scored_again_and_nothing_else(version: Path, tmp_path: Path) -> None:
    table, out = log_table(), tmp_path / "out"
    folder = write_log(tmp_path / "in", table)

    def times(version: Path = version) -> dict[str, int]:
        score(Job.of(version, str(folder), out, columns=["row"]), show=False)
        return {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}

    first = times()
    assert times() == first
    before = scored(out)
    pq.write_table(log_table(seed=1).slice(0, 8), folder / "b.parquet")
    second = times()
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"part-00001-00000.parquet"}
    other = publish_artifact(version.parents[1], seed=1)
    third = times(other)
    assert all(third[name] != second[name] for name in third)
    after = scored(out)
    same = before.keys() & after.keys()
    assert same
    assert all(before[row]["click"] != after[row]["click"] for row in same)
    (out / "mine.parquet").write_bytes((folder / "a.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"mine\.parquet: not written by batch scoring"):
        times(other)


def spoiled(table: pa.Table, column: str, row: int, value: Any, kind: pa.DataType | None = None) -> pa.Table:
    values = table.column(column).to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), column, pa.array(values, kind))


def test_a_bad_row_is_named_or_counted_within_the_budget(version: Path, tmp_path: Path) -> None:
    table = log_table()
    bad = spoiled(spoiled(table, "duration_ms", 25, float("nan")), "video_id", 3, 2**63 + 5, pa.uint64())
    bad = spoiled(bad, "age_days", 3, float("inf"))  # a row is counted once
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(bad, folder / "a.parquet", row_group_size=20)

    def run(budget: int) -> dict[str, Any]:
        job = Job.of(version, str(folder), tmp_path / "out", columns=["row"], max_bad_rows=budget)
        return score(job, rows_per_part=20, show=False)

    with pytest.raises(ValueError, match=r"a\.parquet: row group 0, row 3: column 'video_id': an id beyond int64$"):
        run(0)
    with pytest.raises(ValueError, match=r"row group 1, row 5: column 'duration_ms': NaN.*more .* bad .* 1 allows"):
        run(1)
    assert not (tmp_path / "out" / SCORED).exists()
    manifest = run(2)
    assert manifest["bad_rows"] == 2
    assert len(manifest["faults"]) == 2
    good = tmp_path / "good"
    whole = score(Job.of(version, str(write_log(tmp_path / "clean", table)), good, columns=["row"]), show=False)
    assert whole["bad_rows"] == 0
    clean, got = scored(good), scored(tmp_path / "out")
    for place, row in enumerate(table.column("row").to_pylist()):
        for column in ("score", *TASKS):
            if place in (3, 25):
                assert got[row][column] is None
            else:
                assert got[row][column] == pytest.approx(clean[row][column], rel=1e-5)


@pytest.mark.parametrize("group_by", [None, "request"])
def test_columns_of_views_and_decimals_are_scored_as_plain_ones(
    version: Path, tmp_path: Path, group_by: str | None
) -> None:
    table = log_table().select([name for name in log_table().column_names if name != "age_days"])
    ages = [None if row % 3 else Decimal(row) / 4 for row in range(table.num_rows)]
    plain = table.append_column("age_days", pa.array([None if age is None else float(age) for age in ages]))
    if group_by is not None:  # one user a request
        plain = plain.set_column(plain.column_names.index("age_days"), "age_days", pa.nulls(plain.num_rows))
        ages = [None] * plain.num_rows
    kinds = {
        "request": pa.string_view(),
        "row": pa.string_view(),
        "country": pa.string_view(),
        "tag": pa.string_view(),
        "history": pa.list_view(pa.int64()),
        "topics": pa.large_list_view(pa.int64()),
        "user_id": pa.decimal128(38, 0),
        "video_id": pa.decimal128(20, 0),
        "age_days": pa.decimal128(38, 18),
    }
    odd = pa.table({
        name: pa.array(ages if name == "age_days" else column.to_pylist(), kinds.get(name, column.type))
        for name, column in zip(plain.column_names, plain.columns, strict=True)
    })  # fmt: skip
    answers = []
    for name, log in (("plain", plain), ("odd", odd)):
        folder = write_log(tmp_path / name, log)
        job = Job.of(version, str(folder), tmp_path / f"{name}-out", columns=["row"], group_by=group_by)
        score(job, show=False)
        answers.append(scored(tmp_path / f"{name}-out"))
    assert answers[0] == answers[1]


def test_text_that_is_not_utf8_is_a_bad_row(version: Path, tmp_path: Path) -> None:
    table = log_table()
    tags = [b"\xff" if row == 7 else str(tag).encode() for row, tag in enumerate(table.column("tag").to_pylist())]
    place = table.column_names.index("tag")
    table = table.set_column(place, "tag", pa.array(tags).cast(pa.string(), safe=False))
    folder = write_log(tmp_path / "in", table)
    with pytest.raises(
        ValueError, match=r"a\.parquet: row group 0, row 7: column 'tag': text that is not valid UTF-8$"
    ):
        score(Job.of(version, str(folder), tmp_path / "out", columns=["row"]), show=False)
    job = Job.of(version, str(folder), tmp_path / "out", columns=["row"], max_bad_rows=1)
    assert score(job, show=False)["bad_rows"] == 1


def test_a_request_has_one_user(version: Path, tmp_path: Path) -> None:
    table = log_table()
    requests = table.column("request").to_pylist()
    later = next(row for row, name in enumerate(requests) if requests.index(name) < row)
    for column, value in (("tab", 77), ("country", "zz"), ("history", [1, 2, 3, 4, 5, 6, 7])):
        folder = write_log(tmp_path / column, spoiled(table, column, later, value))
        job = Job.of(version, str(folder), tmp_path / f"{column}-out", group_by="request")
        with pytest.raises(ValueError, match=rf"row {later % 20}: column '{column}': differs within its request"):
            score(job, show=False)
    folder = write_log(tmp_path / "null", spoiled(table, "request", later, None))
    with pytest.raises(ValueError, match="column 'request': null; a row needs its request"):
        score(Job.of(version, str(folder), tmp_path / "null-out", group_by="request"), show=False)


@pytest.mark.parametrize("prefix", ["", "new_"])
def test_labels_are_carried_beside_the_answers_of_their_tasks(version: Path, tmp_path: Path, prefix: str) -> None:
    """A log's labels have the names of tasks, and it may hold scores of another model."""
    table = log_table(4)
    labels = np.arange(table.num_rows) % 2
    own = {"click": labels, **({"score": labels + 0.25, "answer_like": labels + 0.5} if prefix else {})}
    for name, values in own.items():
        table = table.append_column(name, pa.array(values))
    folder, out = write_log(tmp_path / "in", table), tmp_path / "out"
    options = ["--columns", ",".join(own), "--processes", "1", *(["--prefix", prefix] if prefix else [])]
    assert main(["score", str(version), str(folder), "--out", str(out), *options]) == 0
    written = pq.read_table(out)
    answers = [f"{prefix}{name}" for name in ("score", "answer_click", "answer_like", "answer_play_time")]
    assert written.column_names == [*own, *answers]
    for name, values in own.items():
        assert written.column(name).to_pylist() == values.tolist()
    assert 0.0 < written.column(f"{prefix}answer_click")[0].as_py() < 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--columns", "answer_click"], "'answer_click' is a column of the answers; give those another --prefix"),
        (["--columns", "score"], "'score' is a column of the answers; give those another --prefix"),
        (["--columns", "p_score", "--prefix", "p_"], "'p_score' is a column of the answers"),
        (["--columns", "row,row"], "'row' is named twice"),
        (["--columns", "nowhere"], "a.parquet: no column 'nowhere'"),
        (["--value-model", "other"], "no 'other' in .*there are: default"),
        (["--processes", "0"], "--processes: at least 1"),
        (["--engine", "compiled"], "compiled"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    folder = write_log(tmp_path / "in", log_table(2))
    assert main(["score", str(version), str(folder), "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1

    assert re.search(message, error[0]), error


def test_a_column_of_another_type_is_refused(version: Path, tmp_path: Path) -> None:
    table = log_table(3)
    words = pa.array(["7"] * table.num_rows)
    folder = write_log(tmp_path / "in", table.set_column(table.column_names.index("video_id"), "video_id", words))
    with pytest.raises(ValueError, match=r"a\.parquet: column 'video_id': is string, an id of dtype int64"):
        score(Job.of(version, str(folder), tmp_path / "out"), show=False)


def test_a_worker_imports_no_torchrec() -> None:
    code = "import sys, training.score.workers; sys.exit('torchrec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
