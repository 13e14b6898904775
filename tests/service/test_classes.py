"""A task with classes from the log to the answer: trained, exported, served on both wires, explained, logged, replayed.

Probabilities are held against the softmax of the exported tower's logits, combined scores against the formula by hand.

Shapes: N candidates, O outputs.
"""

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.typing import NDArray
from starlette.testclient import TestClient

from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from service.impressions.folder import impression_files
from service.impressions.to_parquet import convert
from service.replay import replay
from tests.artifacts import publish_artifact
from tests.service.in_process import client_of, sample, samples
from tests.service.open_inference.tensors import HEADER_LENGTH, Given, binary_body, infer, outputs_of
from tests.service.rank.test_openapi import conforms
from tests.training_data import SCHEMA, VIDEOS, feed_table, training_file
from training.config import TrainingConfig
from training.publish.export import export
from training.score.job import Job
from training.score.run import score
from training.train import train

Json = dict[str, Any]
FEED = f"""{SCHEMA[: SCHEMA.index("tasks:")]}tasks:
  - {{name: click,  kind: binary,     label: is_click}}
  - {{name: rating, kind: multiclass, label: stars, classes: {{1: bad, 2: fair, 3: good}}}}
  - {{name: watch,  kind: regression, label: watch_ms, transform: log1p}}
"""
CLASSES = ["rating.bad", "rating.fair", "rating.good"]
OUTPUTS = ["click", *CLASSES, "watch"]
VALUE_MODELS = {
    "default": {"kind": "expression", "formula": "click * (1 + 4 * rating.good) - rating.bad ** 2"},
    "sum": {"kind": "weighted_sum", "weights": {"rating.good": 3.0, "rating.bad": -2.0}},
    "product": {"kind": "weighted_product", "exponents": {"rating.good": 0.5, "click": 1.0}, "floor": 1e-6},
}
IDS = [f"v{video}" for video in range(8)]
QUESTION: Json = {
    "request_id": "r-1",
    "user": {"user_id": 3, "history": [1, 2, 5], "tab": "home"},
    "candidates": {
        "id": IDS,
        "features": {"video": list(range(8)), "duration": [2.5, 9.0, 1.0, 30.0, 4.0, 7.5, 60.0, 12.0]},
    },
}
# Answers are float32: 6e-8 of their size, and sums in another order change the last digits.
TOLERANCE = 1e-6
WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one version of a feed whose videos have stars. The same is in `calibrated` beside it."""
    folder = tmp_path_factory.mktemp("feed")
    rng = np.random.default_rng(4)
    table = feed_table(7500)
    quality = np.random.default_rng(1).normal(0.0, 1.5, VIDEOS)[table["video"].to_numpy()]
    stars = 1 + np.digitize(quality + rng.normal(0.0, 0.5, len(quality)), [-0.8, 0.8])
    (folder / "data").mkdir()
    pq.write_table(table.append_column("stars", pa.array(stars)), folder / "data" / "part.parquet")
    run = train(TrainingConfig.load(training_file(folder, schema=FEED, batch_size=32, epochs=2)), show=False)
    version = export(run, folder / "models")
    export(run, folder / "calibrated", calibration="platt")
    (version.parent / "value_models.yaml").write_text(yaml.safe_dump(VALUE_MODELS, sort_keys=False))
    return folder / "models"


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[TestClient]:
    with client_of(models) as client:
        yield client


@pytest.fixture(scope="module")
def answers_NO(models: Path) -> NDArray[np.float64]:
    """The question's probabilities by numpy, of the logits that the exported module's towers give. A quantity as the
    scorer answers it."""
    scorer = Scorer.load(models / "clips" / "1")
    user = scorer.encoder.columns("request", {name: [value] for name, value in QUESTION["user"].items()}, 1)
    columns = scorer.encoder.columns("candidate", QUESTION["candidates"]["features"], len(IDS))
    request = scorer.encoder.encode("request", user, 1, as_served=True)
    candidates = scorer.encoder.encode("candidate", columns, len(IDS), as_served=True)
    module = scorer.module
    with torch.inference_mode():
        sums_NF = module.candidate_sums(scorer.candidate_rows(candidates.block))
        sums_1F = scorer.request_sums(request.block)
        logits_NO = module.answer.network.from_sums(sums_NF, sums_1F).numpy().astype(np.float64)
    answers_NO = scorer.score(request, candidates).answers_NO.astype(np.float64)
    answers_NO[:, 0] = 1 / (1 + np.exp(-logits_NO[:, 0]))
    odds_NC = np.exp(logits_NO[:, 1:4])
    answers_NO[:, 1:4] = odds_NC / odds_NC.sum(axis=1, keepdims=True)
    return answers_NO


def fitted_feed() -> FeedSchema:
    """The feed with its ids listed, so that random weights need no data."""
    videos = str(list(range(VIDEOS)))
    return FeedSchema.from_mapping(yaml.safe_load(FEED.replace("vocabulary: fitted", f"vocabulary: {videos}")), "feed")


def by_hand(answers_NO: NDArray[np.float64]) -> NDArray[np.float64]:
    """The default value model's formula."""
    click_N, bad_N, _, good_N, _ = answers_NO.T
    score_N: NDArray[np.float64] = click_N * (1 + 4 * good_N) - bad_N**2
    return score_N


def ask(client: TestClient, **changes: Any) -> Json:
    response = client.post("/v1/rank", json={**QUESTION, **changes})
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


def in_order(candidates: Json) -> NDArray[np.float64]:
    """Answers of candidates in columns, back in request order."""
    order = [candidates["id"].index(identifier) for identifier in IDS]
    return np.array([candidates["tasks"][output] for output in OUTPUTS]).T[order]


def test_probabilities_are_the_softmax_of_the_tower(client: TestClient, answers_NO: NDArray[np.float64]) -> None:
    candidates = ask(client)["candidates"]
    assert list(candidates["tasks"]) == OUTPUTS
    np.testing.assert_allclose(in_order(candidates), answers_NO, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(in_order(candidates)[:, 1:4].sum(axis=1), 1.0, atol=TOLERANCE)
    # Not all candidates get the same: the tower has learned, and the order of the answer is seen.
    assert np.ptp(answers_NO[:, 1:4], axis=0).min() > 0.05


def test_calibrated_probabilities_are_those_of_the_file(models: Path, answers_NO: NDArray[np.float64]) -> None:
    calibrated = models.parent / "calibrated"
    with client_of(calibrated) as client:
        got_NO = in_order(ask(client)["candidates"])
    maps = json.loads((calibrated / "clips" / "1" / "calibration.json").read_text())["tasks"]
    odds_NC = answers_NO[:, 1:4] ** maps["rating"]["slope"] * np.exp(maps["rating"]["intercepts"])
    np.testing.assert_allclose(got_NO[:, 1:4], odds_NC / odds_NC.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(got_NO[:, 1:4].sum(axis=1), 1.0, atol=TOLERANCE)
    click_N = answers_NO[:, 0]
    odds_N = (click_N / (1 - click_N)) ** maps["click"]["slope"] * np.exp(maps["click"]["intercept"])
    np.testing.assert_allclose(got_NO[:, 0], odds_N / (1 + odds_N), rtol=1e-5)
    assert np.abs(got_NO[:, 1:4] - answers_NO[:, 1:4]).max() > 1e-3  # the maps change something


def test_a_formula_of_classes_ranks(client: TestClient, answers_NO: NDArray[np.float64]) -> None:
    candidates = ask(client)["candidates"]
    score_N = by_hand(answers_NO)
    assert candidates["id"] == [IDS[row] for row in np.argsort(-score_N, kind="stable")]
    np.testing.assert_allclose(candidates["score"], np.sort(score_N)[::-1], rtol=TOLERANCE, atol=TOLERANCE)


def test_rows_have_the_answers_of_columns(client: TestClient) -> None:
    columns = ask(client)["candidates"]
    features = QUESTION["candidates"]["features"]
    rows = [
        {"id": identifier, "features": {name: column[row] for name, column in features.items()}}
        for row, identifier in enumerate(IDS)
    ]
    answered = ask(client, candidates=rows)["candidates"]
    assert [row["id"] for row in answered] == columns["id"]
    assert {tuple(row["tasks"]) for row in answered} == {tuple(OUTPUTS)}
    for output in OUTPUTS:
        assert [row["tasks"][output] for row in answered] == columns["tasks"][output]
    document = client.get("/openapi.json").json()
    assert conforms(ask(client), document["components"]["schemas"]["RankAnswer"], document)


def test_the_other_wire_has_a_tensor_for_each_class(client: TestClient) -> None:
    path = "/v2/models/clips/infer"
    outputs = [*OUTPUTS, "score"]
    described = client.get("/v2/models/clips").json()["outputs"]
    place = {"name": "place", "datatype": "INT64", "shape": [-1], "parameters": {"on_request": True}}
    assert described == [*({"name": name, "datatype": "FP32", "shape": [-1]} for name in outputs), place]
    user, features = QUESTION["user"], QUESTION["candidates"]["features"]
    tensors = [
        Given("user_id", "INT64", [user["user_id"]]),
        Given("history.values", "INT64", user["history"]),
        Given("history.lengths", "INT64", [len(user["history"])]),
        Given("tab", "BYTES", [user["tab"]]),
        Given("video", "INT64", features["video"]),
        Given("duration", "FP32", features["duration"]),
    ]
    expected = ask(client)["candidates"]
    expected_NO = in_order(expected)
    in_json = outputs_of(infer(client, tensors, path))
    body, headers = binary_body(tensors, parameters={"binary_data_output": True})
    response = client.post(path, content=body, headers=headers)
    size = int(response.headers[HEADER_LENGTH])
    in_bytes = outputs_of(json.loads(response.content[:size]), response.content[size:])
    for got in (in_json, in_bytes):
        assert list(got) == outputs
        np.testing.assert_allclose(np.array([got[output] for output in OUTPUTS]).T, expected_NO, rtol=TOLERANCE)
    chosen = infer(client, tensors, path, outputs=[{"name": "rating.good"}])
    assert list(outputs_of(chosen)) == ["rating.good"]
    refused = client.post(
        path, json={"inputs": [tensor.as_json() for tensor in tensors], "outputs": [{"name": "rating"}]}
    )
    assert refused.status_code == 400
    assert "outputs.rating: the model has no such tensor" in refused.json()["error"]


def test_contributions_are_by_class(client: TestClient, models: Path, answers_NO: NDArray[np.float64]) -> None:
    answer = ask(client, explain=True, value_model="sum")
    order = [IDS.index(identifier) for identifier in answer["candidates"]["id"]]
    contributions = answer["explain"]["contributions"]
    assert list(contributions) == ["rating.good", "rating.bad"]
    for name, weight, place in (("rating.good", 3.0, 3), ("rating.bad", -2.0, 1)):
        np.testing.assert_allclose(contributions[name], weight * answers_NO[order, place], rtol=1e-5)

    answer = ask(client, explain=True)
    order = [IDS.index(identifier) for identifier in answer["candidates"]["id"]]
    contributions = answer["explain"]["contributions"]
    means_O = Scorer.load(models / "clips" / "1").reference.means_O
    places = {"click": 0, "rating.good": 3, "rating.bad": 1}
    assert list(contributions) == list(places)
    for position, row in enumerate(order):
        expected = dict.fromkeys(places, 0.0)
        for joining in itertools.permutations(places):  # Shapley (1953), by its definition
            given_O = means_O.copy()
            for name in joining:
                before = by_hand(given_O[None])[0]
                given_O[places[name]] = answers_NO[row, places[name]]
                expected[name] += (by_hand(given_O[None])[0] - before) / 6
        got = {name: contributions[name][position] for name in places}
        assert got == pytest.approx(expected, rel=1e-5, abs=TOLERANCE)


def test_metrics_are_by_class(client: TestClient, answers_NO: NDArray[np.float64]) -> None:
    labels = {"model": "clips", "version": "1"}

    def of(name: str) -> dict[str, float]:
        return {task: sample(client, name, **labels, task=task) for task in OUTPUTS}

    before = of("ranking_task_score_sum")
    ask(client)
    added = [after - before[task] for task, after in of("ranking_task_score_sum").items()]
    np.testing.assert_allclose(added, answers_NO.sum(axis=0), rtol=1e-5)
    means = of("ranking_task_score_reference_mean")
    assert sum(means[name] for name in CLASSES) == pytest.approx(1.0, abs=1e-5)
    assert {dict(key)["task"] for key in samples(client, "ranking_score_drift")} == set(OUTPUTS)


def test_batch_scoring_writes_a_column_for_each_class(client: TestClient, models: Path, tmp_path: Path) -> None:
    user = {name: [value] * len(IDS) for name, value in QUESTION["user"].items()}
    table = pa.table({"id": IDS, "request": [1] * len(IDS), **user, **QUESTION["candidates"]["features"]})
    (tmp_path / "log").mkdir()
    pq.write_table(table, tmp_path / "log" / "rows.parquet")
    job = Job.of(models / "clips" / "1", str(tmp_path / "log"), tmp_path / "out", columns=["id"], group_by="request")
    score(job, show=False)
    scored = pq.read_table(tmp_path / "out")
    assert scored.column_names == ["id", "score", *(f"answer_{output}" for output in OUTPUTS)]
    got_NO = np.array([scored[f"answer_{output}"].to_numpy() for output in OUTPUTS]).T
    np.testing.assert_allclose(got_NO, in_order(ask(client)["candidates"]), rtol=TOLERANCE)


def test_the_model_s_entry_names_the_classes(client: TestClient) -> None:
    tasks = {task["name"]: task for task in client.get("/v1/models/clips").json()["schema"]["tasks"]}
    assert tasks["rating"]["kind"] == "multiclass"
    assert list(tasks["rating"]["classes"].values()) == ["bad", "fair", "good"]


@pytest.fixture(scope="module")
def logged(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Json]:
    """A log of one request as Parquet, and the answer that it got."""
    log, key = tmp_path_factory.mktemp("log"), tmp_path_factory.mktemp("secret") / "user-hash.key"
    key.write_bytes(bytes(range(32)))
    with client_of(models, impression_log=log, user_hash_key=key) as client:
        answer = ask(client)
    assert convert(log) == []
    return log, answer


def test_the_log_has_a_column_for_each_class(logged: tuple[Path, Json]) -> None:
    log, answer = logged
    (file,) = impression_files(log).whole_files()
    (row,) = pq.read_table(file).to_pylist(maps_as_pydicts="strict")
    assert list(row["tasks"]) == OUTPUTS
    np.testing.assert_array_equal(
        np.array([row["tasks"][output] for output in OUTPUTS], np.float32).T,
        in_order(answer["candidates"]).astype(np.float32),
    )


def replayed(models: Path, log: Path, tmp_path: Path, *arguments: str) -> Json:
    found = tmp_path / "found.json"
    assert replay.main([str(log), "--models", str(models), "--json", str(found), *arguments]) == 0
    document: Json = json.loads(found.read_text())
    return document


def test_replay_shifts_are_by_class(logged: tuple[Path, Json], models: Path, tmp_path: Path) -> None:
    log, answer = logged
    again = replayed(models, log, tmp_path, "--version", "1")
    assert list(again["tasks"]) == OUTPUTS
    assert {shift["shift"]["mean"] for shift in again["tasks"].values()} == {0.0}

    by_sum = replayed(models, log, tmp_path, "--value-model", "sum")
    answers_NO = in_order(answer["candidates"])
    score_N = 3.0 * answers_NO[:, 3] - 2.0 * answers_NO[:, 1]
    assert by_sum["score"]["after"]["mean"] == pytest.approx(score_N.mean(), rel=1e-6)
    assert by_sum["tasks"]["rating.good"]["before"]["mean"] == pytest.approx(answers_NO[:, 3].mean(), rel=1e-6)


@pytest.mark.parametrize("definition", [
    {"kind": "expression", "formula": "click * rating"},
    {"kind": "weighted_sum", "weights": {"rating": 1.0}},
])  # fmt: skip
def test_a_task_with_classes_is_no_answer_by_itself(
    models: Path, logged: tuple[Path, Json], tmp_path: Path, capsys: pytest.CaptureFixture[str], definition: Json
) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump({"default": definition}))
    arguments = [str(logged[0]), "--models", str(models), "--value-models", str(path)]
    assert replay.main(arguments) == 2
    assert "'rating' has an answer per class, not one; name a class: rating.bad, rating.fair, rating.good" in (
        capsys.readouterr().err
    )


def test_the_built_in_value_model_leaves_classes_out(models: Path, tmp_path: Path) -> None:
    bare = tmp_path / "models" / "clips"
    bare.mkdir(parents=True)
    (bare / "1").symlink_to(models / "clips" / "1")
    with client_of(tmp_path / "models") as client:
        candidates = ask(client)["candidates"]
    assert candidates["score"] == pytest.approx(candidates["tasks"]["click"], rel=TOLERANCE)


def test_a_model_of_classes_alone_waits_for_value_models(tmp_path: Path) -> None:
    schema = fitted_feed().with_tasks(["rating"])
    family = publish_artifact(tmp_path, "clips", schema=schema, request=QUESTION).parent
    with client_of(tmp_path) as client:
        (version,) = client.get("/v1/models/clips").json()["versions"]
        assert version["state"] == "quarantined"
        assert "nothing says which class is better; write a value_models.yaml with weights of" in version["reason"]
        (family / "value_models.yaml").write_text("default: {kind: weighted_sum, weights: {rating.good: 1}}")
        deadline = time.monotonic() + WAIT_SECONDS
        while client.get("/v1/models/clips").json()["versions"][0]["state"] != "ready":
            assert time.monotonic() < deadline
        candidates = ask(client)["candidates"]
    assert list(candidates["tasks"]) == CLASSES
    assert candidates["score"] == pytest.approx(candidates["tasks"]["rating.good"], rel=TOLERANCE)


def test_a_shadow_version_is_compared_by_class(models: Path, tmp_path: Path) -> None:
    """Sums of each class's answers by both versions: one by one those of the versions themselves."""
    family = tmp_path / "models" / "clips"
    shutil.copytree(models / "clips", family)
    publish_artifact(family.parent, "clips", schema=fitted_feed(), request=QUESTION, seed=1)
    (family / "labels.yaml").write_text("{stable: 1, shadow: 2}")
    with client_of(tmp_path / "models") as client:
        stable, shadow = in_order(ask(client)["candidates"]), in_order(ask(client, version="2")["candidates"])
        labels = {"model": "clips", "version": "2"}
        deadline = time.monotonic() + WAIT_SECONDS
        while sample(client, "ranking_shadow_requests_total", **labels, result="scored") < 1:
            assert time.monotonic() < deadline
        for answered_by, answers_NO in (("stable", stable), ("shadow", shadow)):
            sums = [
                sample(client, "ranking_shadow_task_answers_total", **labels, task=output, answered_by=answered_by)
                for output in OUTPUTS
            ]
            np.testing.assert_allclose(sums, answers_NO.sum(axis=0), rtol=TOLERANCE)
