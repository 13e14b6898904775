"""Interval arithmetic against numpy: no value of a function lies outside the bounds that it was given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.value_models.formula import FUNCTIONS
from model.value_models.intervals import Intervals, interval_of

ENDS = st.one_of(
    st.sampled_from([-np.inf, -1e308, -2.0, -1.0, -0.5, -0.0, 0.0, 1e-320, 0.5, 1.0, 2.0, 3.0, 710.0, 1e200, np.inf]),
    st.floats(allow_nan=False),
    st.floats(-3, 3),
)
TWO = [np.add, np.subtract, np.multiply, np.divide, np.power, np.maximum, np.minimum]
ONE = [np.negative, np.positive, *(function for function, count in FUNCTIONS.values() if count == 1)]


@st.composite
def bounds_and_points(draw: st.DrawFn) -> tuple[float, float, list[float]]:
    """An interval, both its ends, and numbers between them."""
    low, high = sorted((draw(ENDS), draw(ENDS)), key=lambda end: (end, np.copysign(1, end)))  # -0.0 before 0.0
    if draw(st.integers(0, 3)) == 0:
        high = low
    between = st.floats(low, high, allow_nan=False) if np.isfinite([low, high]).all() else st.sampled_from([low, high])
    points = [low, high, *draw(st.lists(between, max_size=5)), *(p for p in (0.0, 1.0, -1.0) if low <= p <= high)]
    return low, high, points


@pytest.mark.parametrize("function", [*ONE, *TWO], ids=lambda function: function.__name__)
@given(data=st.data())
def test_every_value_is_within_its_bounds(function: np.ufunc, data: st.DataObject) -> None:
    given_bounds = [data.draw(bounds_and_points()) for _ in range(1 if function in ONE else 2)]
    found = interval_of(function, [Intervals.between(low, high) for low, high, _ in given_bounds])
    grids = np.meshgrid(*(np.array(points) for _, _, points in given_bounds))
    with np.errstate(all="ignore"):
        values = function(*grids)
    assert not np.isnan(values).any() or found.may_be_nan_B
    known = values[~np.isnan(values)]
    assert ((known >= found.low_B) & (known <= found.high_B)).all()


@pytest.mark.parametrize(("function", "bounds", "low", "high"), [
    (np.add, [(0, 1), (2, 5)], 2, 6),
    (np.multiply, [(-1, 2), (-3, 4)], -6, 8),
    (np.divide, [(1, 2), (4, 8)], 0.125, 0.5),
    (np.absolute, [(-3, 2)], 0, 3),
    (np.power, [(-2, 1), (2, 2)], 0, 4),
    (np.power, [(-2, 1), (3, 3)], -8, 1),
    (np.power, [(0, 4), (0.5, 0.5)], 0, 2),
    (np.power, [(0, 1), (0, 5)], 0, 1),
    (np.exp, [(-np.inf, 0)], 0, 1),
    (np.sqrt, [(0, 9)], 0, 3),
])  # fmt: skip
def test_bounds_are_tight(function: np.ufunc, bounds: list[tuple[float, float]], low: float, high: float) -> None:
    """Else harmless formulas would be refused."""
    found = interval_of(function, [Intervals.between(*ends) for ends in bounds])
    np.testing.assert_allclose([found.low_B, found.high_B], [low, high], rtol=1e-12)
    assert not found.may_be_nan_B
