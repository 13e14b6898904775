"""Decimals as integers and numbers: exactly, as Python's own decimals say, or a fault of the row."""

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.usual_types import usual, usual_type


@given(st.lists(st.integers(-(10**24), 10**24) | st.integers(-(2**63) - 2, -(2**63)) | st.integers(2**63 - 2, 2**63)))
def test_decimals_without_places_are_integers_where_int64_holds_them(values: list[int]) -> None:
    column, fault = usual(pa.chunked_array([pa.array([Decimal(value) for value in values], pa.decimal128(38, 0))]))
    is_good = [-(2**63) <= value < 2**63 for value in values]
    assert column.type == pa.int64()
    assert column.to_pylist() == [value if good else None for value, good in zip(values, is_good, strict=True)]
    assert (
        (fault is None) if all(is_good) else (fault is not None and fault.is_bad_B.tolist() == [not g for g in is_good])
    )


@pytest.mark.parametrize(("precision", "scale"), [(5, 2), (15, 15), (18, 6), (38, 18), (38, 3)])
@given(st.data())
def test_decimals_with_places_are_the_nearest_float_where_it_gives_them_back(
    precision: int, scale: int, data: st.DataObject
) -> None:
    most = 10**precision - 1
    whole = st.integers(-most, most) | st.integers(-9999, 9999).map(lambda few: few * 10 ** (scale - 2) % most)
    values = [Decimal(f"{value}e-{scale}") for value in data.draw(st.lists(whole, max_size=5))]
    column, fault = usual(pa.chunked_array([pa.array(values, pa.decimal128(precision, scale))]))
    is_good = [Decimal(repr(float(value))) == value for value in values]
    expected = [float(value) if good else None for value, good in zip(values, is_good, strict=True)]
    assert column.to_pylist() == expected
    assert (
        (fault is None) if all(is_good) else (fault is not None and fault.is_bad_B.tolist() == [not g for g in is_good])
    )


def test_usual_types_stay_and_mixed_ones_meet() -> None:
    for kind in (
        pa.string(),
        pa.int8(),
        pa.list_(pa.int64()),
        pa.dictionary(pa.int8(), pa.string()),
        pa.timestamp("us"),
    ):
        assert usual_type(kind) == kind
    assert usual_type(pa.list_view(pa.list_(pa.string_view(), 3))) == pa.large_list(pa.large_list(pa.large_string()))
    assert usual_type(pa.dictionary(pa.int8(), pa.string_view())) == pa.large_string()
