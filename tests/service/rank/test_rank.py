"""POST /v1/rank: what is answered, in both shapes, against the scorer and against plain sorting."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from model.scorer.scorer import Scorer
from service.base.errors import FAULTS_SHOWN
from service.base.ranking import ranking
from service.rank.openapi import EXAMPLE_ANSWER
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
    """The same question with its candidates as rows. A null is left out of its row."""
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
    answers_NO = scorer.score_values(TINY_REQUEST["user"], candidates["features"], 4).astype(np.float64)
    score_N = answers_NO @ np.array(list(WEIGHTS.values()))
    order = sorted(range(4), key=lambda n: -score_N[n])

    columns = ask(client, TINY_REQUEST)["candidates"]
    assert columns["id"] == [candidates["id"][n] for n in order]
    np.testing.assert_allclose(columns["score"], score_N[order], atol=TOLERANCE)
    for t, task in enumerate(TASKS):
        np.testing.assert_allclose(columns["tasks"][task], answers_NO[order, t], atol=TOLERANCE)

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
    keys = ("request_id", "model", "version", "value_model", "top_k", "explain", "strict")
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
    expected_NO = Scorer.load(models / "tiny" / "1").score_values({}, nulls, 1)
    got = [answer["candidates"]["tasks"][task][0] for task in TASKS]
    np.testing.assert_allclose(got, expected_NO[0], atol=TOLERANCE)


def test_one_candidate_scores_as_it_does_among_others(client: TestClient) -> None:
    whole = ask(client, TINY_REQUEST)["candidates"]
    alone = copy.deepcopy(TINY_REQUEST)
    candidates = alone["candidates"]
    candidates["id"] = candidates["id"][1:2]
    candidates["features"] = {name: column[1:2] for name, column in candidates["features"].items()}
    got = ask(client, alone)["candidates"]
    # One row and four go through different kernels: float32 sums in another order.
    assert got["score"][0] == pytest.approx(whole["score"][whole["id"].index("b")], rel=1e-5)


def test_equal_candidates_have_equal_answers_to_the_last_digit(client: TestClient) -> None:
    """By both routes, in both shapes. The first four candidates are at the end of a hundred again."""
    features = TINY_REQUEST["candidates"]["features"]
    columns = {name: [column[n % 4] for n in range(100)] for name, column in features.items()}
    columns["video_id"][4:96] = range(4, 96)
    columns["duration_ms"][4:96] = [n / 7 for n in range(4, 96)]
    request = {**TINY_REQUEST, "candidates": {"id": [str(n) for n in range(100)], "features": columns}}
    for question in (request, as_rows(request)):
        given = ask(client, question)["candidates"]
        rows = given if isinstance(given, list) else [
            dict(zip(("id", "score", *TASKS), row, strict=True))
            for row in zip(given["id"], given["score"], *given["tasks"].values(), strict=True)
        ]  # fmt: skip
        by_id = {row["id"]: {key: value for key, value in row.items() if key != "id"} for row in rows}
        assert all(by_id[str(96 + n)] == by_id[str(n)] for n in range(4))


def as_digits(request: dict[str, Any]) -> dict[str, Any]:
    """The same with its integer ids as strings."""
    user, candidates = dict(request["user"]), request["candidates"]
    user |= {"user_id": str(user["user_id"]), "history": list(map(str, user["history"])), "tab": str(user["tab"])}
    features = dict(candidates["features"])
    features["video_id"] = [None if value is None else str(value) for value in features["video_id"]]
    features["topics"] = [None if values is None else list(map(str, values)) for values in features["topics"]]
    return {**request, "user": user, "candidates": {**candidates, "features": features}}


def test_an_int64_id_may_be_a_string_of_its_digits(client: TestClient) -> None:
    expected = ask(client, TINY_REQUEST)["candidates"]
    assert ask(client, as_digits(TINY_REQUEST))["candidates"] == expected
    in_rows = ask(client, as_rows(as_digits(TINY_REQUEST)))["candidates"]
    assert [row["score"] for row in in_rows] == expected["score"]
    mixed = as_digits(TINY_REQUEST)
    mixed["candidates"]["features"]["video_id"] = ["3", 9, None, "-4"]
    assert ask(client, mixed)["candidates"] == expected


WRONG_DIGITS = [
    "+3",
    " 3",
    "3 ",
    "03",
    "-0",
    "3.0",
    "3e0",
    "0x3",
    "1_0",
    "\uff13",
    "",
    "x",
    str(2**63),
    str(-(2**63) - 1),
]


@pytest.mark.parametrize("digits", WRONG_DIGITS)
@pytest.mark.parametrize("as_what", [lambda request: request, as_rows])
def test_any_other_string_is_no_int64_id(
    client: TestClient, digits: str, as_what: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    wrong = as_digits(TINY_REQUEST)
    wrong["user"]["history"] = ["3", digits]
    wrong["candidates"]["features"]["video_id"][1] = digits
    wrong["candidates"]["features"]["topics"][3] = [8, digits]
    refused = client.post("/v1/rank", json=as_what(wrong))
    assert refused.status_code == 422
    columns = ["candidates.features.video_id[1]", "candidates.features.topics[3]"]
    rows = ["candidates[1].features.video_id", "candidates[3].features.topics"]
    paths = [fault["path"] for fault in refused.json()["errors"]]
    assert paths == ["user.history", *(columns if as_what(wrong) is wrong else rows)]
    said = "expected an integer (int64), a string of its digits or null, got another string"
    assert {fault["message"] for fault in refused.json()["errors"]} == {said}


def test_a_strict_request_leaves_nothing_out(client: TestClient) -> None:
    whole = {**TINY_REQUEST, "strict": True}
    assert ask(client, whole)["candidates"] == ask(client, TINY_REQUEST)["candidates"]
    nulls = copy.deepcopy(whole)
    nulls["user"] = dict.fromkeys(nulls["user"])
    assert ask(client, nulls)["candidates"]["id"]
    for request in (whole, as_digits(whole)):
        less = copy.deepcopy(request)
        del less["user"]["tab"], less["candidates"]["features"]["topics"], less["candidates"]["features"]["tag"]
        assert ask(client, {**less, "strict": False})["candidates"]["id"]
        refused = client.post("/v1/rank", json=less)
        assert refused.status_code == 422
        paths = [fault["path"] for fault in refused.json()["errors"]]
        assert paths == ["user.tab", "candidates.features.tag", "candidates.features.topics"]
    rows = as_rows(whole)  # which leaves nulls out
    refused = client.post("/v1/rank", json=rows)
    paths = [fault["path"] for fault in refused.json()["errors"]]
    assert paths == [
        *(f"candidates[2].features.{name}" for name in ("video_id", "topics", "duration_ms")),
        "candidates[3].features.tag",
    ]
    rows["candidates"][2]["features"] |= {"video_id": None, "topics": None, "duration_ms": None}
    rows["candidates"][3]["features"]["tag"] = None
    assert ask(client, rows)["candidates"]


def test_a_strict_request_with_many_rows_is_refused_in_a_few_lines(client: TestClient) -> None:
    rows = [{"id": str(n), "features": {}} for n in range(2000)]
    refused = client.post("/v1/rank", json={"user": {}, "candidates": rows, "strict": True})
    assert len(refused.json()["errors"]) == FAULTS_SHOWN
    assert refused.json()["errors"][0]["path"] == "user.user_id"


@pytest.mark.parametrize(("key", "value", "said"), [
    ("top_k", 0, "expected an integer of at least 1, got 0"),
    ("top_k", -7, "got -7"),
    ("top_k", 1.5, "got 1.5"),
    ("top_k", True, "got true"),
    ("top_k", "3", "got '3'"),
    ("top_k", [1], "got a list"),
    ("top_k", -(10**30), "got an integer beyond 64 bits"),
    ("explain", 1, "expected true or false, got 1"),
    ("strict", "yes", "expected true or false, got 'yes'"),
    ("version", 1.5, "expected a string, got 1.5"),
    ("model", False, "expected a string, got false"),
    ("model", "x" * 5000, "no such model"),
    ("value_model", "nope", "no such value model, 'nope'; model 'tiny' has: default, likes"),
    ("value_model", "x" * 5000, "no such value model, '" + "x" * 60 + "...'"),
    ("request_id", "", "not all blank, got ''"),
    ("request_id", 5, "not all blank, got 5"),
])  # fmt: skip
def test_a_refusal_names_the_value_of_a_parameter(client: TestClient, key: str, value: object, said: str) -> None:
    refused = client.post("/v1/rank", json={**TINY_REQUEST, key: value})
    assert refused.status_code in (404, 422)
    (fault,) = refused.json()["errors"]
    assert fault["path"] == key
    assert said in fault["message"]
    assert len(fault["message"]) < 300


@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5000001, 3.0]), min_size=1, max_size=40),
    top_k=st.none() | st.integers(1, 60),
)
def test_ranking_is_a_stable_sort(scores: list[float], top_k: int | None) -> None:
    expected = sorted(range(len(scores)), key=lambda n: -scores[n])
    got = ranking(np.array(scores), top_k).tolist()
    assert got == (expected if top_k is None else expected[:top_k])
