"""The page's own scores, in Node, against those of the service: the same file as the browser runs."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.value_models.answer_domain import AnswerDomain
from model.value_models.value_model import ValueModels
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import program
from tests.service.in_process import client_of
from tests.service.running import ROOT

CASES = 1_000
SCORES = ROOT / "service/play/static/scores.js"
DRIVER = ROOT / "tests/service/play/node_scores.mjs"
OUTPUTS = ("click", "like", "play_time")
# Both sides add and multiply in float64. They may round their last digits, and those of log and exp, otherwise.
RELATIVE = 1e-12


def in_node(calls: Sequence[Sequence[Any]]) -> list[Any]:
    """The results of calls, each a function's name and its arguments."""
    lines = "".join(json.dumps(call) + "\n" for call in calls)
    done = subprocess.run(
        [program("node", "nodejs"), str(DRIVER), str(SCORES)], input=lines, check=True, capture_output=True, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def a_definition(generator: np.random.Generator) -> dict[str, Any]:
    """A value model of some outputs, whose weights have both signs and many sizes."""
    chosen = generator.permutation(OUTPUTS)[: generator.integers(1, 4)].tolist()
    sizes = generator.choice([1e-3, 0.3, 1.0, 40.0], len(chosen)) * generator.normal(size=len(chosen))
    if generator.random() < 0.5:
        return {"kind": "weighted_sum", "weights": dict(zip(chosen, sizes.tolist(), strict=True))}
    floor = float(generator.choice([1e-6, 1e-4, 0.3]))
    return {
        "kind": "weighted_product",
        "exponents": dict(zip(chosen, (sizes / 40).tolist(), strict=True)),
        "floor": floor,
    }


def a_request(generator: np.random.Generator) -> dict[str, Any]:
    """A request of 1 to 40 candidates, among them some that are alike and so score the same."""
    count = int(generator.integers(1, 41))
    features = {
        "video_id": generator.integers(0, 15, count).tolist(),
        "tag": generator.choice(["x", "y"], count).tolist(),
        "duration_ms": generator.choice([0, 8_000, 31_000.5], count).tolist(),
    }
    ids = [f"c{number}" for number in range(count)]
    return {
        "user": {**TINY_REQUEST["user"], "tab": int(generator.integers(3))},
        "candidates": {"id": ids, "features": features},
    }


def test_the_browser_ranks_as_the_service_does(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    generator = np.random.default_rng(20)
    trials = [{"request": a_request(generator), "draft": a_definition(generator)} for _ in range(CASES)]
    with client_of(tmp_path) as client:
        answers = [client.post("/v1/play/rank", json=trial) for trial in trials]
    assert {answer.status_code for answer in answers} == {200}
    served = [answer.json() for answer in answers]
    calls = [
        ["rank", trial["draft"], one["answers"], len(one["ids"])] for trial, one in zip(trials, served, strict=True)
    ]
    ties = 0
    for here, there in zip(in_node(calls), served, strict=True):
        scale = max(1.0, *(np.abs(given).max() for given in there["contributions"].values()))
        np.testing.assert_allclose(here["score"], there["score"], rtol=RELATIVE, atol=RELATIVE * scale)
        assert here["contributions"].keys() == there["contributions"].keys()
        for output, given in there["contributions"].items():
            np.testing.assert_allclose(here["contributions"][output], given, rtol=RELATIVE, atol=RELATIVE)
        # In the service's scores, the browser's order falls nowhere by more than rounding, and ties keep their order.
        ordered = np.array(there["score"])[here["order"]]
        assert (np.diff(ordered) <= RELATIVE * scale * np.maximum(1.0, np.abs(ordered[1:]))).all()
        if len(set(there["score"])) == len(there["score"]):
            assert here["order"] == there["order"]
        ties += len(set(there["score"])) < len(there["score"])
    assert ties > CASES / 10


def test_ties_keep_the_order_of_the_request_and_moves_are_counted_upwards() -> None:
    calls = [["rank", {"kind": "weighted_sum", "weights": {"a": 1}}, {"a": [0.5, 1.0, 0.5, 1.0]}, 4]]
    calls += [["moves", [0, 1, 2], [2, 0, 3]]]
    ranked, moves = in_node(calls)
    assert ranked["order"] == [1, 3, 0, 2]
    assert moves == [[2, 2], [0, -1], [3, None]]


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("default", {"kind": "weighted_sum", "weights": {"click": 1.0, "like": -74.25}}),
        ("tiny", {"kind": "weighted_sum", "weights": {"click": 1e-9, "like": 1.5e30, "play_time": -12}}),
        ("no", {"kind": "weighted_product", "exponents": {"click": 0.5, "rating.good": 1}, "floor": 1e-7}),
        ("a b", {"kind": "expression", "formula": "click * (1 + 4 * like) - 20 * rating.good"}),
    ],
)
def test_yaml_is_read_as_what_it_shows(name: str, definition: dict[str, Any]) -> None:
    (text,) = in_node([["yamlOf", name, definition]])
    domain = AnswerDomain.of_answers({"click": [0.5], "like": [0.5], "play_time": [900.0], "rating.good": [0.1]})
    default = "" if name == "default" else "default: {kind: weighted_sum, weights: {click: 1}}\n"
    read = ValueModels.from_bytes((default + text).encode(), "value_models.yaml", domain)
    assert read[name].definition.model_dump(mode="json") == definition


@pytest.mark.parametrize("value", [None, 17, "17", "fr", "", "null", "[1]", [3, 9], [], -0.5, "a, b", True])
def test_a_feature_is_typed_as_it_is_shown(value: object) -> None:
    assert in_node([["there_and_back", value]]) == [value]


def test_ids_beyond_the_numbers_of_a_browser_keep_their_digits() -> None:
    snowflake, text = 7461234567890123457, '"a \\" 7461234567890123457"'
    (parsed,) = in_node([["parsed", f'{{"ids":[{snowflake},3,-{snowflake}],"x":0.12345678901234567,"t":{text}}}']])
    read = json.loads(parsed)
    assert read["ids"] == [str(snowflake), 3, str(-snowflake)]
    assert read["x"] == 0.12345678901234567
    assert read["t"] == json.loads(text)
