"""Replay: requests logged by the service, scored again, against the scorer and plain sorting, with damage and
output."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from scipy import stats

from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from service.impressions.convert import Conversion
from service.impressions.folder import impression_files
from service.impressions.reader import entries, log_files
from service.replay import replay
from tests.artifacts import TINY_REQUEST, TINY_SCHEMA, publish_artifact
from tests.deploy.programs import wait_for
from tests.service.in_process import client_of
from tests.service.running import ROOT

WEIGHTS = {"click": 1.0, "like": -2.5, "play_time": 0.25}
VALUE_MODELS = {
    "default": {"kind": "weighted_sum", "weights": WEIGHTS},
    "likes": {"kind": "weighted_sum", "weights": {"like": 1.0}},
}
REQUESTS = 25


def a_request(rng: np.random.Generator, number: int) -> dict[str, Any]:
    rows = int(rng.integers(1, 30))
    features = {
        "video_id": rng.integers(0, 200, rows).tolist(),
        "tag": rng.choice(["x", "y", "z"], rows).tolist(),
        "topics": [rng.integers(6, 11, int(rng.integers(0, 4))).tolist() for _ in range(rows)],
        "duration_ms": rng.integers(0, 60_000, rows).tolist(),
    }
    return {
        "request_id": f"request-{number}",
        "user": {"user_id": int(rng.integers(0, 99)), "country": "de", "tab": number % 3},
        "candidates": {"id": [f"candidate-{n}" for n in range(rows)], "features": features},
    }


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A models folder and a log of requests that its version 1 answered. Version 2 is the same again, 3 another one."""
    models, log = (tmp_path_factory.mktemp(name) for name in ("models", "log"))
    publish_artifact(models)
    (models / "tiny" / "value_models.yaml").write_text(yaml.safe_dump(VALUE_MODELS))
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conversion, "start", lambda _: None)  # lines stay lines, for tests that change them
        with client_of(models, impression_log=log) as client:
            for number in range(REQUESTS):
                assert client.post("/v1/rank", json=a_request(rng, number)).status_code == 200
    publish_artifact(models)
    publish_artifact(models, seed=1)
    return models, log


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in impression_files(log).whole_files() for line in file.read_text().splitlines()]


def run(models: Path, *arguments: str, log: Path, tmp_path: Path) -> dict[str, Any]:
    found = tmp_path / "found.json"
    assert replay.main([str(log), "--models", str(models), "--json", str(found), *arguments]) == 0
    document: dict[str, Any] = json.loads(found.read_text())
    return document


def answers_of(line: dict[str, Any]) -> NDArray[np.float64]:
    return np.array([line["tasks"][task] for task in WEIGHTS]).T


@pytest.mark.parametrize("version", [None, "1", "2"])
@pytest.mark.parametrize("value_models", ["the model's own", "a file of its own"])
def test_what_is_equal_does_not_move(
    logged: tuple[Path, Path], tmp_path: Path, version: str | None, value_models: str
) -> None:
    models, log = logged
    arguments = [] if version is None else ["--version", version]
    if value_models == "a file of its own":
        path = tmp_path / "value_models.yaml"
        path.write_text(yaml.safe_dump(VALUE_MODELS))
        arguments += ["--value-models", str(path)]
    found = run(models, *arguments, log=log, tmp_path=tmp_path)
    assert found["requests"] == {"replayed": REQUESTS, "of_other_models": 0, "lost": 0, "damaged": 0, "unscorable": 0}
    for key, mean in found["ranking"].items():
        still = 0.0 if key == "first_changes" else 1.0
        assert (mean["mean"], mean["low"], mean["high"]) == (still, still, still)
    for shift in (found["score"], *found["tasks"].values()):
        assert {shift["shift"][end] for end in ("mean", "low", "high")} == {0.0}
        assert shift["before"] == shift["after"]
    assert list(found["tasks"]) == list(WEIGHTS)
    assert found["moved_most"] == []


def _expected(lines: list[dict[str, Any]], now: list[NDArray[np.float64]]) -> tuple[list[float], list[bool]]:
    taus, changes = [], []
    for line, score_N in zip(lines, now, strict=True):
        orders = [np.argsort(-np.array(scores), kind="stable") for scores in (line["score"], score_N)]
        changes.append(bool(orders[0][0] != orders[1][0]))
        if len(score_N) > 1:
            taus.append(float(stats.kendalltau(*map(np.argsort, orders)).statistic))
    return taus, changes


def test_another_value_model_reorders_the_logged_answers(logged: tuple[Path, Path], tmp_path: Path) -> None:
    models, log = logged
    found = run(models, "--value-model", "likes", log=log, tmp_path=tmp_path)
    lines = lines_of(log)
    now = [np.array(line["tasks"]["like"]) for line in lines]
    taus, changes = _expected(lines, now)
    assert found["ranking"]["kendall_tau"]["mean"] == pytest.approx(np.mean(taus), abs=1e-9)
    assert found["ranking"]["kendall_tau"]["requests"] == len(taus)
    assert found["ranking"]["first_changes"]["mean"] == pytest.approx(np.mean(changes), abs=1e-9)
    shifts = [score_N.mean() - np.mean(line["score"]) for line, score_N in zip(lines, now, strict=True)]
    assert found["score"]["shift"]["mean"] == pytest.approx(np.mean(shifts), rel=1e-6)
    assert {shift["shift"]["mean"] for shift in found["tasks"].values()} == {0.0}
    (entry,) = found["value_models"]
    assert entry["logged"].split()[0] == "default"
    assert entry["now"].split()[0] == "likes"
    assert entry["requests"] == REQUESTS
    # The requests that move most keep the fewest of their best ten, then have the smallest tau.
    kept = []
    for line, score_N in zip(lines, now, strict=True):
        best = [set(np.argsort(-np.array(scores), kind="stable")[:10].tolist()) for scores in (line["score"], score_N)]
        kept.append(len(best[0] & best[1]) / min(10, len(score_N)))
    several = [overlap for overlap, line in zip(kept, lines, strict=True) if len(line["score"]) > 1]
    most = sorted(zip(several, taus, strict=True))[:10]
    shown = [(moved["top_10_overlap"], moved["kendall_tau"]) for moved in found["moved_most"]]
    np.testing.assert_allclose(shown, most, atol=1e-9)
    # Nothing of a request is shown.
    assert set(found["moved_most"][0]) == {
        *("place", "candidates", "kendall_tau", "first_changes"),
        *(f"top_{k}_overlap" for k in (1, 5, 10)),
    }


def test_another_version_scores_anew(logged: tuple[Path, Path], tmp_path: Path) -> None:
    models, log = logged
    found = run(models, "--version", "3", log=log, tmp_path=tmp_path)
    scorer, lines = Scorer.load(models / "tiny" / "3"), lines_of(log)
    answers = [
        scorer.score_values(line["user"], line["candidates"]["features"], len(line["score"])).astype(np.float64)
        for line in lines
    ]
    taus, changes = _expected(lines, [answers_NO @ np.array(list(WEIGHTS.values())) for answers_NO in answers])
    assert found["ranking"]["kendall_tau"]["mean"] == pytest.approx(np.mean(taus), abs=1e-9)
    assert found["ranking"]["first_changes"]["mean"] == pytest.approx(np.mean(changes), abs=1e-9)
    sides = ([answers_of(line) for line in lines], answers)
    before, after = (np.mean([given_NO.mean(axis=0) for given_NO in side], axis=0) for side in sides)
    for t, task in enumerate(WEIGHTS):
        shift = found["tasks"][task]
        assert shift["before"]["mean"] == pytest.approx(before[t], rel=1e-9)
        assert shift["after"]["mean"] == pytest.approx(after[t], rel=1e-9)
        assert shift["shift"]["mean"] == pytest.approx(after[t] - before[t], rel=1e-6)
    # Every request leaves history and age_days out, which version 1 knew as well.
    assert found["missing_features"] == {"history": REQUESTS, "age_days": REQUESTS}


def test_damaged_lines_are_counted_and_named_and_the_others_replayed(
    logged: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, log = logged
    (file,) = impression_files(log).whole_files()
    lines = file.read_bytes().splitlines(keepends=True)
    ragged = json.loads(lines[1])
    ragged["score"].append(0.5)
    other = {**json.loads(lines[2]), "model": "another"}
    gone = {**json.loads(lines[3]), "value_model": "no longer there"}
    changed = [json.dumps(line).encode() + b"\n" for line in (ragged, other, gone)]
    path = tmp_path / "some.jsonl"
    loss = b'{"format": 2, "time": "2026-01-02T03:04:05Z", "lost": 12, "reason": "disk"}\n'
    path.write_bytes(b"".join([lines[0], b"\x00\xff\n", lines[1], *changed, lines[4], loss, lines[5][:-30]]))
    found = run(models, "--value-model", "default", log=path, tmp_path=tmp_path)
    assert found["requests"] == {"replayed": 4, "of_other_models": 1, "lost": 12, "damaged": 3, "unscorable": 0}
    assert [fault["place"] for fault in found["damaged"]] == ["some.jsonl:2", "some.jsonl:4", "some.jsonl:9"]
    rows = len(json.loads(lines[1])["score"])
    assert f"score: {rows + 1} values for {rows} candidates" in found["damaged"][1]["fault"]
    found = run(models, log=path, tmp_path=tmp_path)
    assert (found["requests"]["replayed"], found["requests"]["unscorable"]) == (3, 1)
    shown = capsys.readouterr().out
    assert "3 damaged lines:" in shown
    assert "12 requests were lost on their way into the log" in shown
    assert "some.jsonl:6: no value model 'no longer there'; there are: default, likes" in shown


def test_the_open_file_of_a_running_service_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, log = tmp_path / "models", tmp_path / "log"
    publish_artifact(models)
    log.mkdir()
    rng = np.random.default_rng(1)
    with client_of(models, impression_log=log) as client:
        for number in range(3):
            assert client.post("/v1/rank", json=a_request(rng, number)).status_code == 200
        wait_for(lambda: sum(file.read_bytes().count(b"\n") for file in impression_files(log).open_files()) == 3)
        assert impression_files(log).whole_files() == []
        found = run(models, log=log, tmp_path=tmp_path)
        (file,) = impression_files(log).open_files()
        assert found["requests"]["replayed"] == 3
        assert (found["open_files"], found["unfinished_lines"]) == ({file.name: 3}, [])
        assert f"{file.name} is being written: its 3 whole lines are read" in capsys.readouterr().out
        # Half a line at its end is no damage.
        torn = tmp_path / "torn"
        torn.mkdir()
        (torn / file.name).write_bytes(file.read_bytes() + file.read_bytes()[:40])
    found = run(models, log=torn, tmp_path=tmp_path)
    assert (found["requests"]["replayed"], found["requests"]["damaged"]) == (3, 0)
    assert found["unfinished_lines"] == [f"{file.name}:4"]
    assert f"{file.name}:4: half a line, which is left out" in capsys.readouterr().out
    # A file that is open and empty is no error of its own.
    (torn / file.name).write_bytes(b"")
    assert replay.main([str(torn), "--models", str(models)]) == 2
    assert "its 0 whole lines are read" in capsys.readouterr().out


def test_a_file_that_is_closed_meanwhile_is_read_once(logged: tuple[Path, Path], tmp_path: Path) -> None:
    (file,) = impression_files(logged[1]).whole_files()
    part = tmp_path / f".{file.name}.part"
    part.write_bytes(file.read_bytes())
    files = log_files([tmp_path])
    assert files == [part]
    part.rename(tmp_path / file.name)
    assert len(list(entries(part))) == REQUESTS
    assert log_files([tmp_path]) == [tmp_path / file.name]


def spoil(ranker: Path) -> None:
    """Change a byte of a version's network."""
    ranker.chmod(0o644)
    ranker.write_bytes(ranker.read_bytes()[:-1] + b"x")


def test_value_models_need_no_version_that_verifies(
    logged: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, log = Path(shutil.copytree(logged[0], tmp_path / "models")), logged[1]
    path = tmp_path / "tomorrow.yaml"
    path.write_text(yaml.safe_dump(VALUE_MODELS))
    expected = run(models, "--value-models", str(path), "--value-model", "likes", log=log, tmp_path=tmp_path)
    assert expected["notes"] == []
    spoil(models / "tiny" / "3" / "ranker.pt")
    for arguments in (["--value-models", str(path)], []):
        found = run(models, *arguments, "--value-model", "likes", log=log, tmp_path=tmp_path)
        assert found["ranking"] == expected["ranking"]
        assert "version 3 is ignored" in found["notes"][0]
        assert found["notes"][1] == "value models are checked for the tasks of version 2"
    for number in "12":
        spoil(models / "tiny" / number / "ranker.pt")
    found = run(models, "--value-models", str(path), "--value-model", "likes", log=log, tmp_path=tmp_path)
    assert found["ranking"] == expected["ranking"]
    assert "their tasks are those of the log's first request" in found["notes"][-1]
    assert "version 1 is ignored" in capsys.readouterr().out
    # Without a models folder at all.
    found_json = tmp_path / "none.json"
    arguments = [str(log), "--value-models", str(path), "--value-model", "likes", "--json", str(found_json)]
    assert replay.main(arguments) == 0
    assert json.loads(found_json.read_text())["ranking"] == expected["ranking"]
    path.write_text(yaml.safe_dump({"default": {"kind": "weighted_sum", "weights": {"clik": 1}}}))
    assert replay.main(arguments) == 2
    assert "did you mean 'click'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--value-models", "v.yaml", "--version", "1"]])
def test_models_are_asked_for_where_they_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit):
        replay.main([str(tmp_path), *arguments])
    assert "--models: needed, but for --value-models without --version" in capsys.readouterr().err


def _changed_schema(models: Path, change: dict[str, Any]) -> None:
    """Publish a version whose feature `tag` is replaced by `change`."""
    schema = copy.deepcopy(TINY_SCHEMA)
    (position,) = (n for n, feature in enumerate(schema["features"]) if feature["name"] == "tag")
    schema["features"][position] = {"side": "candidate", "kind": "id", "dim": 4, "buckets": 20, **change}
    request = copy.deepcopy(TINY_REQUEST)
    del request["candidates"]["features"]["tag"]
    publish_artifact(models, schema=FeedSchema.from_mapping(schema, "test"), request=request)


def test_a_newer_schema_takes_defaults_for_what_was_not_logged(
    logged: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = Path(shutil.copytree(logged[0], tmp_path / "models"))
    _changed_schema(models, {"name": "mood"})
    found = run(models, "--version", "4", log=logged[1], tmp_path=tmp_path)
    assert found["requests"]["replayed"] == REQUESTS
    assert found["missing_features"]["mood"] == REQUESTS
    assert found["unknown_features"] == {"tag": REQUESTS}
    lines, scorer = lines_of(logged[1]), Scorer.load(models / "tiny" / "4")
    means = []
    for line in lines:
        features = {name: column for name, column in line["candidates"]["features"].items() if name != "tag"}
        means.append(scorer.score_values(line["user"], features, len(line["score"]))[:, 0].astype(np.float64).mean())
    assert found["tasks"]["click"]["after"]["mean"] == pytest.approx(np.mean(means), rel=1e-9)
    assert f"feature 'mood' is not in {REQUESTS} requests and takes its default" in capsys.readouterr().out


def test_values_that_no_longer_fit_are_named(logged: tuple[Path, Path], tmp_path: Path) -> None:
    models = Path(shutil.copytree(logged[0], tmp_path / "models"))
    _changed_schema(models, {"name": "tag"})  # of integers now
    found_json = tmp_path / "found.json"
    arguments = [str(logged[1]), "--models", str(models), "--version", "4", "--json", str(found_json)]
    assert replay.main(arguments) == 2
    found = json.loads(found_json.read_text())
    assert found["requests"]["unscorable"] == REQUESTS
    assert "feature 'tag' in row 0: expected an integer" in found["unscorable"][0]["fault"]


def test_ids_are_shown_on_request_alone(
    logged: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, log = logged
    arguments = [str(log), "--models", str(models), "--value-model", "likes", "--json", str(tmp_path / "found.json")]
    assert replay.main(arguments) == 0
    shown = capsys.readouterr().out + (tmp_path / "found.json").read_text()
    assert "Requests that move most" in shown
    assert "request-" not in shown
    assert "candidate-" not in shown
    assert replay.main([*arguments, "--show-ids"]) == 0
    assert "request-" in capsys.readouterr().out
    by_id = {line["request_id"]: line for line in lines_of(log)}
    for moved in json.loads((tmp_path / "found.json").read_text())["moved_most"]:
        line = by_id[moved["request_id"]]
        best = [int(np.argmax(scores)) for scores in (line["score"], line["tasks"]["like"])]
        assert [moved["first"], moved["first_now"]] == [line["candidates"]["id"][n] for n in best]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--version", "9"], "no version 9; published: 1, 2, 3"),
        (["--model", "large"], "no model 'large'; there are: tiny"),
        (["--value-model", "nope"], "no value model 'nope'"),
        (["--value-models", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_does_not_hold_is_one_line(
    logged: tuple[Path, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    models, log = logged
    assert replay.main([str(log), "--models", str(models), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("given", ["nowhere.jsonl", "."])
def test_a_log_that_is_not_there_is_named(
    logged: tuple[Path, Path], capsys: pytest.CaptureFixture[str], given: str
) -> None:
    assert replay.main([given, "--models", str(logged[0])]) == 2
    assert f"{given}: no impression log" in capsys.readouterr().err


def test_a_result_that_could_not_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        replay.main([str(tmp_path), "--models", str(tmp_path), "--json", "nowhere/at/all.json"])
    assert ended.value.code == 2
    assert "--json: no folder 'nowhere/at'" in capsys.readouterr().err


def test_the_command_runs_as_the_readme_says(logged: tuple[Path, Path]) -> None:
    models, log = logged
    (file,) = impression_files(log).whole_files()
    command = [sys.executable, "-m", "service", "replay", str(file), "--models", str(models), "--version", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"tiny: {REQUESTS} requests, by version 3" in done.stdout
    assert "Kendall's tau" in done.stdout
    assert done.stderr == ""
