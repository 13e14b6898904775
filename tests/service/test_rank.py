"""POST /v1/rank: what is answered, in both shapes, against the scorer and against plain sorting."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from model.scorer import Scorer
from service import answers
from service.openapi import EXAMPLE_ANSWER
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of

WEIGHTS = {"click": 1.0, "like": -2.5, "play_time": 0.25}
TASKS = tuple(WEIGHTS)
# The same float32 answers, written with all their digits: what is left is the order of three additions.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    publish_artifact(folder)
    definitions = {"default": WEIGHTS, "likes": {"like": 1.0}}
    value_models = {name: {"kind": "weighted_sum", "weights": weights} for name, weights in definitions.items()}
    (folder / "tiny" / "value_models.yaml").write_text(yaml.safe_dump(value_models))
    return folder


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[TestClient]:
    with client_of(models) as client:
        yield client


def as_rows(request: dict[str, Any]) -> dict[str, Any]:
    """The same question with its candidates as rows; a null is left out of its row."""
    candidates = request["candidates"]
    rows = [
        {
            "id": identifier,
            "features": {
                name: column[position]
                for name, column in candidates["features"].items()
                if column[position] is not None
            },
        }
        for position, identifier in enumerate(candidates["id"])
    ]
    return {**request, "candidates": rows}


def ask(client: TestClient, request: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/rank", json=request)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_scores_are_the_scorer_s_in_both_shapes(client: TestClient, models: Path) -> None:
    candidates = TINY_REQUEST["candidates"]
    scorer = Scorer.load(models / "tiny" / "1")
    answers_NT = scorer.score_values(TINY_REQUEST["user"], candidates["features"], 4).astype(np.float64)
    score_N = answers_NT @ np.array(list(WEIGHTS.values()))
    order = sorted(range(4), key=lambda n: -score_N[n])

    columns = ask(client, TINY_REQUEST)["candidates"]
    assert columns["id"] == [candidates["id"][n] for n in order]
    np.testing.assert_allclose(columns["score"], score_N[order], atol=TOLERANCE)
    for t, task in enumerate(TASKS):
        np.testing.assert_allclose(columns["tasks"][task], answers_NT[order, t], atol=TOLERANCE)

    rows = ask(client, as_rows(TINY_REQUEST))["candidates"]
    assert [row["id"] for row in rows] == columns["id"]
    assert [row["score"] for row in rows] == columns["score"]
    for task in TASKS:
        assert [row["tasks"][task] for row in rows] == columns["tasks"][task]


def test_the_answer_names_what_gave_it(client: TestClient) -> None:
    answer = ask(client, {**TINY_REQUEST, "request_id": "r-7", "model": "tiny", "version": "1", "value_model": "likes"})
    assert list(answer) == list(EXAMPLE_ANSWER)
    assert (answer["request_id"], answer["model"], answer["model_version"]) == ("r-7", "tiny", "1")
    assert answer["value_model"] == "likes"
    default = ask(client, TINY_REQUEST)
    assert default["value_model"] == "default"
    assert default["value_model_version"] != answer["value_model_version"]
    # `likes` has weight 1 on like and nothing else
    assert answer["candidates"]["score"] == pytest.approx(answer["candidates"]["tasks"]["like"], abs=TOLERANCE)


def test_null_stands_for_an_optional_key_that_is_left_out(client: TestClient) -> None:
    keys = ("request_id", "model", "version", "value_model", "top_k", "explain")
    answer = ask(client, {**TINY_REQUEST, **dict.fromkeys(keys)})
    assert answer["candidates"] == ask(client, TINY_REQUEST)["candidates"]


@pytest.mark.parametrize("version", ["1", 1])
def test_a_version_is_a_string_or_a_number(client: TestClient, version: object) -> None:
    assert ask(client, {**TINY_REQUEST, "version": version})["model_version"] == "1"


def test_request_id_comes_from_the_body_then_the_header_then_is_made(client: TestClient) -> None:
    header = {"X-Request-Id": "from-header"}
    response = client.post("/v1/rank", json={**TINY_REQUEST, "request_id": "from body"}, headers=header)
    assert response.headers["x-request-id"] == response.json()["request_id"] == "from body"
    response = client.post("/v1/rank", json=TINY_REQUEST, headers=header)
    assert response.headers["x-request-id"] == response.json()["request_id"] == "from-header"
    made = {client.post("/v1/rank", json=TINY_REQUEST).json()["request_id"] for _ in range(3)}
    assert len(made) == 3


@pytest.mark.parametrize("top_k", [1, 2, 4, 5, 10_000])
def test_top_k_cuts_the_same_ranking(client: TestClient, top_k: int) -> None:
    whole = ask(client, TINY_REQUEST)["candidates"]
    cut = ask(client, {**TINY_REQUEST, "top_k": top_k})["candidates"]
    assert cut["id"] == whole["id"][:top_k]
    assert cut["score"] == whole["score"][:top_k]
    assert {task: values[:top_k] for task, values in whole["tasks"].items()} == cut["tasks"]


def test_equal_candidates_keep_the_order_of_the_request(client: TestClient) -> None:
    features = {"video_id": [5] * 30, "tag": ["x"] * 30, "duration_ms": [9.0] * 30}
    ids = [f"c{n % 7}" for n in range(30)]  # repeats are allowed
    answer = ask(client, {"user": {}, "candidates": {"id": ids, "features": features}})
    assert answer["candidates"]["id"] == ids


def test_what_is_left_out_takes_its_default(client: TestClient, models: Path) -> None:
    answer = ask(client, {"user": {}, "candidates": {"id": ["a"], "features": {}}})
    nulls = {"video_id": [None], "tag": [None], "topics": [None], "duration_ms": [None]}
    expected_NT = Scorer.load(models / "tiny" / "1").score_values({}, nulls, 1)
    got = [answer["candidates"]["tasks"][task][0] for task in TASKS]
    np.testing.assert_allclose(got, expected_NT[0], atol=TOLERANCE)


def test_one_candidate_scores_as_it_does_among_others(client: TestClient) -> None:
    whole = ask(client, TINY_REQUEST)["candidates"]
    alone = copy.deepcopy(TINY_REQUEST)
    candidates = alone["candidates"]
    candidates["id"] = candidates["id"][1:2]
    candidates["features"] = {name: column[1:2] for name, column in candidates["features"].items()}
    got = ask(client, alone)["candidates"]
    # One row and four go through different kernels: float32 sums in another order.
    assert got["score"][0] == pytest.approx(whole["score"][whole["id"].index("b")], rel=1e-5)


@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5000001, 3.0]), min_size=1, max_size=40),
    top_k=st.none() | st.integers(1, 60),
)
def test_ranking_is_a_stable_sort(scores: list[float], top_k: int | None) -> None:
    expected = sorted(range(len(scores)), key=lambda n: -scores[n])
    got = answers.ranking(np.array(scores), top_k).tolist()
    assert got == (expected if top_k is None else expected[:top_k])
