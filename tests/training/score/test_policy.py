"""Batch scoring by a policy: places of every request as its policy orders it alone, whatever the cuts of the file."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.policies.candidates import CandidateValues
from model.policies.place import Placing
from model.policies.policies import Policies
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact
from tests.service.in_process import client_of
from tests.training.score.test_score import log_table
from training.__main__ import main
from training.score import part as part_of_score
from training.score.job import Job
from training.score.run import SCORED, score
from training.score.whole_requests import whole_requests

POLICIES: dict[str, Any] = {
    "plain": {},
    "all": {
        "filter": ["not duration_ms > 30000"],
        "dedup": ["tag", "video_id"],
        "boost": [{"when": "duration_ms >= 3000", "multiply": 2}],
        "decay": {"per": "tag", "factor": 0.5},
        "select": {
            "cap": {"per": "tag", "count": 1, "within": 3, "else": "drop"},
            "mmr": {"lambda": 0.6, "head": 4, "by": "video_id"},
            "explore": {"temperature": 5, "head": 5, "share": 1},
        },
    },
    "capped": {"select": {"cap": {"per": "tag", "count": 1, "within": 3, "else": "relax"}}},
    "seen": {"seen": {"field": "history", "by": "video_id", "within": "1h"}},
    "own": {"dedup": ["id"]},
}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = publish_artifact(tmp_path_factory.mktemp("placed") / "models")
    (path.parent / "policies.yaml").write_text(json.dumps(POLICIES), encoding="utf-8")
    return path


def sorted_log(requests: int = 40) -> pa.Table:
    """A log whose requests stand together, their rows shuffled, of two videos."""
    table = log_table(requests)
    videos = [None if video is None else video % 2 for video in table.column("video_id").to_pylist()]
    table = table.set_column(table.column_names.index("video_id"), "video_id", pa.array(videos, pa.int64()))
    return table.take(pa.array(np.argsort(table.column("request").to_numpy(), kind="stable")))


def written(folder: Path, table: pa.Table, row_group_size: int = 10) -> Path:
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet", row_group_size=row_group_size)
    return folder


def placed_alone(scorer: Scorer, rows: list[dict[str, Any]], name: str) -> list[tuple[int | None, str | None]]:
    """Place and stage of one request's rows, by one call of the policy on their written scores."""
    content = json.dumps({name: {**POLICIES[name], "select": _unexplored(name)}}).encode()
    policy = Policies.from_bytes(content, "policies.yaml", scorer.schema, scorer.domain)[name]
    features = {feature: [row[feature] for row in rows] for feature in ("video_id", "tag", "topics", "duration_ms")}
    columns = scorer.encoder.columns("candidate", features, len(rows))
    encoded = scorer.encoder.encode("candidate", columns, len(rows), as_served=True)
    placed = policy.place(
        Placing(
            np.array([row["score"] for row in rows]),
            {task: np.array([row[f"answer_{task}"] for row in rows], np.float32) for task in scorer.outputs},
            CandidateValues(policy.readable, columns, [row["row"] for row in rows]),
            {},
            lambda feature: scorer.candidate_vectors(feature, encoded),
            0.0,
            None,
            "any",
        )
    )
    places: list[tuple[int | None, str | None]] = [(None, None)] * len(rows)
    for place, row in enumerate(placed.order_K.tolist()):
        places[row] = (place, None)
    for stage, dropped in placed.dropped.items():
        for row in dropped.tolist():
            places[row] = (None, stage)
    return places


def _unexplored(name: str) -> dict[str, Any] | None:
    stages = {key: value for key, value in POLICIES[name].get("select", {}).items() if key != "explore"}
    return stages or None


def by_request(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    requests: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        requests.setdefault(row["request"], []).append(row)
    return requests


@pytest.mark.parametrize("name", ["plain", "all", "capped"])
def test_each_request_is_placed_as_alone(
    version: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = sorted_log()
    monkeypatch.setattr(part_of_score, "BATCH_ROWS", 7)
    columns = ["row", "request", "video_id", "tag", "topics", "duration_ms"]
    job = Job.of(
        version, str(written(tmp_path / "in", table)), tmp_path / "out",
        columns=columns, group_by="request", policy=name,
    )  # fmt: skip
    manifest = score(job, rows_per_part=10, show=False)
    got = pq.read_table(tmp_path / "out")
    assert got.column("row").to_pylist() == table.column("row").to_pylist()
    stages: list[str] = []
    scorer = Scorer.load(version)
    for rows in by_request(got).values():
        expected = placed_alone(scorer, rows, name)
        assert [(row["place"], row["dropped"]) for row in rows] == expected
        stages += [stage for _, stage in expected if stage is not None]
    assert manifest["dropped"] == {stage: stages.count(stage) for stage in set(stages)}
    assert set(stages) == ({"filter", "dedup", "cap"} if name == "all" else set())
    assert (manifest["relaxed"] > 0) == (name == "capped")
    assert (manifest["policy"], len(manifest["parts"])) == (name, 1)


def test_places_are_those_that_the_service_answers(version: Path, tmp_path: Path) -> None:
    table = sorted_log(12)
    options = ["--out", str(tmp_path / "out"), "--columns", "row", "--prefix", "p_", "--group-by", "request"]
    options += ["--policy", "capped", "--processes", "1"]
    assert main(["score", str(version), str(written(tmp_path / "in", table)), *options]) == 0
    place_of = {row["row"]: row["p_place"] for row in pq.read_table(tmp_path / "out").to_pylist()}
    with client_of(version.parents[1]) as client:
        for rows in by_request(table).values():
            user = {name: rows[0][name] for name in ("user_id", "country", "history", "age_days", "tab")}
            features = {name: [row[name] for row in rows] for name in ("video_id", "tag", "topics", "duration_ms")}
            candidates = {"id": [row["row"] for row in rows], "features": features}
            reply = client.post("/v1/rank", json={"user": user, "candidates": candidates, "policy": "capped"})
            assert reply.status_code == 200, reply.text
            answered = reply.json()["candidates"]["id"]
            assert sorted(answered, key=place_of.__getitem__) == answered


def test_a_bad_row_is_no_candidate(version: Path, tmp_path: Path) -> None:
    table = sorted_log(6)
    values = table.column("duration_ms").to_pylist()
    values[4] = float("nan")
    table = table.set_column(table.column_names.index("duration_ms"), "duration_ms", pa.array(values))
    job = Job.of(
        version, str(written(tmp_path / "in", table)), tmp_path / "out",
        columns=["row", "request"], group_by="request", policy="plain", max_bad_rows=1,
    )  # fmt: skip
    assert score(job, show=False)["bad_rows"] == 1
    got = pq.read_table(tmp_path / "out").to_pylist()
    assert (got[4]["score"], got[4]["place"], got[4]["dropped"]) == (None, None, None)
    for rows in by_request(pa.Table.from_pylist([row for row in got if row["place"] is not None])).values():
        assert sorted(row["place"] for row in rows) == list(range(len(rows)))


def test_a_policy_that_changed_places_again(version: Path, tmp_path: Path) -> None:
    folder, file = written(tmp_path / "in", sorted_log(6)), tmp_path / "policies.yaml"

    def run(policies: dict[str, Any]) -> int:
        file.write_text(json.dumps(policies), encoding="utf-8")
        job = Job.of(version, str(folder), tmp_path / "out", group_by="request", policy="one", policies_file=file)
        score(job, show=False)
        assert json.loads((tmp_path / "out" / SCORED).read_text())["policy"] == "one"
        return next((tmp_path / "out").glob("*.parquet")).stat().st_mtime_ns

    first = run({"one": {}})
    assert run({"other": {}, "one": {}}) == first
    assert run({"one": {"filter": ["click > 2"]}}) != first
    written_rows = pq.read_table(tmp_path / "out")
    assert set(written_rows.column("dropped").to_pylist()) == {"filter"}
    assert written_rows.column("place").null_count == written_rows.num_rows


@pytest.mark.parametrize("cut_inside", [True, False])
def test_a_request_that_two_files_share_is_said(
    version: Path, tmp_path: Path, cut_inside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    table = sorted_log(8)
    names = table.column("request").to_pylist()
    cut = next(row for row in range(1, len(names)) if (names[row] == names[row - 1]) == cut_inside)
    folder = written(tmp_path / "in", table.slice(0, cut))
    pq.write_table(table.slice(cut), folder / "b.parquet")
    job = Job.of(version, str(folder), tmp_path / "out", group_by="request", policy="plain")
    assert score(job, show=False)["split_requests"] == cut_inside
    assert ("1 request: the last request of a file" in caplog.text) == cut_inside


def test_tables_are_cut_between_requests() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.integers(1, 9, rng.integers(1, 12))
        names = np.repeat(np.arange(len(lengths)), lengths)
        table = pa.table({"g": [f"r{name}" for name in names], "n": np.arange(len(names))})
        step = int(rng.integers(1, 10))
        cut = list(whole_requests((table.slice(at, step) for at in range(0, len(names), step)), "g", str))
        assert pa.concat_tables(cut).column("n").to_pylist() == list(range(len(names)))
        parts = [set(one.column("g").to_pylist()) for one in cut]
        assert sum(map(len, parts)) == len(lengths)


@pytest.mark.parametrize(
    ("groups", "step", "message"),
    [
        (["a", "b", "b", "a"], 4, r"^3: column 'g': a request that came before"),
        (["a", "b", "b", "a", "c"], 1, r"^3: column 'g': a request that came before"),
        (["a", None, "a"], 2, r"^2: column 'g': a request that came before"),
        (["a", "b", "b", "b", "b"], 2, r"^1: column 'g': a request of more than 3 rows"),
    ],
)
def test_requests_that_cannot_be_placed_are_refused(groups: list[str | None], step: int, message: str) -> None:
    table = pa.table({"g": groups})
    with pytest.raises(ValueError, match=message):
        list(whole_requests((table.slice(at, step) for at in range(0, len(groups), step)), "g", str, most=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "plain"], "--policy: .*--group-by"),
        (["--policies", "p.yaml", "--group-by", "request"], "--policies: without --policy"),
        (["--policy", "nobody", "--group-by", "request"], "no 'nobody' in .*there are: plain, all"),
        (["--policy", "plain", "--policies", "nowhere.yaml", "--group-by", "request"], "nowhere.yaml: cannot be read"),
        (["--policy", "seen", "--group-by", "request"], "policies.yaml: seen: seen: a log has no times"),
        (["--policy", "own", "--group-by", "request"], "policies.yaml: own: 'id': .*name an id feature"),
        (["--policy", "plain", "--group-by", "request", "--columns", "place"], "'place' is a column of the answers"),
        (["--policy", "plain", "--group-by", "request"], "row group 0, row 2: column 'request': a request that came"),
    ],
)
def test_faults_are_one_line(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    table = sorted_log(4)
    requests = pa.array(["x", "y", "x", *(f"z{row}" for row in range(table.num_rows - 3))])
    folder = written(tmp_path / "in", table.set_column(table.column_names.index("request"), "request", requests))
    command = ["score", str(version), str(folder), "--out", str(tmp_path / "out"), "--processes", "1", *options]
    assert main(command) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, lines[-1]), lines
