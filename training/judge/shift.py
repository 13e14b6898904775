"""Shift of tastes: a day on which labels follow the serving version's answers surely less than they did.

In: sums of answers and labels by user. Out: their correlation on a day, and whether it has fallen so far that what the
version has learned is no longer what users like. No calibration of the answers changes a correlation much. The usual
one is of days as they were gated, none of which the version of the time was trained on: it knows those too well.

A version that chooses what is shown lifts the rates of its labels. Where it no longer finds what users like, that lift
is lost, and nothing is wrong with the labels. Labels that were lost on the way fall alike under all answers instead:
their elasticity, the per cent by which they grow with answers larger by one, stays.

Shapes: U users, O outputs of a task.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from training.judge.users import TaskSums

# A value and its standard error over users.
Estimate = tuple[float, float]

# The square of a correlation is the share of the labels' variance that answers explain. A shift takes a third of it.
_KEPT = math.sqrt(2 / 3)
# Chance that a day without a shift is taken for one, shared by the outputs.
_ALPHA = 0.025
# Chance that a day like those before it is taken for one whose labels follow less, shared by the outputs.
_ALPHA_FALLEN = 0.001
# Chance that labels of other rows are taken for ones that follow, shared by the outputs.
_ALPHA_FOLLOWS = 0.001
# Chance that labels which fell alike under all answers are taken for ones that no longer follow them.
_ALPHA_LOST = 0.025
# Deviations by which the chosen candidates' answers lie above all candidates', where a page shows the best of twenty.
_CHOSEN = 2.0
# Of sums of squares.
_ROUNDING = 1e-9


def correlation_of_labels(sums: TaskSums, place: int) -> Estimate | None:
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


def usual_of_days(past: Sequence[tuple[float, Estimate]]) -> Estimate | None:
    """Mean of days' values, by their rows, and its standard error. None without a row."""
    total = sum(rows for rows, _ in past)
    if not total > 0:
        return None
    mean = sum(rows * value for rows, (value, _) in past) / total
    return mean, math.sqrt(sum((rows * error) ** 2 for rows, (_, error) in past)) / total


def is_shifted(own: Estimate, usual: Estimate, outputs: int) -> bool:
    """True where answers explain less than two thirds of what they usually do of the labels' variance: surely so, or by
    all that is known while they surely explain less than usual. So many `outputs` are asked.

    A day of few rows may not tell two thirds from less. Chance alone hardly ever takes a third, and is asked more."""
    below = _KEPT * usual[0] - own[0]
    if below > NormalDist().inv_cdf(1 - _ALPHA / outputs) * math.hypot(own[1], _KEPT * usual[1]):
        return True
    fallen = NormalDist().inv_cdf(1 - _ALPHA_FALLEN / outputs) * math.hypot(own[1], usual[1])
    return below > 0 and usual[0] - own[0] > fallen


def is_kept(own: Estimate, usual: Estimate, outputs: int) -> bool:
    """True where answers surely explain more than two thirds of what they usually do of the labels' variance."""
    error = math.hypot(own[1], _KEPT * usual[1])
    return own[0] - _KEPT * usual[0] > NormalDist().inv_cdf(1 - _ALPHA / outputs) * error


def follows(own: Estimate, outputs: int) -> bool:
    """True where a correlation, or a slope, is above 0 beyond the chance that labels of other rows have."""
    return own[0] > NormalDist().inv_cdf(1 - _ALPHA_FOLLOWS / outputs) * own[1]


def would_follow(own: Estimate, usual: Estimate, outputs: int) -> bool:
    """True where a day's labels are enough to see them follow, if answers explained two thirds of what they usually do
    of the labels' variance. The correlation of a rare label may be too near 0 for a day to tell it from none."""
    return follows((_KEPT * usual[0], own[1]), outputs)


def elasticity_of_labels(slope: Estimate, answers: float, labels: float, error: float) -> Estimate:
    """Elasticity of labels where answers are at their mean, from the slope and the sums of both.

    `error` is the standard error of the logarithm of the sums' quotient. Lost labels change slope and sum alike, so
    that the elasticity stays."""
    calibration = answers / labels
    return slope[0] * calibration, calibration * math.hypot(slope[1], slope[0] * error)


def follows_less(own: Estimate, usual: Estimate) -> bool:
    """True where an elasticity is surely less than two thirds of the usual one, which no loss of labels explains."""
    return _beyond_lost(own, usual) < -NormalDist().inv_cdf(1 - _ALPHA_LOST)


def follows_as_much(own: Estimate, usual: Estimate) -> bool:
    """True where an elasticity is surely more than two thirds of the usual one, as that of labels that were lost is."""
    return _beyond_lost(own, usual) > NormalDist().inv_cdf(1 - _ALPHA_LOST)


def _beyond_lost(own: Estimate, usual: Estimate) -> float:
    """Standard errors by which an elasticity is above two thirds of the usual one."""
    return (own[0] - _KEPT**2 * usual[0]) / math.hypot(own[1], _KEPT**2 * usual[1])


def lift_of_choice(variation: float) -> float:
    """Largest factor by which choosing the best candidates raises their mean answer. 1 where all answers are alike.

    `variation` is the deviation of answers over their mean, and their law taken for a log-normal one. That of chosen
    candidates is smaller than that of all, so that the factor is a careful one."""
    return math.exp(_CHOSEN * math.sqrt(math.log1p(variation**2)))
