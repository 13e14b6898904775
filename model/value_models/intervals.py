"""Interval arithmetic of formulas: which values a function may have where its arguments are within bounds.

Sound for float64 as numpy computes it: a bound that is infinite may be attained, and what may be NaN is marked. Sums,
products, quotients and square roots are rounded correctly, so their bounds are those of the corners. What a library
approximates (exp, log, powers) gets a relative slack. An argument that stands twice counts as two.

Shapes: B boxes, C corners of a box.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
# Far above what any exp, log or pow is off by.
_SLACK = 1e-13


class Intervals(NamedTuple):
    """low_B <= value <= high_B where it is a number, and whether it may be none."""

    low_B: Array
    high_B: Array
    may_be_nan_B: Mask

    @classmethod
    def between(cls, low: Any, high: Any) -> "Intervals":
        """Numbers, or arrays of them."""
        low_B, high_B = np.broadcast_arrays(np.asarray(low, np.float64), np.asarray(high, np.float64))
        return cls(low_B, high_B, np.zeros(low_B.shape, bool))

    def contain(self, value: float) -> Mask:
        """True for each that may have a value."""
        return np.asarray((self.low_B <= value) & (value <= self.high_B))


def interval_of(function: np.ufunc, arguments: list[Intervals]) -> Intervals:
    """The values of a function of the formula language (model/value_models/formula.py)."""
    with np.errstate(all="ignore"):
        found = _FUNCTIONS[function](*arguments)
    may_be_nan_B = found.may_be_nan_B
    for argument in arguments:
        may_be_nan_B = may_be_nan_B | argument.may_be_nan_B
    return found._replace(may_be_nan_B=may_be_nan_B)


def _corners(function: np.ufunc, *arguments: Intervals) -> Intervals:
    """Values at the corners, for a function that is monotone in each argument."""
    corners = [function(*ends) for ends in product(*((each.low_B, each.high_B) for each in arguments))]
    values_CB = np.stack(np.broadcast_arrays(*corners))
    is_nan_CB = np.isnan(values_CB)
    low_B = np.where(is_nan_CB, np.inf, values_CB).min(axis=0)
    high_B = np.where(is_nan_CB, -np.inf, values_CB).max(axis=0)
    return _anything_where(is_nan_CB.all(axis=0), Intervals(low_B, high_B, is_nan_CB.any(axis=0)))


def _wider(found: Intervals) -> Intervals:
    """Bounds with slack, which keeps signs and zeros."""
    low_B, high_B, may_be_nan_B = found
    return Intervals(
        np.where(np.isfinite(low_B), low_B - np.abs(low_B) * _SLACK, low_B),
        np.where(np.isfinite(high_B), high_B + np.abs(high_B) * _SLACK, high_B),
        may_be_nan_B,
    )


def _anything_where(is_so_B: Mask, found: Intervals) -> Intervals:
    """Without a bound where a pole may be met: the sign of a zero decides the side."""
    return Intervals(
        np.where(is_so_B, -np.inf, found.low_B), np.where(is_so_B, np.inf, found.high_B), found.may_be_nan_B
    )


def _absolute(x: Intervals) -> Intervals:
    ends_2B = np.abs(np.stack([x.low_B, x.high_B]))
    return Intervals(np.where(x.contain(0.0), 0.0, ends_2B.min(axis=0)), ends_2B.max(axis=0), x.may_be_nan_B)


def _multiply(x: Intervals, y: Intervals) -> Intervals:
    found = _corners(np.multiply, x, y)
    may_be_nan_B = x.contain(0.0) & _may_be_infinite(y) | y.contain(0.0) & _may_be_infinite(x)
    return found._replace(may_be_nan_B=found.may_be_nan_B | may_be_nan_B)


def _may_be_infinite(x: Intervals) -> Mask:
    return x.contain(np.inf) | x.contain(-np.inf)


def _divide(x: Intervals, y: Intervals) -> Intervals:
    found = _corners(np.divide, x, y)
    by_zero_B = y.contain(0.0)
    may_be_nan_B = np.where(by_zero_B, x.contain(0.0), found.may_be_nan_B)
    return _anything_where(by_zero_B, found)._replace(may_be_nan_B=may_be_nan_B)


def _of_positive(function: np.ufunc) -> Callable[[Intervals], Intervals]:
    """Bounds of a rising function that is NaN below 0."""

    def values(x: Intervals) -> Intervals:
        within = Intervals(np.maximum(x.low_B, 0.0), np.maximum(x.high_B, 0.0), x.low_B < 0)
        found = _corners(function, within)
        return found._replace(may_be_nan_B=found.may_be_nan_B | within.may_be_nan_B)

    return values


def _power(base: Intervals, exponent: Intervals) -> Intervals:
    is_whole_B = (exponent.low_B == exponent.high_B) & (np.rint(exponent.low_B) == exponent.low_B)
    is_whole_B &= np.isfinite(exponent.low_B)
    is_even_B = is_whole_B & (np.fmod(exponent.low_B, 2.0) == 0)
    size = _absolute(base)
    # Of an even power the sign does not count.
    low_B = np.where(is_even_B, size.low_B, base.low_B)
    high_B = np.where(is_even_B, size.high_B, base.high_B)
    found = _wider(_corners(np.power, Intervals(low_B, high_B, base.may_be_nan_B), exponent))
    is_root_of_negative_B = (base.low_B < 0) & ~is_whole_B
    is_pole_B = base.contain(0.0) & (exponent.low_B < 0)
    may_be_nan_B = found.may_be_nan_B | is_root_of_negative_B
    return _anything_where(is_pole_B | is_root_of_negative_B, found)._replace(may_be_nan_B=may_be_nan_B)


_FUNCTIONS: dict[np.ufunc, Callable[..., Intervals]] = {
    **{
        function: lambda *arguments, function=function: _corners(function, *arguments)
        for function in (np.add, np.subtract, np.negative, np.positive, np.maximum, np.minimum)
    },
    np.absolute: _absolute,
    np.multiply: _multiply,
    np.divide: _divide,
    np.power: _power,
    np.exp: lambda x: _wider(_corners(np.exp, x)),
    np.sqrt: _of_positive(np.sqrt),
    np.log: lambda x: _wider(_of_positive(np.log)(x)),
}
