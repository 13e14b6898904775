"""The walk that names all faults of a body agrees with msgspec, which takes the body or names one."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.base.record import is_request_id
from service.open_inference.wire import InferRequest
from service.rank.faults import faults_of
from service.rank.wire import RankRequest

REQUEST: dict[str, Any] = {"user": {"a": 1}, "candidates": {"id": ["x", "y"], "features": {"b": [1, [2]]}}}
ROWS: dict[str, Any] = {"user": {}, "candidates": [{"id": "x", "features": {"b": None}}, {"id": "y"}]}
KEYS = [
    "request_id",
    "model",
    "version",
    "value_model",
    "user",
    "candidates",
    "top_k",
    "explain",
    "strict",
    "id",
    "mod",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner))
ROW = st.fixed_dictionaries(
    {}, optional={"id": st.text("ab") | SCALARS, "features": st.just({}) | JSON, "ids": SCALARS}
)
CANDIDATES = ROW | st.lists(ROW, max_size=3) | st.fixed_dictionaries({"id": st.lists(st.text("ab") | SCALARS)})
BODIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(KEYS, JSON),
        "user": st.just({}) | JSON,
        "candidates": CANDIDATES | JSON,
        "request_id": st.text(st.characters(max_codepoint=130), max_size=3) | SCALARS,
    },
)


TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text("ab"),
        "shape": st.lists(st.integers(-1, 2) | SCALARS, max_size=2) | SCALARS,
        "datatype": st.text("ab") | SCALARS,
        "parameters": st.just({}) | JSON,
        "data": JSON,
        "more": SCALARS,
    },
)
TENSORS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=2) | JSON},
    optional={"id": SCALARS, "parameters": JSON, "outputs": st.lists(TENSOR, max_size=2) | JSON, "more": SCALARS},
)


def walked(body: object, wanted: type = RankRequest) -> list[str]:
    return [fault.path for fault in faults_of(body, msgspec.inspect.type_info(wanted))]


def is_taken(body: object, wanted: type = RankRequest) -> bool:
    try:
        msgspec.json.decode(json.dumps(body), type=wanted)
    except msgspec.ValidationError:
        return False
    return True


@given(body=BODIES | JSON)
@example(body=REQUEST)
@example(body=ROWS)
@example(body={**REQUEST, "request_id": "a\n"})
@example(body={**REQUEST, "version": True})
def test_there_is_a_fault_where_the_body_is_not_taken(body: object) -> None:
    assert (not walked(body)) == is_taken(body)


@given(body=TENSORS | JSON)
@example(body={"inputs": [{"name": "a", "shape": [1], "datatype": "FP32"}], "more": 1})
def test_tensors_are_walked_alike(body: object) -> None:
    assert (not walked(body, InferRequest)) == is_taken(body, InferRequest)


@given(text=st.text(max_size=4) | st.text(st.characters(max_codepoint=140), max_size=131))
def test_a_request_id_in_a_body_is_one_in_a_header(text: str) -> None:
    assert (walked({**REQUEST, "request_id": text}) == []) == is_request_id(text)


def test_every_fault_is_named() -> None:
    wrong = {"models": 1, "model": 2, "candidates": {"id": ["a", 1, None], "features": {"b": 3, "c": []}, "z": 1}}
    paths = {"models", "model", "user", "candidates.id[1]", "candidates.id[2]", "candidates.features.b", "candidates.z"}
    assert sorted(walked(wrong)) == sorted(paths)


@pytest.mark.parametrize("candidates", [{"id": [1] * 10_000}, [3] * 10_000, {"id": [], "features": {}}])
def test_of_thousands_a_few_are_named(candidates: object) -> None:
    assert 0 < len(walked({"user": {}, "candidates": candidates})) <= 20
