"""Acceptance of a value model: its score is finite for every answer that a model version may give.

In: the terms of its score (model/value_models/formula.py) and each output's range. Interval arithmetic
(model/value_models/intervals.py) shows that no answer within the ranges gives NaN, infinity or more than a float32
holds: the Open Inference Protocol answers scores as such. Where the whole range does not show it, halves of it are
tried, and halves of those, up to MOST_BOXES. Bounds of `a - a * b` take the two `a` for two different answers, and
narrow ranges leave them little room for that.

Shapes: P points, B boxes, M outputs that are read.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np
from numpy.typing import NDArray

from model.value_models.formula import Term
from model.value_models.intervals import Intervals, interval_of

Array = NDArray[np.float64]

# The range of a float32, with room for rounding to it.
MOST_SCORE = 3e38
MOST_BOXES = 4096
_MOST_HALVINGS = 48
# Of more outputs than this not every corner is tried, but as many, drawn.
_MOST_CORNER_OUTPUTS = 10


def refuse_not_finite(whole: Term, uppers: Mapping[str, float], remedy: str) -> None:
    """Raise ValueError where a score is not finite for answers from 0 to `uppers`, or where it cannot be shown to be.
    The message names the sub-expression, a point if one was found, and ends in `remedy`."""
    high_M = np.array(list(uppers.values()))
    _check_points(whole, uppers, _corners(high_M), remedy)
    low_BM, high_BM = np.zeros((1, len(high_M))), high_M[None]
    left = MOST_BOXES
    for halving in range(_MOST_HALVINGS):
        left -= len(low_BM)
        is_open_B = _may_break(_interval(whole, uppers, low_BM, high_BM))
        if not is_open_B.any():
            return
        low_BM, high_BM = low_BM[is_open_B], high_BM[is_open_B]
        middle_BM = low_BM + (high_BM - low_BM) / 2
        # Answers are float32.
        _check_points(whole, uppers, middle_BM.astype(np.float32).astype(np.float64), remedy)
        if 2 * len(low_BM) > left:
            break
        output = halving % len(high_M)
        lower_BM, upper_BM = high_BM.copy(), low_BM.copy()
        lower_BM[:, output] = upper_BM[:, output] = middle_BM[:, output]
        low_BM, high_BM = np.concatenate([low_BM, upper_BM]), np.concatenate([lower_BM, high_BM])
    part = _innermost(whole, uppers, low_BM[:1], high_BM[:1])
    ranges = ", ".join(f"{name} 0 to {upper:g}" for name, upper in uppers.items())
    raise ValueError(f"'{part.text}' cannot be shown to be finite for all answers ({ranges}); {remedy}")


def _corners(high_M: Array) -> Array:
    """points_PM: each output at 0, at its upper bound, or at 1 where that lies between."""
    if len(high_M) <= _MOST_CORNER_OUTPUTS:
        corners_PM = np.array(list(product((0.0, 1.0), repeat=len(high_M))))
    else:
        drawn = np.random.default_rng(0).integers(0, 2, (2**_MOST_CORNER_OUTPUTS, len(high_M)))
        corners_PM = drawn.astype(np.float64)
    return np.concatenate([corners_PM * high_M, np.minimum(corners_PM, high_M)])


def _check_points(whole: Term, uppers: Mapping[str, float], points_PM: Array, remedy: str) -> None:
    """Raise ValueError for the first point that gives no finite score."""
    values = dict(zip(uppers, points_PM.T, strict=True))
    with np.errstate(all="ignore"):
        score_P = np.broadcast_to(whole.value(values), len(points_PM))
        wrong_P = np.flatnonzero(~(np.abs(score_P) <= MOST_SCORE))
        if not len(wrong_P):
            return
        point = {name: value_P[wrong_P[:1]] for name, value_P in values.items()}
        part, value = _first_wrong(whole, point)
    given = ", ".join(f"{name} = {value_P[0]:g}" for name, value_P in point.items())
    beyond = f", beyond {MOST_SCORE:g}," if np.isfinite(value) else ""
    raise ValueError(f"'{part.text}' gives {value:g}{beyond} for {given}; {remedy}")


def _first_wrong(term: Term, point: Mapping[str, Array]) -> tuple[Term, float]:
    """The innermost term whose value is not finite at a point of one row, and that value. Otherwise the term itself."""
    for argument in term.arguments:
        if not np.isfinite(argument.value(point)).all():
            return _first_wrong(argument, point)
    return term, float(np.broadcast_to(term.value(point), 1)[0])


def _interval(term: Term, uppers: Mapping[str, float], low_BM: Array, high_BM: Array) -> Intervals:
    boxes = {
        name: Intervals.between(low_B, high_B) for name, low_B, high_B in zip(uppers, low_BM.T, high_BM.T, strict=True)
    }
    return _over(term, boxes)


def _over(term: Term, boxes: Mapping[str, Intervals]) -> Intervals:
    if term.function is not None:
        return interval_of(term.function, [_over(argument, boxes) for argument in term.arguments])
    return boxes[term.leaf] if isinstance(term.leaf, str) else Intervals.between(term.leaf, term.leaf)


def _may_break(score: Intervals, most: float = MOST_SCORE) -> NDArray[np.bool_]:
    return np.atleast_1d(score.may_be_nan_B | ~(score.low_B >= -most) | ~(score.high_B <= most))


def _innermost(term: Term, uppers: Mapping[str, float], low_1M: Array, high_1M: Array) -> Term:
    """The innermost term that may not be finite in a box, on the way from the whole through such terms."""
    for argument in term.arguments:
        if _may_break(_interval(argument, uppers, low_1M, high_1M), np.finfo(np.float64).max).any():
            return _innermost(argument, uppers, low_1M, high_1M)
    return term
