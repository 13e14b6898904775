"""Lines of format 2: the order answered, raw answers, the user's hash, and files of format 1 beside them."""

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.impressions.parquet import SCHEMA_1
from service.impressions.reader import entries
from service.impressions.record import Logged, Loss, read_line
from service.replay import replay
from service.settings import read_settings
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import wait_for
from tests.impression_lines import impression_line
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, sample
from tests.service.open_inference.tensors import INFER, tensors_of

KEY = b"a secret of more than 16 bytes"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "user-hash.key"
    file.write_bytes(KEY + b"\n")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


def hash_by_hand(user: str) -> str:
    return hmac.new(KEY, user.encode(), hashlib.sha256).hexdigest()[:32]


def request_of(user: object, **changes: Any) -> dict[str, Any]:
    return {**TINY_REQUEST, "user": {**TINY_REQUEST["user"], "user_id": user}, **changes}


def test_the_order_answered_is_logged_and_the_answers_before_calibration(tmp_path: Path, folder: Path) -> None:
    platt = {"kind": "platt", "slope": 0.5, "intercept": -1.25}
    publish_artifact(tmp_path / "models", calibration={"click": platt})
    with client_of(tmp_path / "models", impression_log=folder, impression_log_sample=0.999999) as client:
        answers = [client.post("/v1/rank", json={**TINY_REQUEST, **changes}).json() for changes in ({}, {"top_k": 2})]
        client.post(INFER, json={"inputs": [one.as_json() for one in tensors_of(TINY_REQUEST)]}).raise_for_status()
    whole, best, tensors = lines_of(folder)
    for line, answer in zip((whole, best), answers, strict=True):
        ids = TINY_REQUEST["candidates"]["id"]
        assert [ids[row] for row in line["order"]] == answer["candidates"]["id"]
        assert line["share"] == 0.999999
    assert len(whole["order"]) == 4
    assert whole["order"][:2] == best["order"]
    assert tensors["order"] == whole["order"]
    # Platt's map by hand, in float64. Answers have the digits of a float32.
    raw = np.array(whole["raw"]["click"])
    by_hand = 1 / (1 + np.exp(-(0.5 * np.log(raw / (1 - raw)) - 1.25)))
    np.testing.assert_allclose(whole["tasks"]["click"], by_hand, rtol=1e-6)
    for task in ("like", "play_time"):
        assert whole["raw"][task] == whole["tasks"][task]
    for name in ("calibration", "policy", "policy_version", "propensity", "user_hash", "catalogue"):
        assert whole[name] is None
    assert (whole["format"], whole["experiments"]) == (2, {})
    simulated = impression_line("r", "", "tiny", user_hash="", user={}, candidates={}, score=[], tasks={})
    assert simulated.keys() == whole.keys()


@pytest.mark.parametrize("features", ["values", "hash"])
def test_a_user_is_one_hash_however_its_id_is_written(tmp_path: Path, folder: Path, key: Path, features: str) -> None:
    publish_artifact(tmp_path / "models", user="user_id")
    settings = {"impression_log": folder, "user_hash_key": key, "impression_log_features": features}
    with client_of(tmp_path / "models", **settings) as client:
        bodies = [request_of(17), request_of("17"), request_of(-9), request_of(None)]
        # Read key by key, as it is no columnar body.
        bodies.append(request_of("17", candidates=[{"id": "a", "features": {"video_id": 3}}]))
        for body in bodies:
            assert client.post("/v1/rank", json=body).status_code == 200
        tensors = {"inputs": [one.as_json() for one in tensors_of(TINY_REQUEST)]}
        client.post(INFER, json=tensors).raise_for_status()
    of_17 = hash_by_hand("17")
    expected = [of_17, of_17, hash_by_hand("-9"), None, of_17, of_17]
    assert [line["user_hash"] for line in lines_of(folder)] == expected


def test_a_user_may_be_a_string_of_any_script(tmp_path: Path, folder: Path, key: Path) -> None:
    publish_artifact(tmp_path / "models", user="country")
    with client_of(tmp_path / "models", impression_log=folder, user_hash_key=key) as client:
        body = {**TINY_REQUEST, "user": {"country": "Zoë 用户"}}
        assert client.post("/v1/rank", json=body).status_code == 200
    (line,) = lines_of(folder)
    assert line["user_hash"] == hash_by_hand("Zoë 用户")


def test_a_model_that_gets_a_user_needs_the_key_and_what_is_not_logged_is_counted(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_artifact(tmp_path / "models")
    with client_of(tmp_path / "models", impression_log=folder) as client:
        assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
        assert sample(client, "ranking_impression_log_total", result="no_key") == 0
        publish_artifact(tmp_path / "models", user="user_id")  # loaded while it serves
        wait_for(lambda: client.post("/v1/rank", json=TINY_REQUEST).json()["model_version"] == "2")
        assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
        assert sample(client, "ranking_impression_log_total", result="no_key") == 2
    lines = lines_of(folder)
    assert {line["model_version"] for line in lines if "lost" not in line} == {"1"}
    told = [record.fields for record in caplog.records if record.name == "feedrank.impressions"]  # type: ignore[attr-defined]
    assert sum(fields["no_key"] for fields in told) == 2
    assert all("start the service with --user-hash-key FILE" in fields["reason"] for fields in told)


def test_a_key_that_is_none_ends_the_start_without_its_content(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key.write_text("a secret")
    with pytest.raises(SystemExit):
        read_settings(["--models", str(tmp_path), "--user-hash-key", str(key)], {})
    said = capsys.readouterr().err
    assert "user-hash.key: the key of user hashes has 16 to 4096 bytes, this file has 8" in said
    assert "a secret" not in said


FIRST: dict[str, Any] = {
    "format": 1,
    "time": "2026-01-02T03:04:05.250+00:00",
    "request_id": "r-1",
    "model": "tiny",
    "model_version": "1",
    "value_model": "default",
    "value_model_version": "x",
    "top_k": 2,
    "catalogue": False,
    "user": {"user_id": 17},
    "candidates": {"id": ["a", "b"], "features": {"video_id": [3, None]}},
    "score": [0.5, 0.25],
    "tasks": {task: [0.5, 0.25] for task in ("click", "like", "play_time")},
}


def test_files_of_format_1_are_replayed_as_lines_and_as_parquet(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    lines = tmp_path / "impressions-a.jsonl"
    hashes = {"user": 2**64 - 1, "candidate_id": [1, 2], "features": [3, 4]}
    hashed = {key: value for key, value in FIRST.items() if key not in ("user", "candidates")} | {"hashes": hashes}
    lines.write_text("".join(json.dumps(line) + "\n" for line in (FIRST, {**FIRST, "catalogue": True}, hashed)))
    # As the column names of its documentation were.
    parquet = tmp_path / "impressions-b.parquet"
    common = {name: FIRST[name] for name in SCHEMA_1.names if name in FIRST}
    common |= {"time": pa.scalar(1767323045250, pa.timestamp("ms", tz="UTC")).as_py()}
    values = {"user": '{"user_id": 17}', "candidate_id": ["a", "b"], "features": '{"video_id": [3, null]}'}
    of_hashes = {"user": None, "user_hash": 2**64 - 1, "candidate_id_hash": [1, 2], "features_hash": [3, 4]}
    rows = [common | values, common | values | {"catalogue": True}, common | of_hashes]
    for row in rows:
        row["tasks"] = list(row["tasks"].items())
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA_1), parquet)
    read = [[entry.logged for entry in entries(file)] for file in (lines, parquet)]
    for line, row in zip(*read, strict=True):
        assert isinstance(line, Logged)
        assert isinstance(row, Logged)
        assert row[1:] == line[1:]
        assert (row.line.hashes, bool(row.line.catalogue)) == (line.line.hashes, bool(line.line.catalogue))
        assert (row.line.share, row.line.order, row.line.format) == (None, None, 1)
    out = tmp_path / "report.json"
    for file in (lines, parquet):
        arguments = [str(file), "--models", str(tmp_path / "models"), "--version", "1", "--json", str(out)]
        assert replay.main(arguments) == 0
        assert json.loads(out.read_text())["requests"]["replayed"] == 3  # by the logged version nothing is computed


SECOND = {**FIRST, "format": 2, "catalogue": None, "share": 1.0, "order": [1, 0], "raw": {"click": [0.5, 0.25]}}


@pytest.mark.parametrize("line", [FIRST, SECOND])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": [0.5]}, "score: 1 values for 2 candidates"),
        ({"tasks": {"click": []}}, "tasks.click: 0 values for 2"),
        ({"raw": {"click": [0.5]}}, "raw.click: 1 values for 2"),
        ({"candidates": {"id": ["a", "b"], "features": {"video_id": [1]}}}, "features.video_id: 1 values for 2"),
        ({"candidates": {"id": [], "features": {}}, "score": [], "tasks": {}, "raw": {}}, "no candidates"),
        ({"model": None}, "`str`"),
        ({"format": 3}, "format"),
    ],
)
def test_a_damaged_line_is_refused_by_its_fault(line: dict[str, Any], change: dict[str, Any], said: str) -> None:
    found = read_line(json.dumps(line).encode())
    assert isinstance(found, Logged)
    assert found.line.score == [0.5, 0.25]
    with pytest.raises(ValueError, match=said):
        read_line(json.dumps({**line, **change}).encode())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"share": None}, "format 2 needs share, raw and order"),
        ({"order": None}, "format 2 needs share, raw and order"),
        ({"share": 0.0}, r"share: 0 is not in \(0, 1\]"),
        ({"share": 1.5}, r"share: 1\.5 is not in"),
        ({"order": [0, 0]}, "order: needs row numbers of 2 candidates, each once at most"),
        ({"order": [2]}, "order: needs row numbers"),
        ({"order": [-1]}, "order: needs row numbers"),
        ({"propensity": [0.5]}, "propensity: 1 values for 2 places"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_line(json.dumps({**SECOND, **change}).encode())


def test_a_loss_is_a_number_and_a_reason() -> None:
    line: dict[str, Any] = {"format": 2, "time": "2026-01-02T03:04:05.250Z", "lost": 3, "reason": "no space left"}
    assert read_line(json.dumps(line).encode()) == Loss(2, "2026-01-02T03:04:05.250Z", 3, "no space left")
    for change in ({"lost": 0}, {"lost": "3"}, {"reason": None}, {"format": 1}):
        with pytest.raises(ValueError, match=r"."):
            read_line(json.dumps({**line, **change}).encode())


def test_no_hash_is_the_same_under_another_key(tmp_path: Path, folder: Path, key: Path) -> None:
    publish_artifact(tmp_path / "models", user="user_id")
    for content in (KEY, os.urandom(32)):
        key.write_bytes(content)
        with client_of(tmp_path / "models", impression_log=folder, user_hash_key=key) as client:
            assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
    first, second = (line["user_hash"] for line in lines_of(folder))
    assert first != second
