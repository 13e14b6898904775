"""Replay by a policy, and estimates of what users would have done, against loops over made lines of the log."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats

from model.schema import FeedSchema
from service.replay import replay
from service.replay.estimate import label_worths
from service.replay.joined_rewards import JoinedRewards
from tests.artifacts import TINY_REQUEST, TINY_SCHEMA, publish_artifact

HEAD = 3
POLICIES = {
    "logging": {"select": {"explore": {"temperature": 2.0, "head": HEAD, "share": 1.0}}},
    "cooler": {"select": {"explore": {"temperature": 1.5, "head": HEAD, "share": 1.0}}},
    "first_of_tag": {"dedup": ["tag"]},
    "capped": {"select": {"cap": {"per": "tag", "count": 1, "within": 2}}},
    "unseen": {"seen": {"field": "watched", "by": "video_id", "within": "1h"}},
    "similar": {"select": {"mmr": {"lambda": 0.5, "head": 4, "by": "video_id"}}},
}
REQUESTS = 240
HOUR = "2026-11-29T20"
CLICK_LABEL = next(task["label"] for task in TINY_SCHEMA["tasks"] if task["name"] == "click")


def probabilities(scores: list[float], order: list[int], temperature: float) -> list[float]:
    """Probability of each of the first places by a softmax over what is left, by hand."""
    deviation = float(np.std(sorted(scores, reverse=True)[:HEAD]))
    found, left = [], list(range(len(scores)))
    for place, row in enumerate(order):
        weights = {one: math.exp((scores[one] - max(scores)) / (temperature * deviation)) for one in left}
        found.append(weights[row] / math.fsum(weights.values()) if place < HEAD else 1.0)
        left.remove(row)
    return found


def made_line(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """A line of the log whose order was drawn, place by place, by the policy `logging`."""
    rows = 6
    scores = rng.random(rows).round(3).tolist()
    left = list(range(rows))
    order: list[int] = []
    for _ in range(HEAD):
        weights = [probabilities(scores, [*order, one], 2.0)[-1] for one in left]
        order.append(left.pop(int(rng.choice(len(left), p=np.array(weights) / sum(weights)))))
    order += sorted(left, key=lambda one: (-scores[one], one))
    features = {
        "video_id": rng.integers(0, 200, rows).tolist(),
        "tag": rng.choice(["x", "y", "z"], rows).tolist(),
        "topics": [[] for _ in range(rows)],
        "duration_ms": rng.integers(0, 60_000, rows).tolist(),
    }
    tasks = {"click": scores, "like": [0.1] * rows, "play_time": [3.0] * rows}
    return {
        "format": 2, "time": f"{HOUR}:{number % 60:02d}:00.{number:03d}Z", "request_id": f"r-{number}", "model": "tiny",
        "model_version": "1", "calibration": None, "value_model": "default", "value_model_version": "00000000",
        "policy": "logging", "policy_version": "00000000", "experiments": {}, "user_hash": f"{number % 200:032x}",
        "share": 1.0, "top_k": None, "catalogue": None, "user": TINY_REQUEST["user"],
        "candidates": {"id": [f"c-{n}" for n in range(rows)], "features": features}, "score": scores, "tasks": tasks,
        "raw": tasks, "order": order, "propensity": probabilities(scores, order, 2.0),
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, list[dict[str, Any]]]:
    """A models folder, a log, joined rows of what was shown, the first two places at most, and the log's lines."""
    models, log, joined = (tmp_path_factory.mktemp(name) for name in ("models", "log", "joined"))
    publish_artifact(models)
    (models / "tiny" / "value_models.yaml").write_text("default: {kind: weighted_sum, weights: {click: 1.0}}")
    (models / "tiny" / "policies.yaml").write_text(yaml.safe_dump(POLICIES))
    rng = np.random.default_rng(1)
    lines = [made_line(rng, number) for number in range(REQUESTS)]
    # One that did not explore, and one of an hour that is not joined.
    others = [{**lines[0], "propensity": None}, {**lines[1], "time": "2026-11-29T21:00:00.000Z"}]
    (log / "impressions-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *others]))
    rows: list[dict[str, Any]] = []
    for line in lines:
        line["clicks"] = [0, 0]
        for place in range(int(rng.integers(0, 3))):
            line["clicks"][place] = int(rng.random() < line["score"][line["order"][place]])
            rows.append(
                {"_request_id": line["request_id"], "_time": line["time"], "_position": place, CLICK_LABEL:
                 line["clicks"][place], "_propensity": line["propensity"][place]}
            )  # fmt: skip
    table = pa.Table.from_pylist(rows)
    times = table.column("_time").cast(pa.timestamp("ms", "UTC"))
    table = table.set_column(table.column_names.index("_time"), "_time", times)
    folder = joined / "date=20261129"
    folder.mkdir()
    pq.write_table(table, folder / "20261129T20.parquet")
    return models, log, joined, lines


def run(models: Path, log: Path, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    found = tmp_path / "found.json"
    assert replay.main([str(log), "--models", str(models), "--json", str(found), *arguments]) == 0
    document: dict[str, Any] = json.loads(found.read_text())
    return document


def test_the_estimate_is_that_of_the_formulas(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, log, joined, lines = made
    found = run(models, log, tmp_path, "--policy", "cooler", "--estimate", str(joined))["estimate"]
    assert found["requests"] == {"explored": REQUESTS, "not_explored": 1, "not_joined": 1, "without_user": 0}
    assert found["places"] == 2
    ratios = [
        [np.array(probabilities(line["score"], line["order"][:2], temperature)) for temperature in (1.5, 2.0)]
        for line in lines
    ]
    weights = np.array([(target / logged).cumprod() for target, logged in ratios])
    clicks = np.array([line["clicks"] for line in lines], float)
    expected = ((weights * clicks).sum(axis=0) / weights.sum(axis=0)).sum()
    assert found["self_normalised"]["value"] == pytest.approx(expected)
    assert found["observed"] == pytest.approx(clicks.sum(axis=1).mean())
    of_user = np.zeros((200, 2))
    np.add.at(of_user, np.arange(REQUESTS) % 200, weights)
    assert found["effective_users"] == pytest.approx((of_user.sum(axis=0) ** 2 / (of_user**2).sum(axis=0)).tolist())
    assert found["doubly_robust"]["low"] < found["doubly_robust"]["value"] < found["doubly_robust"]["high"]
    said = capsys.readouterr().out
    assert "as the policy would have it, self-normalised:" in said
    assert "1 that explored are left out: their hours are not joined" in said


def test_the_policy_that_explored_is_worth_what_was_observed(made: Any, tmp_path: Path) -> None:
    models, log, joined, _ = made
    arguments = ("--policy", "logging", "--estimate", str(joined), "--realised", "click=2")
    found = run(models, log, tmp_path, *arguments)["estimate"]
    assert found["self_normalised"]["value"] == pytest.approx(found["observed"])
    assert found["mean_weight"] == pytest.approx([1.0, 1.0])


def test_a_policy_without_support_is_refused(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, log, joined, lines = made
    found = run(models, log, tmp_path, "--estimate", str(joined))["estimate"]
    followed = [line["order"][:2] == sorted(range(6), key=lambda one: (-line["score"][one], one))[:2] for line in lines]
    assert sum(followed) < 100
    assert found["self_normalised"] is None
    assert found["doubly_robust"] is None
    assert "effective users" in found["refused"]
    assert "refused: " in capsys.readouterr().out


def test_a_policy_moves_orders_as_its_definition_says(made: Any, tmp_path: Path) -> None:
    models, log, _, lines = made
    found = run(models, log, tmp_path, "--policy", "first_of_tag")
    tags = [line["candidates"]["features"]["tag"] for line in [*lines, lines[0], lines[1]]]
    assert found["policy"]["dropped"] == {"dedup": sum(len(of) - len(set(of)) for of in tags)}
    taus = []
    for line in [*lines, lines[0], lines[1]]:
        order: list[int] = []
        tag_of = line["candidates"]["features"]["tag"]
        by_score = sorted(range(6), key=lambda one: (-line["score"][one], one))
        for row in by_score:
            if tag_of[row] not in {tag_of[one] for one in order}:
                order.append(row)
        order += [row for row in by_score if row not in order]
        places = [[of.index(row) for row in range(6)] for of in (line["order"], order)]
        taus.append(stats.kendalltau(*places).statistic)
    assert found["ranking"]["kendall_tau"]["mean"] == pytest.approx(np.mean(taus))
    assert run(models, log, tmp_path, "--policy", "similar")["ranking"]["kendall_tau"]["requests"] == REQUESTS + 2
    assert run(models, log, tmp_path, "--policy", "capped")["policy"]["relaxed"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "none"], "no policy 'none'; "),
        (["--policy", "cooler", "--policies", "absent.yaml"], "absent.yaml: cannot be read"),
        (["--estimate", "absent"], "absent: no file of an hour here"),
        (["--estimate", "JOINED", "--realised", "clicks=1"], "unknown output 'clicks'; did you mean 'click'?"),
        (["--estimate", "JOINED", "--realised", "like=1"], "no column"),
    ],
)
def test_what_cannot_be_estimated_is_refused(
    made: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    models, log, joined, _ = made
    given = [str(joined) if one == "JOINED" else one for one in arguments]
    assert replay.main([str(log), "--models", str(models), *given]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_file_of_joined_rows_is_named(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, log, joined, _ = made
    folder = tmp_path / "joined" / "date=20261129"
    folder.mkdir(parents=True)
    whole = (joined / "date=20261129" / "20261129T20.parquet").read_bytes()
    (folder / "20261129T20.parquet").write_bytes(whole[: len(whole) // 2])
    assert replay.main([str(log), "--models", str(models), "--estimate", str(tmp_path / "joined")]) == 2
    assert "20261129T20.parquet: a damaged Parquet file" in capsys.readouterr().err


def test_logs_and_rows_elsewhere_give_the_same(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, log, joined, _ = made
    elsewhere = fsspec.filesystem("memory")
    for folder, url in ((log, "/copies/log/writer-1"), (joined, "/copies/joined")):
        elsewhere.put(str(folder), url, recursive=True)
    arguments = ("--policy", "cooler", "--estimate")
    here = run(models, log, tmp_path, *arguments, str(joined))
    found = tmp_path / "elsewhere.json"
    flags = ["--models", str(models), "--json", str(found), *arguments, "memory://copies/joined"]
    assert replay.main(["memory://copies/log", *flags]) == 0
    assert json.loads(found.read_text()) == here
    assert "memory://copies/log: 1 files," in capsys.readouterr().err
    assert replay.main(["memory://copies/joined", *flags]) == 2
    assert "memory://copies/joined: no impression log there" in capsys.readouterr().err
    elsewhere.pipe_file("/copies/log/writer-1/impressions-1.parquet", b"PAR1")
    assert replay.main(["memory://copies/log", *flags]) == 2
    assert "memory://copies/log/impressions-1.parquet: a damaged Parquet file" in capsys.readouterr().err


def test_histories_count_by_their_times(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, _, _, lines = made
    now = datetime.fromisoformat(lines[0]["time"]).timestamp()
    ids = lines[0]["candidates"]["features"]["video_id"]
    watched = [[ids[0], now - 3_601], [str(ids[1]), now - 3_599], [ids[2], now]]
    logged = [
        {**lines[0], "histories": {"watched": watched}},
        {**lines[0], "histories": {"liked": watched}},
        {**lines[0], "histories": None},
    ]
    (tmp_path / "impressions-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
    found = run(models, tmp_path, tmp_path, "--policy", "unseen")
    assert found["policy"]["dropped"] == {"seen": sum(one in (ids[1], ids[2]) for one in ids)}
    assert found["requests"] == {"replayed": 1, "of_other_models": 0, "lost": 0, "damaged": 0, "unscorable": 2}
    assert "seen: the log has no history 'watched' of the user" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("classes", "labels", "type_"),
    [
        ({1: "bad", 2: "fair", 3: "good"}, [3, 1, None], pa.int64()),
        ({"1": "bad", "2": "fair", "3": "good"}, ["3", "1", None], pa.string()),
        (["bad", "fair", "good"], ["good", "bad", None], pa.string()),
    ],
)
def test_classes_have_worths(classes: Any, labels: list[Any], type_: pa.DataType, tmp_path: Path) -> None:
    tasks = [
        {"name": "stars", "kind": "multiclass", "label": "rated", "classes": classes},
        {"name": "minutes", "kind": "regression", "label": "watched"},
    ]
    schema = FeedSchema.from_mapping({**TINY_SCHEMA, "tasks": tasks}, "schema")
    worths = label_worths(schema, {"stars.good": 2.0, "stars.bad": -1.0, "minutes": 0.5})
    time = datetime(2026, 11, 29, 20, 0, 3, tzinfo=UTC)
    columns = {
        "_request_id": ["r"] * 3, "_time": pa.array([time] * 3, pa.timestamp("ms", "UTC")), "_position": [0, 1, None],
        "_propensity": [0.5] * 3, "rated": pa.array(labels, type_), "watched": pa.array([4.0, 0.0, None]),
    }  # fmt: skip
    file = tmp_path / "date=20261129" / "20261129T20.parquet"
    file.parent.mkdir()
    pq.write_table(pa.table(columns), file)
    assert JoinedRewards(str(tmp_path), worths).of_request("r", time) == {0: 2.0 + 2.0, 1: -1.0}
    pq.write_table(pa.table({**columns, "watched": ["long", None, None]}), file)
    with pytest.raises(ValueError, match=r"20261129T20\.parquet: column 'watched' is string, and its task's label"):
        JoinedRewards(str(tmp_path), worths)


@pytest.mark.parametrize(
    "arguments", [["--realised", "click=1"], ["--policies", "f"], ["--estimate", "d", "--places", "0"]]
)
def test_flags_that_belong_to_others_are_refused(made: Any, arguments: list[str]) -> None:
    models, log, _, _ = made
    with pytest.raises(SystemExit):
        replay.main([str(log), "--models", str(models), *arguments])
