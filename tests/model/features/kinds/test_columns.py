"""Raw values as requests hold them: what a column takes, what it refuses, and that every faulty row is named."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.features.encoder import FeatureEncoder, FittedFeatures
from model.features.kinds import Feature
from model.features.kinds.columns import FAULTS_SHOWN, ColumnError, ColumnErrors, Dtype
from tests.model.feeds import schema_of

SCHEMA = schema_of("""
name: feed
features:
  - {name: number, side: candidate, kind: number}
  - {name: id, side: candidate, kind: id, buckets: 5, dim: 4}
  - {name: word, side: candidate, kind: id, dtype: string, buckets: 5, dim: 4}
  - {name: ids, side: candidate, kind: id_list, table: id, max_length: 3}
  - {name: words, side: candidate, kind: id_list, table: word, max_length: 3}
  - {name: user, side: user, kind: id, buckets: 5, dim: 4}
  - {name: position, side: training_only, kind: number, serving_value: 0}
tasks: [{name: click, kind: binary, label: clicked}]
""")
FEATURES: dict[str, Feature] = {feature.name: feature for feature in SCHEMA.features}
DTYPES: dict[str, Dtype | None] = {"number": None, "id": "int64", "ids": "int64", "word": "string", "words": "string"}


def faults(name: str, values: list[object]) -> list[tuple[int | None, str]]:
    """Rows and messages of the faults of a column."""
    with pytest.raises(ColumnError) as raised:
        FEATURES[name].column(values, DTYPES[name])
    assert raised.value.feature == name
    assert str(raised.value).startswith(f"feature '{name}' in row {raised.value.faults[0].row}: ")
    return list(raised.value.faults)


@pytest.mark.parametrize(("value", "shown"), [
    (True, "true or false"), (False, "true or false"), (1.0, "a fraction"), (0.5, "a fraction"),
    ("1.0", "another string"), (float("nan"), "a number that is not finite"), ([1], "a list"), ({}, "an object"),
    (2**63, "an integer beyond 64 bits"), (-(2**63) - 1, "an integer beyond 64 bits"), (10**400, "beyond 64 bits"),
])  # fmt: skip
def test_an_id_is_an_int64_and_nothing_like_it(value: object, shown: str) -> None:
    [(row, message)] = faults("id", [1, None, value, 2])
    assert row == 2
    assert message.startswith("expected an integer (int64), a string of its digits or null")
    assert shown in message
    [(row, message)] = faults("ids", [[1], None, [2, value]])
    assert row == 2
    assert shown in message


@given(text=st.one_of(
    st.integers(-(2**64), 2**64).map(str), st.text("0123456789+-_ .ex\u0663", max_size=5),
    st.sampled_from([str(2**63 - 1), str(2**63), str(-(2**63)), str(-(2**63) - 1), "9" * 5000, "0" * 30 + "1"]),
))  # fmt: skip
def test_a_string_is_an_id_where_it_is_the_decimal_form_of_an_int64(text: str) -> None:
    is_decimal = re.fullmatch("0|-?[1-9][0-9]*", text, re.ASCII) is not None
    is_id = is_decimal and len(text) < 100 and -(2**63) <= int(text) < 2**63
    lists: list[list[int | str | None]] = [[text], [1, text, None], [text, text]]
    for values in lists:
        if is_id:
            column = FEATURES["id"].column(values, "int64")
            assert isinstance(column.values, np.ndarray)
            assert column.values.dtype == np.int64
            assert column.values.tolist() == [0 if value is None else int(value) for value in values]
        else:
            assert [row for row, _ in faults("id", list(values))] == [
                n for n, value in enumerate(values) if value == text
            ]


@pytest.mark.parametrize(("value", "shown"), [
    (1, "an integer"), (1.5, "a fraction"), (True, "true or false"), ([], "a list"),
    ("\ud800", "a string"), ("ok\udfff", "a string"), ("\ud83c\udfac", "a string"),
])  # fmt: skip
def test_a_string_id_is_a_string_of_characters(value: object, shown: str) -> None:
    [(row, message)] = faults("word", ["a", value])
    assert row == 1
    assert message == f"expected a string of Unicode characters or null, got {shown}"
    [(row, message)] = faults("words", [[], ["a", value]])
    assert row == 1


@pytest.mark.parametrize("value", [
    True, "1", [1], {}, float("nan"), float("inf"), -float("inf"), 10**400, -(10**400)
])  # fmt: skip
def test_a_number_is_finite(value: object) -> None:
    [(row, message)] = faults("number", [1, 2.5, value])
    assert row == 2
    assert message.startswith("expected a finite number or null, got ")


@pytest.mark.parametrize("value", [1, "ab", True, {"a": 1}, 1.5])
def test_a_list_is_a_list(value: object) -> None:
    [(row, message)] = faults("ids", [[1], None, value])
    assert row == 2
    assert message.startswith("expected a list of ids or null, got ")


def test_a_list_in_a_list_is_refused() -> None:
    assert [row for row, _ in faults("ids", [[1], [[1]], [2, [3], [4]]])] == [1, 2, 2]


def test_every_faulty_row_is_named() -> None:
    assert [row for row, _ in faults("id", ["a", 1, True, None, 2.0, 2**63])] == [0, 2, 4, 5]


def test_a_column_of_faults_is_cut_short() -> None:
    assert len(faults("id", ["a"] * 1000)) == FAULTS_SHOWN
    assert len(faults("ids", ["a"] * 1000)) == FAULTS_SHOWN


def test_values_of_users_stay_out_of_messages() -> None:
    for name in ("id", "ids", "number"):
        with pytest.raises(ColumnError) as raised:
            FEATURES[name].column(["my secret"], DTYPES[name])
        assert "secret" not in str(raised.value)


def test_extremes_are_taken_exactly() -> None:
    values: list[object] = [-(2**63), 2**63 - 1, -1, 0, None, 2**53 + 1]
    column = FEATURES["id"].column(values, "int64")
    assert isinstance(column.values, np.ndarray)
    assert column.values.tolist() == [-(2**63), 2**63 - 1, -1, 0, 0, 2**53 + 1]
    assert column.missing is not None
    assert column.missing.tolist() == [False, False, False, False, True, False]
    assert column.lengths_B is None
    assert column.rows == 6


def test_numbers_may_be_integers_of_any_size_that_a_float_holds() -> None:
    column = FEATURES["number"].column([1, 2**70, -0.5, None, 5e-324, 1.7e308], None)
    assert list(column.values) == [1.0, 2.0**70, -0.5, 0.0, 5e-324, 1.7e308]


def test_strings_keep_every_character() -> None:
    values = ["", " ", "\0", "naïve", "日本", "🎬", "e\u0301", "é", "x" * 1_000_000]
    column = FEATURES["word"].column(values, "string")
    assert column.values == values
    assert column.missing is None


def test_a_surrogate_pair_of_json_is_one_character() -> None:
    column = FEATURES["word"].column(json.loads('["\\ud83c\\udfac"]'), "string")
    assert column.values == ["🎬"]


def test_lists_are_flattened() -> None:
    column = FEATURES["ids"].column([[1, None, 2], None, [], [3]], "int64")
    assert list(column.values) == [1, 0, 2, 3]
    assert column.missing is not None
    assert column.missing.tolist() == [False, True, False, False]
    assert column.lengths_B is not None
    assert column.lengths_B.tolist() == [3, 0, 0, 1]
    assert column.rows == 4


@pytest.mark.parametrize("name", list(DTYPES))
@pytest.mark.parametrize("values", [[], [None], [None, None]])
def test_columns_without_a_value_are_columns(name: str, values: list[object]) -> None:
    assert FEATURES[name].column(values, DTYPES[name]).rows == len(values)


ENCODER = FeatureEncoder(SCHEMA, FittedFeatures(numbers={"number": (), "position": ()}))


def test_all_faulty_columns_are_named_at_once() -> None:
    with pytest.raises(ColumnErrors) as raised:
        ENCODER.columns(
            "candidate",
            {
                "id": ["a", 1, "b"],
                "idz": [1, 2, 3],
                "word": ["a"],
                "user": [1, 1, 1],
                "position": [1, 1, 1],
                "qqqqqq": [],
            },
            3,
        )
    messages = {error.feature: [fault.message for fault in error.faults] for error in raised.value.errors}
    rows = {error.feature: [fault.row for fault in error.faults] for error in raised.value.errors}
    assert rows == {"id": [0, 2], "idz": [None], "word": [None], "user": [None], "position": [None], "qqqqqq": [None]}
    assert messages["idz"] in (["unknown feature; did you mean 'id'?"], ["unknown feature; did you mean 'ids'?"])
    assert messages["word"] == ["ragged: 1 values for 3 candidates"]
    assert messages["user"] == ["is a user feature and does not belong here"]
    assert messages["position"] == ["is a training_only feature and does not belong here"]
    assert messages["qqqqqq"] == ["unknown feature"]
    assert all(f"'{feature}'" in str(raised.value) for feature in messages)


def test_columns_that_hold_come_back_by_name() -> None:
    columns = ENCODER.columns("candidate", {"id": [1, 2], "words": [["a"], None]}, 2)
    assert set(columns) == {"id", "words"}
    assert ENCODER.columns("request", {}, 1) == {}
