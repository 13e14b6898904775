"""Columnar bodies read by simdjson: what is taken is what the decoded values give, and nothing wrong is taken."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.features.encoder import FeatureEncoder, FittedFeatures
from model.features.kinds.columns import Column
from model.schema import FeedSchema
from service.base.errors import Problem
from service.base.record import RequestRecord
from service.rank.question import Question, read_features
from service.rank.question_fast import read_columnar, read_columnar_batch
from service.rank.read import read_general
from service.rank.wire import Options

ENCODER = FeatureEncoder(
    FeedSchema.from_mapping(
        {
            "name": "columns",
            "features": [
                {"name": "user_id", "side": "user", "kind": "id", "buckets": 50, "dim": 8},
                {"name": "id", "side": "candidate", "kind": "id", "buckets": 100, "dim": 8},
                {"name": "list", "side": "candidate", "kind": "id_list", "buckets": 9, "dim": 4, "max_length": 4},
                {"name": "string", "side": "candidate", "kind": "id", "dtype": "string", "buckets": 20, "dim": 4},
                {"name": "number", "side": "candidate", "kind": "number", "missing": 0},
            ],
            "tasks": [{"name": "click", "kind": "binary", "label": "is_click"}],
        },
        "a test",
    ),
    FittedFeatures.from_mapping({"numbers": {"number": []}}, "a test"),
)
KINDS = ("id", "list", "string", "number")

IDS = st.integers(-(2**65), 2**65) | st.integers(-20, 20)
NUMBERS = IDS | st.floats(allow_nan=False, allow_infinity=False)
# Ids as strings of digits, and what is nearly so.
DIGITS = IDS.map(str) | st.sampled_from(["+1", "01", "-0", " 1", "1e3", "1.0", "", str(2**63), str(-(2**63))])
ODD: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.text(max_size=3) | st.just([]) | st.just([[1]]) | st.just({}) | st.just("[")
)
COLUMNS = (
    st.lists(IDS, min_size=1)
    | st.lists(NUMBERS, min_size=1)
    | st.lists(st.lists(IDS), min_size=1)
    | st.lists(NUMBERS | ODD, min_size=1)
    | st.lists(st.lists(IDS | ODD), min_size=1)
    | st.lists(DIGITS, min_size=1)
    | st.lists(IDS | IDS.map(str) | st.none(), min_size=1)
    | st.lists(st.lists(IDS | DIGITS), min_size=1)
)


def body_of(features: dict[str, str], rows: int, user: str = '{"user_id": 3}', more: str = "") -> bytes:
    columns = ", ".join(f'"{name}": {text}' for name, text in features.items())
    ids = json.dumps([f"v{row}" for row in range(rows)])
    return f'{{{more}"user": {user}, "candidates": {{"id": {ids}, "features": {{{columns}}}}}}}'.encode()


def generally(body: bytes) -> Question:
    """The question as it is read key by key."""
    return read_general(body, 1000, RequestRecord("r", "/v1/rank"))


def columns_or_faults(question: Question) -> tuple[dict[str, Any], list[Any]]:
    try:
        candidates = read_features(question, ENCODER)[1]
    except Problem as problem:
        return {}, [problem.status, problem.detail, problem.faults]
    return {**question.request_columns(ENCODER), **candidates}, []


def check(features: dict[str, str], rows: int) -> bool:
    """True where the body was taken. If it was, it gives the columns, or the faults, of the decoded values."""
    body = body_of(features, rows)
    question = read_columnar(body)
    if question is None:
        return False
    expected = generally(body)
    assert (question.user, question.ids) == (expected.user, expected.ids)
    taken, faults = columns_or_faults(question)
    columns, expected_faults = columns_or_faults(expected)
    assert faults == expected_faults
    assert taken.keys() == columns.keys()
    for name, column in columns.items():
        assert isinstance(taken[name].values, list) == isinstance(column.values, list)
        if not isinstance(column.values, list):
            assert taken[name].values.dtype == column.values.dtype
        np.testing.assert_array_equal(taken[name].values, column.values)
        np.testing.assert_equal(taken[name].lengths_B, column.lengths_B)
        np.testing.assert_equal(taken[name].missing, column.missing)
    return True


def is_plain(kind: str, text: str) -> bool:
    question = read_columnar(body_of({kind: text}, len(json.loads(text))))
    return question is not None and isinstance(question.features[kind], Column)


@given(column=COLUMNS, separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", ":")]))
def test_what_is_taken_is_what_the_values_give(column: list[Any], separators: tuple[str, str]) -> None:
    text = json.dumps(column, separators=separators)
    for kind in KINDS:
        check({kind: text}, len(column))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("id", "[7]"),
        ("id", "[1, -2,3 ]"),
        ("id", f"[{2**63 - 1}, {-(2**63)}]"),
        ("number", "[1, 0.25, -3e-2]"),
        ("number", "[1, 2]"),
        ("number", f"[{2**53 + 1}, 0.1]"),
        ("list", "[[1, 2], [3]]"),
        ("list", "[[],[1],[],[2,3],[]]"),
        ("list", "[[ ], []]"),
    ],
)
def test_plain_numbers_become_arrays_at_once(kind: str, text: str) -> None:
    assert is_plain(kind, text)
    assert check({kind: text}, len(json.loads(text)))


BEYOND_64_BITS = str(2**63)


@pytest.mark.parametrize("kind", ["id", "list"])
@pytest.mark.parametrize(
    "values",
    ["[true]", "[1.0]", "[1e3]", '["01"]', "[[[1]]]", "[{}]", f"[{BEYOND_64_BITS}]", f"[-{BEYOND_64_BITS}1]", "[[1]]"],
)
def test_what_is_no_id_is_refused_as_in_general(kind: str, values: str) -> None:
    body = body_of({kind: values if kind == "id" else f"[{values}]"}, 1)
    expected = columns_or_faults(generally(body))[1]
    assert expected
    question = read_columnar(body)
    assert question is None or columns_or_faults(question)[1] == expected


@pytest.mark.parametrize(
    "text",
    ["[[1],2]", "[1,[2]]", "[[1],2,[3]]", "[[1,[2]],[3]]", "[[1],[[2]]]", "[[],1]", "[1]", "[[[1]]]", "[[1],[2]]"],
)
def test_nesting_is_seen_whatever_it_adds_up_to(text: str) -> None:
    rows = len(json.loads(text))
    for kind in ("id", "number", "list"):
        body = body_of({kind: text}, rows)
        expected = columns_or_faults(generally(body))[1]
        question = read_columnar(body)
        assert question is None or columns_or_faults(question)[1] == expected


def test_a_bracket_in_a_string_hides_no_nesting() -> None:
    for name in ("[", "\\u005b", "]"):
        body = body_of({"id": "[[1],[2]]", "string": f'["{name}", "{name}"]'}, 2)
        question = read_columnar(body)
        assert question is None or columns_or_faults(question)[1] == columns_or_faults(generally(body))[1]


@pytest.mark.parametrize(
    "more",
    [
        '"request_id": "a", "request_id": "b", ',
        '"top_k": 1.0, ',
        '"top_k": 0, ',
        '"top_k": true, ',
        '"request_id": "\\u00e9", ',
        '"request_id": 5, ',
        '"version": 1.5, ',
        '"version": true, ',
        '"explain": 1, ',
        '"strict": "no", ',
        '"model": ["a"], ',
        '"colour": "red", ',
    ],
)
def test_another_head_is_left_to_be_read_key_by_key(more: str) -> None:
    assert read_columnar(body_of({"id": "[1]"}, 1, more=more)) is None


def test_a_right_head_is_read() -> None:
    more = '"request_id": "a", "model": "m", "version": 7, "value_model": null, "top_k": 2, '
    more += '"explain": true, "strict": true, '
    body = body_of({"id": "[1]"}, 1, more=more)
    question, expected = read_columnar(body), generally(body)
    assert question is not None
    for key in ("user", "ids", "featureless"):
        assert getattr(question, key) == getattr(expected, key)
    for key in Options.__struct_fields__:
        assert getattr(question.options, key) == getattr(expected.options, key)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"5",
        b"[1]",
        b"\xef\xbb\xbf" + body_of({"id": "[1]"}, 1),
        body_of({"id": "[1]"}, 1) + b" x",
        body_of({"id": "[NaN]"}, 1),
        body_of({"id": "[1]"}, 1, user='{"user_id": "\\ud800"}'),
        body_of({"id": "[1]"}, 1, user="[1]"),
        body_of({"id": "7"}, 1),
        body_of({"id": "[1]"}, 0),
        b'{"user": {}, "candidates": {"id": ["a"], "id": ["b"]}}',
        b'{"user": {}, "candidates": {"id": ["a"], "features": {"id": [1], "id": [2]}}}',
        b'{"user": {}, "candidates": {"id": [1]}}',
        b'{"user": {}, "candidates": [{"id": "a", "features": {}}]}',
        b'{"user": {}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_columnar_body_is_left_alone(body: bytes) -> None:
    assert read_columnar(body) is None
    # and the parser is free for the next
    assert read_columnar(body_of({"id": "[1]"}, 1)) is not None


def test_a_log_gets_columns_as_the_client_wrote_them() -> None:
    body = body_of({"number": "[1.50, 2]", "string": '["a", null]'}, 2)
    question = read_columnar(body)
    assert question is not None
    assert {name: bytes(text) for name, text in question.written().items()} == {
        "number": b"[1.50, 2]",
        "string": b'["a", null]',
    }


def test_a_batch_is_read_as_each_of_its_requests() -> None:
    bodies = [
        body_of({"number": "[1.50, 2]", "list": "[[1], []]"}, 2, more='"top_k": 1, '),
        body_of({"id": "[7]", "string": '["a"]'}, 1, user='{"user_id": null}'),
        b'{"user": {}, "candidates": {"id": ["a"]}}',
    ]
    questions = read_columnar_batch(b'{"requests": [%b]}' % b", ".join(bodies), 3, bodies.__getitem__)
    assert questions is not None
    for question, body in zip(questions, bodies, strict=True):
        alone = read_columnar(body)
        assert alone is not None
        assert (question.user, question.ids, question.featureless) == (alone.user, alone.ids, alone.featureless)
        assert question.options.top_k == alone.options.top_k
        assert question.written() == alone.written()
        assert question.features.keys() == alone.features.keys()
        for name, column in question.features.items():
            assert isinstance(column, Column) == isinstance(alone.features[name], Column)


def test_a_batch_that_is_not_all_columns_is_left_alone() -> None:
    right = body_of({"id": "[1]"}, 1).decode()
    nested = body_of({"list": "[[1,[2]],[3]]"}, 2).decode()
    for text in (
        f'{{"requests": [{right}, {right}]}}',  # one more than there may be
        '{"requests": []}',
        '{"requests": 7}',
        f'{{"requests": [{right}], "more": 1}}',
        f'{{"requests": [{right}], "requests": [{right}]}}',
        f"[{right}]",
        f'{{"requests": [{nested}]}}',
        '{"requests": [{"user": {}, "candidates": [{"id": "a"}]}]}',
        f'{{"requests": [{right}]}} x',
    ):
        assert read_columnar_batch(text.encode(), 1, lambda _: b"") is None
    assert read_columnar_batch(f'{{"requests": [{right}]}}'.encode(), 1, lambda _: b"") is not None
