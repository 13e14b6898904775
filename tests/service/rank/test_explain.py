"""`"explain": true`: contributions in the order of the answer, held against the answer's own numbers by hand."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from starlette.testclient import TestClient

from model.artifact.artifact import REFERENCE, ArtifactError
from model.artifact.reference import Reference
from model.scorer.scorer import Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.model.small_artifact import publish_small
from tests.service.in_process import client_of

VALUE_MODELS: dict[str, Any] = {
    "default": {"kind": "weighted_sum", "weights": {"click": 1.0, "like": -2.5}},
    "product": {"kind": "weighted_product", "exponents": {"play_time": 0.3, "click": 2.0}, "floor": 1e-3},
    "formula": {"kind": "expression", "formula": "click * (1 + 4 * like) - 0.001 * play_time"},
}
# What tests/artifacts.py writes as the tasks' means.
MEANS = {"click": 0.25, "like": 0.5, "play_time": 0.75}
# Answers travel as float32 with all their digits. Contributions are float64 arithmetic on them.
CLOSE = 1e-6


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = tmp_path_factory.mktemp("models")
    publish_artifact(folder)
    (folder / "tiny" / "value_models.yaml").write_text(yaml.safe_dump(VALUE_MODELS))
    with client_of(folder) as client:
        yield client


def ask(client: TestClient, **changes: Any) -> dict[str, Any]:
    response = client.post("/v1/rank", json={**TINY_REQUEST, "explain": True, **changes})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_contributions_of_a_sum_are_weight_times_answer(client: TestClient) -> None:
    answer = ask(client)
    tasks, contributions = answer["candidates"]["tasks"], answer["explain"]["contributions"]
    assert list(contributions) == ["click", "like"]
    assert contributions["click"] == pytest.approx(tasks["click"], rel=CLOSE)
    assert contributions["like"] == pytest.approx([-2.5 * like for like in tasks["like"]], rel=CLOSE)
    assert answer["candidates"]["score"] == pytest.approx(np.sum(list(contributions.values()), axis=0), rel=CLOSE)


def test_contributions_of_a_product_add_up_to_the_logarithm(client: TestClient) -> None:
    answer = ask(client, value_model="product")
    tasks, contributions = answer["candidates"]["tasks"], answer["explain"]["contributions"]
    for task, exponent in (("click", 2.0), ("play_time", 0.3)):
        expected = [exponent * math.log(max(value, 1e-3)) for value in tasks[task]]
        assert contributions[task] == pytest.approx(expected, rel=CLOSE)
    logarithms = np.log(answer["candidates"]["score"])
    assert logarithms == pytest.approx(np.sum(list(contributions.values()), axis=0), rel=CLOSE)


def test_contributions_of_a_formula_are_shapley_values_against_the_means_at_export(client: TestClient) -> None:
    """Held against the definition: the mean over all orders of what a task changes when it joins."""
    answer = ask(client, value_model="formula")
    tasks, contributions = answer["candidates"]["tasks"], answer["explain"]["contributions"]

    def score(given: dict[str, float]) -> float:
        return given["click"] * (1 + 4 * given["like"]) - 0.001 * given["play_time"]

    for k in range(4):
        expected = dict.fromkeys(MEANS, 0.0)
        for order in itertools.permutations(MEANS):
            given = dict(MEANS)
            for task in order:
                before = score(given)
                given[task] = tasks[task][k]
                expected[task] += (score(given) - before) / math.factorial(len(MEANS))
        assert {task: values[k] for task, values in contributions.items()} == pytest.approx(expected, rel=CLOSE)


@pytest.mark.parametrize("value_model", ["default", "product", "formula"])
def test_an_explanation_follows_the_answer_in_both_shapes_and_cut(client: TestClient, value_model: str) -> None:
    whole = ask(client, value_model=value_model)
    candidates = TINY_REQUEST["candidates"]
    rows = [
        {"id": identifier, "features": {name: column[n] for name, column in candidates["features"].items()}}
        for n, identifier in enumerate(candidates["id"])
    ]
    in_rows = ask(client, value_model=value_model, candidates=rows)
    assert [row["id"] for row in in_rows["candidates"]] == whole["candidates"]["id"]
    assert in_rows["explain"] == whole["explain"]
    for shape in (candidates, rows):
        cut = ask(client, value_model=value_model, candidates=shape, top_k=2)["explain"]
        assert cut["contributions"] == {task: all_[:2] for task, all_ in whole["explain"]["contributions"].items()}
        levels = zip(cut["expert_weights"], whole["explain"]["expert_weights"], strict=True)
        assert all(level["weights"] == all_["weights"][:2] for level, all_ in levels)


def test_expert_weights_are_those_of_each_candidate_alone(client: TestClient) -> None:
    answer = ask(client, top_k=3)
    levels = answer["explain"]["expert_weights"]
    candidates, tasks = TINY_REQUEST["candidates"], ["click", "like", "play_time"]
    for level in levels:
        assert level["units"] == tasks
        assert level["experts"] == [f"{task}.{n}" for task in tasks for n in (1, 2)]
        assert np.shape(level["weights"]) == (3, 3, 6)
    first, second, _ = levels[0]["weights"]
    assert not np.allclose(first, second)  # gates read the candidate
    for k, identifier in enumerate(answer["candidates"]["id"]):
        n = candidates["id"].index(identifier)
        alone = {"id": ["x"], "features": {name: column[n : n + 1] for name, column in candidates["features"].items()}}
        for level, given in zip(ask(client, candidates=alone)["explain"]["expert_weights"], levels, strict=True):
            # One row and four go through different kernels: float32 sums in another order.
            np.testing.assert_allclose(level["weights"][0], given["weights"][k], rtol=1e-5)


def test_a_network_that_mixes_no_experts_has_no_expert_weights(tmp_path: Path) -> None:
    publish_artifact(tmp_path, network={"fusion": {"kind": "shared_bottom", "levels": [8]}, "tower": [8]})
    with client_of(tmp_path) as client:
        explained = ask(client)["explain"]
    assert explained["expert_weights"] is None
    assert list(explained["contributions"]) == ["click", "like"]


def test_inputs_count_what_is_missing_unknown_and_cut(client: TestClient) -> None:
    whole = ask(client)["explain"]["inputs"]
    # Of history the last 3 of 4 are read. A list of no id is missing, and 1000 is no id of the vocabulary.
    assert whole == {
        "missing": {"video_id": 1, "tag": 1, "topics": 2, "duration_ms": 1},
        "unknown": {"topics": 1},
        "cut": {"history": 1},
    }
    features = {"topics": [[7] * 5, [6] * 4, [7] * 9]}
    user = {"country": "it", "history": [1, 2, 3], "tab": 5, "age_days": None}
    some = ask(client, user=user, candidates={"id": ["a", "b", "c"], "features": features}, top_k=1)
    assert some["explain"]["inputs"] == {
        "missing": {"user_id": 1, "age_days": 1, "video_id": 3, "tag": 3, "duration_ms": 3},
        "unknown": {"country": 1, "tab": 1, "topics": 4},
        "cut": {"topics": 2},
    }


def test_a_request_that_does_not_ask_is_answered_without_and_alike(client: TestClient) -> None:
    explained = ask(client, request_id="r")
    for given in (False, None):
        plain = ask(client, request_id="r", explain=given)
        assert "explain" not in plain
        assert plain == {key: value for key, value in explained.items() if key != "explain"}


def test_a_contribution_that_is_not_finite_is_never_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score of the candidates is finite, but not that of the means that they are compared with."""
    publish_artifact(tmp_path)
    definition = {"kind": "expression", "formula": "click / sqrt(1.5 - like)"}
    (tmp_path / "tiny" / "value_models.yaml").write_text(yaml.safe_dump({"default": definition}))
    # No task answers so, and so no artifact that export wrote has it as a mean.
    read = Reference.read
    means_O = np.array([0.5, 2.0, 1.0])
    monkeypatch.setattr(Reference, "read", lambda *of: Reference(means_O, read(*of).scores, read(*of).features))
    with client_of(tmp_path) as client:
        assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
        refused = client.post("/v1/rank", json={**TINY_REQUEST, "explain": True})
        assert refused.status_code == 500
        assert refused.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("content", ["[1]", "{}", '{"click": {"mean": 1}, "like": {"mean": "x"}}', '{"click": 3}'])
def test_a_version_without_the_means_is_refused_by_name(tmp_path: Path, content: str) -> None:
    version = publish_artifact(tmp_path)

    def write_files(folder: Path) -> None:
        for file in version.iterdir():
            if file.name not in ("manifest.json", REFERENCE):
                (folder / file.name).write_bytes(file.read_bytes())
        (folder / REFERENCE).write_text(content)

    with pytest.raises(
        ArtifactError, match=rf"{REFERENCE}.*`mean` and a histogram of every output: click, like, play_time"
    ):
        Scorer.load(publish_small(tmp_path, write_files))
