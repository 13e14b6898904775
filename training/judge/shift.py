"""Shift of tastes: a day on which labels follow the serving version's answers surely less than they did.

In: sums of answers and labels by user. Out: their correlation on a day, and whether it has fallen so far that what the
version has learned is no longer what users like. No calibration of the answers changes a correlation much. The usual
one is of days as they were gated, none of which the version of the time was trained on: it knows those too well.

Shapes: U users, O outputs of a task.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from training.judge.users import TaskSums

# A correlation and its standard error over users.
Correlation = tuple[float, float]

# The square of a correlation is the share of the labels' variance that answers explain. A shift takes a third of it.
_KEPT = math.sqrt(2 / 3)
# Chance that a day without a shift is taken for one, shared by the outputs.
_ALPHA = 0.025
# Of sums of squares.
_ROUNDING = 1e-9


def correlation_of_labels(sums: TaskSums, place: int) -> Correlation | None:
    """Correlation of an output's answers and labels. None where either are alike.

    The error is that of the users' influence on the correlation (Devlin, Gnanadesikan and Kettenring 1975)."""
    rows = float(sums.rows_U.sum())
    if not rows:
        return None
    columns = (sums.answers_UO, sums.labels_UO, sums.squares_UO, sums.label_squares_UO, sums.products_UO)
    answers_U, labels_U, squares_U, label_squares_U, products_U = (column_UO[:, place] for column_UO in columns)
    answer, label = float(answers_U.sum()) / rows, float(labels_U.sum()) / rows
    of_answers_U = squares_U - 2 * answer * answers_U + answer**2 * sums.rows_U
    of_labels_U = label_squares_U - 2 * label * labels_U + label**2 * sums.rows_U
    of_both_U = products_U - answer * labels_U - label * answers_U + answer * label * sums.rows_U
    spread, label_spread = float(of_answers_U.sum()), float(of_labels_U.sum())
    is_alike = spread <= _ROUNDING * float(squares_U.sum()) or label_spread <= _ROUNDING * float(label_squares_U.sum())
    if is_alike:
        return None
    scale = math.sqrt(spread * label_spread)
    correlation = float(of_both_U.sum()) / scale
    influence_U = of_both_U / scale - correlation / 2 * (of_answers_U / spread + of_labels_U / label_spread)
    return correlation, float(np.sqrt(influence_U @ influence_U))


def usual_correlation(past: Sequence[tuple[float, Correlation]]) -> Correlation | None:
    """Mean correlation of days, by their rows, and its standard error. None without a row."""
    total = sum(rows for rows, _ in past)
    if not total > 0:
        return None
    mean = sum(rows * correlation for rows, (correlation, _) in past) / total
    return mean, math.sqrt(sum((rows * error) ** 2 for rows, (_, error) in past)) / total


def is_shifted(own: Correlation, usual: Correlation, outputs: int) -> bool:
    """True where answers surely explain less than two thirds of what they usually do of the labels' variance. So many
    `outputs` are asked."""
    error = math.hypot(own[1], _KEPT * usual[1])
    return _KEPT * usual[0] - own[0] > NormalDist().inv_cdf(1 - _ALPHA / outputs) * error
