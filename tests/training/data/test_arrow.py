"""Arrow columns -> raw columns: every arrow type, nulls, and the types and values that are refused."""

from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from model.features.encoder import FeatureEncoder, FittedFeatures
from model.features.kinds.columns import Column, Dtype
from model.schema import FeedSchema
from training.data.kinds.columns import column_from_arrow

COLUMNS = FeedSchema.from_mapping(
    yaml.safe_load("""
name: columns
features:
  - {name: number,  side: candidate, kind: number}
  - {name: id,      side: candidate, kind: id, buckets: 5, dim: 4}
  - {name: string,  side: candidate, kind: id, dtype: string, buckets: 5, dim: 4}
  - {name: ids,     side: candidate, kind: id_list, table: id, max_length: 9}
  - {name: strings, side: candidate, kind: id_list, table: string, max_length: 9}
tasks: [{name: click, kind: binary, label: y}]
"""),
    "test",
)
FEATURES = {feature.name: feature for feature in COLUMNS.features}
DTYPES: dict[str, Dtype] = {"id": "int64", "ids": "int64", "string": "string", "strings": "string"}


NOT_TEXT = pa.array([b"a", b"\xff", b"\xff", b"b"]).cast(pa.string(), safe=False)
# Lists that do not lie in the order of their elements.
SHUFFLED = pa.ListViewArray.from_arrays(pa.array([3, 0, 1], pa.int32()), pa.array([2, 3, 0], pa.int32()), [*range(5)])


def convert(name: str, values: pa.Array | pa.ChunkedArray) -> Column:
    chunked = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    return column_from_arrow(FEATURES[name], DTYPES.get(name), chunked)


def shown(column: Column) -> list[Any]:
    """A column as Python values, None where missing: what the Arrow column said."""
    flat = [
        None if column.missing is not None and column.missing[place] else value
        for place, value in enumerate(column.values if isinstance(column.values, list) else column.values.tolist())
    ]
    if column.lengths_B is None:
        return flat
    ends = np.cumsum(column.lengths_B).tolist()
    return [flat[end - length : end] for end, length in zip(ends, column.lengths_B.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("number", pa.array([1.5, None, -2.0])),
        ("number", pa.array([1.5, None], pa.float32())),
        ("number", pa.array([1.5, None], pa.float16())),
        ("number", pa.array([True, None, False])),
        ("number", pa.array([2**64 - 1, None], pa.uint64())),
        ("number", pa.nulls(2)),
        ("number", pa.array([1.5, None, 1.5]).dictionary_encode()),
        ("id", pa.array([5, None, -(2**63), 2**63 - 1])),
        ("id", pa.array([-128, None], pa.int8())),
        ("id", pa.array([2**63 - 1, None, 0], pa.uint64())),
        ("id", pa.nulls(3)),
        ("id", pa.array([7, None, 7]).dictionary_encode()),
        ("id", pa.array([1, None, 3, 4]).slice(1, 2)),
        ("id", pa.chunked_array([[1], [], [None, 2]], pa.int64())),
        ("id", pa.chunked_array([], pa.int64())),
        ("string", pa.array(["", "naïve", None, "🎬"])),
        ("string", pa.array(["a", None], pa.large_string())),
        ("string", pa.array(["a", None], pa.string_view())),
        ("string", pa.array(["a", None, "b", "a"]).dictionary_encode()),
        ("string", pa.nulls(2)),
        ("string", pa.chunked_array([["a"], ["b", None]])),
        ("string", pa.chunked_array([], pa.string())),
        ("number", pa.array([Decimal("0.1"), None, Decimal("-12.34")], pa.decimal128(38, 18))),
        ("number", pa.array([Decimal(7), None], pa.decimal128(9, 0))),
        ("id", pa.array([Decimal(2**63 - 1), None, Decimal(-(2**63))], pa.decimal128(38, 0))),
        ("id", pa.array([Decimal(1200), None], pa.decimal128(5, -2))),
        ("ids", pa.array([[Decimal(1)], [], [Decimal(3), None]], pa.list_(pa.decimal128(20, 0)))),
        ("ids", pa.array([[1, 2], [], [3, None]], pa.list_view(pa.int64()))),
        ("ids", pa.array([[1, 2], [], [3, None]], pa.large_list_view(pa.int32())).slice(1)),
        ("ids", SHUFFLED),
        ("strings", pa.array([["a", None], [], ["é"]], pa.list_view(pa.string_view()))),
        ("string", pa.array(["1", None]).cast(pa.json_())),
        ("ids", pa.array([[1, 2], [], [3, None]])),
        ("ids", pa.array([[1, 2], [3]], pa.large_list(pa.int32()))),
        ("ids", pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2))),
        ("ids", pa.array([[], []], pa.list_(pa.null()))),
        ("ids", pa.chunked_array([pa.array([[0], [1]]).slice(1), pa.array([[2, 3]])])),
        ("strings", pa.array([["a", None], [], ["é"]])),
        ("strings", pa.array([["a", None, "a"], []], pa.list_(pa.dictionary(pa.int8(), pa.string())))),
        ("strings", pa.array([["a"]], pa.large_list(pa.large_string()))),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.type),
)
def test_an_arrow_column_becomes_the_values_that_it_shows(name: str, values: pa.Array) -> None:
    assert shown(convert(name, values)) == [
        float(value) if name == "number" and value is not None else value for value in values.to_pylist()
    ]


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)])
def test_a_null_list_is_an_empty_list(kind: pa.DataType) -> None:
    assert shown(convert("ids", pa.array([[1, 2], None, [3, 4]], kind))) == [[1, 2], [], [3, 4]]


def test_a_column_without_any_value_is_missing_or_empty_in_every_row() -> None:
    assert shown(convert("ids", pa.nulls(2))) == [[], []]
    assert shown(convert("strings", pa.nulls(2))) == [[], []]


def test_a_null_inside_a_dictionary_is_a_null() -> None:
    codes = pa.array([0, 1, None, 2])
    for name, values in (("string", ["a", None, "c"]), ("id", [5, None, 7]), ("number", [0.5, None, 1.0])):
        column = convert(name, pa.DictionaryArray.from_arrays(codes, pa.array(values)))
        assert shown(column) == [values[0], None, None, values[2]]


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("number", pa.array([1.0, None, float("nan")]), "row 2: NaN or infinity.*; 1 such row$"),
        ("number", pa.array([1.0, float("-inf")]), "row 1: NaN or infinity"),
        ("number", pa.array(["1"]), "is string, not a number"),
        ("number", pa.array([date(2024, 1, 1)]), r"is date32\[day\], not a number"),
        ("id", pa.array([1.0, 2.0]), "is double, an id of dtype int64 needs an integer column"),
        ("id", pa.array(["1"]), "is string, an id of dtype int64"),
        ("id", pa.array([True]), "is bool, an id of dtype int64"),
        ("id", pa.array([1, None, 2**63], pa.uint64()), "row 2: an id beyond int64; 1 such row$"),
        ("string", pa.array([b"a"], pa.binary_view()), "is large_binary, an id of dtype string needs a string column"),
        ("id", pa.array([1, 2], pa.duration("ms")), r"is duration\[ms\], an id of dtype int64"),
        ("id", pa.array([Decimal("1.5")]), "is double, an id of dtype int64 needs an integer column"),
        ("id", pa.array([Decimal(1), Decimal(2**63)]), "row 1: a decimal beyond int64; write an id as string"),
        ("number", pa.array([Decimal("12345678901234567.8")]), "row 0: a decimal of more digits than float64 has"),
        ("string", NOT_TEXT, "row 1: text that is not valid UTF-8; 2 such rows$"),
        (
            "strings",
            pa.ListArray.from_arrays([0, 1, 1, 3, 4], NOT_TEXT),
            "row 2: text that is not valid UTF-8; 1 ",
        ),
        ("string", pa.array([1]), "is int64, an id of dtype string needs a string column"),
        ("string", pa.array([b"a"]), "is binary, an id of dtype string"),
        ("ids", pa.array([1, 2]), "is int64, an id_list needs a list column"),
        ("ids", pa.array([[1.5]]), "is list<item: double>, an id of dtype int64 needs lists of integers"),
        ("ids", pa.array([["1"]]), "is list<item: string>, an id of dtype int64"),
        ("ids", pa.array([[[1]]]), "is list<"),
        (
            "ids",
            pa.array([[1, 2], None, [], [3, 2**64 - 1]], pa.list_(pa.uint64())),
            "row 3: an id beyond int64; 1 ",
        ),
        ("strings", pa.array([[1]]), "is list<item: int64>, an id of dtype string needs lists of strings"),
    ],
)
def test_a_column_that_does_not_fit_is_refused(name: str, values: pa.Array, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        convert(name, values)


@pytest.mark.parametrize("name", ["string", "strings"])
@pytest.mark.parametrize("values", [["b", None, "a", "b"], [None, None], []])
def test_coded_strings_are_the_same_strings_once_each(name: str, values: list[Any]) -> None:
    given = values if name == "string" else [values, None, [], values[::-1]]
    chunked = pa.chunked_array([pa.array(given, pa.string() if name == "string" else pa.list_(pa.string()))])
    whole, coded = (
        column_from_arrow(FEATURES[name], "string", chunked, is_coded=is_coded) for is_coded in (False, True)
    )
    assert shown(coded.decoded()) == shown(whole)
    assert coded.rows == whole.rows
    assert len(coded.values) == len(set(coded.values))
    encoder = FeatureEncoder(COLUMNS, FittedFeatures(numbers={"number": ()}))
    one, other = (encoder.encode("candidate", {name: column}, whole.rows, as_served=False) for column in (whole, coded))
    assert [part.tolist() for part in one.block] == [part.tolist() for part in other.block]
    assert (one.missing, one.oov) == (other.missing, other.oov)
