"""Columns read from JSON text: what is taken is what the decoded values give, and nothing wrong is taken."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.column_text import columns_from_texts
from model.columns import ColumnError, Kind, column_from_values
from model.schema import Dtype, Feature, IdFeature, IdListFeature, NumberFeature
from tests.artifacts import tiny_schema

_FEATURES = {feature.name: feature for feature in tiny_schema().features}
KINDS: dict[str, tuple[Feature, Dtype | None]] = {
    "id": (_FEATURES["video_id"], "int64"),
    "list": (_FEATURES["topics"], "int64"),
    "string": (_FEATURES["tag"], "string"),
    "number": (_FEATURES["duration_ms"], None),
}
TEXT_KINDS = {name: Kind(dtype, name == "list") for name, (_, dtype) in KINDS.items()}

IDS = st.integers(-(2**65), 2**65) | st.integers(-20, 20)
NUMBERS = IDS | st.floats(allow_nan=False, allow_infinity=False)
ODD: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.text(max_size=3) | st.just([]) | st.just([[1]]) | st.just({})
)
COLUMNS = (
    st.lists(IDS)
    | st.lists(NUMBERS)
    | st.lists(st.lists(IDS))
    | st.lists(NUMBERS | ODD)
    | st.lists(st.lists(IDS | ODD))
)


def check(kind: str, text: str) -> bool:
    """Whether the text was taken; if it was, the decoded values give the same column."""
    feature, dtype = KINDS[kind]
    values = json.loads(text)
    taken = columns_from_texts({kind: text.encode()}, TEXT_KINDS, len(values)).get(kind)
    if taken is None:
        return False
    expected = column_from_values(feature, dtype, values)
    assert isinstance(taken.values, np.ndarray)
    assert isinstance(expected.values, np.ndarray)
    assert taken.values.dtype == expected.values.dtype
    np.testing.assert_array_equal(taken.values, expected.values)
    np.testing.assert_equal(taken.lengths_B, expected.lengths_B)
    assert expected.missing is None
    return True


def test_the_kinds_are_what_their_names_say() -> None:
    assert isinstance(KINDS["id"][0], IdFeature)
    assert isinstance(KINDS["list"][0], IdListFeature)
    assert isinstance(KINDS["number"][0], NumberFeature)


@given(column=COLUMNS, separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", ":")]))
def test_what_is_taken_is_what_the_values_give(column: list[Any], separators: tuple[str, str]) -> None:
    text = json.dumps(column, separators=separators)
    for kind in KINDS:
        check(kind, text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("id", "[7]"),
        ("id", "[1, -2,3 ]"),
        ("id", "[999999999999999999]"),
        ("number", "[1, 0.25, -3e-2]"),
        ("list", "[[1, 2], [3]]"),
        ("list", "[[],[1],[],[2,3],[]]"),
        ("list", "[[], []]"),
        ("list", "[[1], [], [2, 3], []]"),
        ("id", f"[{2**63 - 2}, {-(2**63) + 1}]"),
    ],
)
def test_plain_numbers_are_taken(kind: str, text: str) -> None:
    assert check(kind, text)


BEYOND_64_BITS = str(2**63)


@pytest.mark.parametrize("kind", ["id", "list"])
@pytest.mark.parametrize(
    "values",
    ["[true]", "[1.0]", "[1e3]", '["1"]', "[[[1]]]", "[{}]", f"[{BEYOND_64_BITS}]", f"[-{BEYOND_64_BITS}]"],
)
def test_what_is_no_id_is_left_to_the_general_way(kind: str, values: str) -> None:
    text = values if kind == "id" else f"[{values}]"
    assert columns_from_texts({kind: text.encode()}, TEXT_KINDS, 1) == {}


@pytest.mark.parametrize("text", ["[[1],2]", "[1,[2]]", "[[1],2,[3]]", "[[1,[2]],[3]]", "[[1],[[2]]]", "[[],1]", "[1]"])
def test_lists_and_ids_in_one_column_are_left_to_the_general_way(text: str) -> None:
    assert not check("list", text)
    with pytest.raises(ColumnError):
        column_from_values(*KINDS["list"], json.loads(text))


@pytest.mark.parametrize("text", ["[ ]", "[\n]", "[[ ]]", "[[ ],[1]]", "[[1],[ ]]", "[[1] , [] , [2]]"])
def test_a_blank_is_no_number(text: str) -> None:
    # numpy's reader finds a 0 between blanks; check() compares where the text is taken
    for kind in KINDS:
        check(kind, text)
