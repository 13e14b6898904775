"""Means in the label's unit: what a quantity learned on a transformed scale is answered by.

The inverse of a mean of logarithms is no mean: it is below it by as much as labels spread around it. In: a run's
answers on the validation split, as the bare inverse gives them, and the labels. Out: a map of the one to the mean of
the other (model/calibration.py), which export puts into the artifact, and `evaluate` measures. On the validation split
itself it is by cross-fitting, so that no row is measured by a map that saw its label.

The map is the isotonic regression of about MOST_BINS bins of rows of near answers, scaled so that answers and labels
have one sum. With few rows it becomes a single factor. benchmarks/label_means.py compares it with other estimates.

Shapes: N rows whose label counts, K bins, B blocks of equal mean.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from model.calibration import LabelMean

Array = NDArray[np.float64]

MOST_BINS = 50
BIN_ROWS = 250
# Bins whose answers are nearer to each other are one: a line between them could be so steep that the last digits of an
# answer, which differ from machine to machine, would show.
BINS_APART = 1.05
# Below this a factor says more about the sample than about the ranker.
MIN_POSITIVE = 20
FOLDS = 5
_SEED = 0


class NoLabelMeanError(ValueError):
    """The labels are too few to fit a map. The message says why."""


def fit_label_mean(labels_N: Array, answers_N: Array, upper: float, weights_N: Array | None = None) -> LabelMean:
    """The map of answers to means of labels, as far as these are not above the bound. Raises NoLabelMeanError."""
    weights_N = np.ones(len(labels_N)) if weights_N is None else weights_N
    _check(labels_N)
    # A label that is absurd (1e30 for an unknown one) counts as the bound, which is robust against such.
    labels_N = np.minimum(labels_N, upper)
    rows_K, answer_K, label_K = _binned(labels_N, answers_N, weights_N)
    starts = isotonic_regression(label_K / rows_K, weights=rows_K).blocks[:-1]
    rows_B, answer_B, label_B = (np.add.reduceat(sums_K, starts) for sums_K in (rows_K, answer_K, label_K))
    mean_B = label_B / rows_B
    # A block without a positive answer or label has no point beside (0, 0). Blocks of one mean are one.
    is_point_B = (answer_B > 0) & (mean_B > 0) & (np.diff(mean_B, prepend=0.0) > 0)
    if not is_point_B.any():
        raise NoLabelMeanError("all answers on the validation split are 0")
    inputs = tuple((answer_B / rows_B)[is_point_B].tolist())
    outputs_B = mean_B[is_point_B]
    unscaled = LabelMean(kind="label_mean", inputs=inputs, outputs=tuple(outputs_B.tolist()), upper=upper)
    outputs = tuple((outputs_B * (weights_N @ labels_N / (weights_N @ unscaled(answers_N)))).tolist())
    return LabelMean(kind="label_mean", inputs=inputs, outputs=outputs, upper=upper)


def cross_fitted(labels_N: Array, answers_N: Array, groups_N: NDArray[Any], upper: float) -> Array:
    """means_N, each by a map fitted on other groups (users, say). Raises NoLabelMeanError."""
    _check(labels_N)
    means_N = np.empty_like(answers_N)
    for is_held_out_N in _folds(groups_N):
        mapping = fit_label_mean(labels_N[~is_held_out_N], answers_N[~is_held_out_N], upper)
        means_N[is_held_out_N] = mapping(answers_N[is_held_out_N])
    return means_N


def _check(labels_N: Array) -> None:
    positive = int((labels_N > 0).sum())
    if positive < MIN_POSITIVE:
        raise NoLabelMeanError(f"{positive} labels of the validation split are above 0, {MIN_POSITIVE} are needed")


def _folds(groups_N: NDArray[Any]) -> Iterator[NDArray[np.bool_]]:
    _, group_N = np.unique(groups_N, return_inverse=True)
    fold_N = np.random.default_rng(_SEED).permutation(group_N.max() + 1)[group_N] % FOLDS
    yield from (fold_N == fold for fold in range(FOLDS))


def _binned(labels_N: Array, answers_N: Array, weights_N: Array) -> tuple[Array, Array, Array]:
    """Weight of the rows, sum of answers and sum of labels of each bin, by ascending answers."""
    order = np.argsort(answers_N, kind="stable")
    bins = max(1, min(MOST_BINS, len(order) // BIN_ROWS))
    sums: list[list[float]] = []
    for rows in np.array_split(order, bins):
        own_N = weights_N[rows]
        one = [float(own_N.sum()), float(own_N @ answers_N[rows]), float(own_N @ labels_N[rows])]
        if sums and one[1] / one[0] <= BINS_APART * sums[-1][1] / sums[-1][0]:
            sums[-1] = [before + more for before, more in zip(sums[-1], one, strict=True)]
        else:
            sums.append(one)
    rows_K, answer_K, label_K = np.array(sums).T
    return rows_K, answer_K, label_K
