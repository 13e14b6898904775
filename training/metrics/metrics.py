"""Metrics of ranking tasks, with intervals from a bootstrap over users.

Inputs are 1-D arrays of one length: labels and probabilities (or values and predictions), one entry per
impression, and `groups`, the user (or request) of each impression. Nothing is read or written. Log losses are in nats.
The regression errors have the label's unit, every other metric has none.

A metric that the data does not define (AUC with one class only) is None with a reason, so that an evaluation
of seven tasks goes on when one of them has no positive in the test day. Wrong input (shapes, NaN, labels
other than 0 and 1) raises ValueError.

Shapes: B and N rows, G groups, R draws, K sums of products.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from training.metrics.bootstrap import Estimate, Floats, Statistic, estimates
from training.metrics.pair_order import pair_order, xauc_on_draws

Codes = npt.NDArray[np.int64]

# Float32 sigmoids saturate at exactly 0 and 1, where one wrong row would make the log loss infinite. 1e-7 is
# about the smallest distance from 1 that float32 can represent, and bounds the loss of a row at 16.1 nats.
PROBABILITY_FLOOR = 1e-7
ONE_CLASS = "all labels are of one class"
ONE_VALUE = "all values are equal"


@dataclass(frozen=True, slots=True)
class BinaryMetrics:
    """Metrics of one binary task. `gauc_groups_left_out` have labels of one class only and take no part in
    GAUC.
    """

    rows: int
    positives: int
    groups: int
    gauc_groups_used: int
    gauc_groups_left_out: int
    normalized_entropy: Estimate
    auc: Estimate
    gauc: Estimate
    calibration_ratio: Estimate
    log_loss: Estimate


@dataclass(frozen=True, slots=True)
class RegressionMetrics:
    """Metrics of one regression task, in the unit of the values given (MSE in its square)."""

    rows: int
    groups: int
    mse: Estimate
    rmse: Estimate
    mae: Estimate
    spearman: Estimate
    xauc: Estimate
    calibration_ratio: Estimate


def normalized_entropy(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float | None:
    """Cross entropy over the entropy of the base rate (He et al., 2014): 1 is no better than the base rate,
    lower is better.

    None when all labels are of one class, because the entropy of the base rate is then 0.
    """
    y, p, w = _binary_inputs(labels, probabilities, weights)
    rows = float(w.sum())
    entropy = float(base_entropy(_ratio(float(w @ y), rows) or 0.0))
    return _ratio(float(w @ cross_entropy(y, p)), rows * entropy)


def calibration_ratio(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float | None:
    """Sum predicted over sum observed. 1 is calibrated on average. None without a positive."""
    y, p, w = _binary_inputs(labels, probabilities, weights)
    return _ratio(float(w @ p), float(w @ y))


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Probability that a positive scores above a negative, a tie counting one half. None when all labels are
    of one class.

    `scores` may be any finite numbers: only their order counts.
    """
    y, s, w = _aligned(scores=scores, labels=labels, weights=None)
    _check_labels(y)
    value = WeightedAUC(y, s, np.arange(y.size))(w)
    return None if np.isnan(value) else value


def gauc(labels: npt.ArrayLike, scores: npt.ArrayLike, groups: npt.ArrayLike) -> float | None:
    """AUC inside each group, averaged with the groups' impressions as weights. Groups with one class are left out. None
    where all are."""
    y, s, _ = _aligned(scores=scores, labels=labels, weights=None)
    _check_labels(y)
    auc_G, rows_G = auc_per_group(y, s, *group_codes(groups, y.size))
    return _ratio(float(auc_G @ rows_G), float(rows_G.sum()))


def mse(values: npt.ArrayLike, predictions: npt.ArrayLike) -> float | None:
    """Mean squared error, in the square of the values' unit. None without rows."""
    y, p, w = _aligned(scores=predictions, labels=values, weights=None)
    return _ratio(float(w @ (p - y) ** 2), float(w.sum()))


def xauc(values: npt.ArrayLike, predictions: npt.ArrayLike) -> float | None:
    """Share of the pairs of rows with different values that predictions order rightly, ties half. None where all values
    are equal."""
    y, p, _ = _aligned(scores=predictions, labels=values, weights=None)
    right_N, pairs_N = pair_order(y, p)
    return _ratio(float(right_N.sum()), float(pairs_N.sum()))


def evaluate_binary(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    replicates: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> BinaryMetrics:
    """All metrics of a binary task, with intervals from `replicates` draws of whole groups (0 leaves the
    intervals out).

    Raises ValueError where shapes differ, a number is not finite, a label is not 0 or 1 or a probability lies
    outside [0, 1].
    """
    y, p, _ = _binary_inputs(labels, probabilities, None)
    codes, num_groups = group_codes(groups, y.size)
    loss_G, label_G, probability_G, rows_G = (
        np.bincount(codes, x, num_groups) for x in (cross_entropy(y, p), y, p, np.ones_like(y))
    )
    with_both = int(((label_G > 0) & (label_G < rows_G)).sum())
    statistics: dict[str, Statistic] = {
        "normalized_entropy": entropy_on_draws(y, p, codes, num_groups),
        "auc": auc_on_draws(y, p, codes),
        "gauc": gauc_on_draws(y, p, codes, num_groups),
        "calibration_ratio": lambda draws_RG: divide(draws_RG @ probability_G, draws_RG @ label_G),
        "log_loss": lambda draws_RG: divide(draws_RG @ loss_G, draws_RG @ rows_G),
    }
    undefined = {
        "normalized_entropy": ONE_CLASS,
        "auc": ONE_CLASS,
        "gauc": "no group has labels of both classes",
        "calibration_ratio": "no positive label",
    }
    found = estimates(statistics, num_groups, undefined, replicates, seed, level)
    return BinaryMetrics(y.size, int(y.sum()), num_groups, with_both, num_groups - with_both, **found)


def evaluate_regression(
    values: npt.ArrayLike,
    predictions: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    replicates: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> RegressionMetrics:
    """All metrics of a regression task, with intervals as in `evaluate_binary`.

    Two intervals are approximate. For Spearman's correlation each replicate keeps the ranks of the full sample
    and resamples the pairs of ranks, which saves two sorts per replicate. For XAUC see `xauc_on_draws`.
    """
    y, p, _ = _aligned(scores=predictions, labels=values, weights=None)
    codes, num_groups = group_codes(groups, y.size)
    squared_G, absolute_G, rows_G, value_G, prediction_G = (
        np.bincount(codes, x, num_groups) for x in ((p - y) ** 2, np.abs(p - y), np.ones_like(y), y, p)
    )
    ranks_y, ranks_p = _centred_ranks(y), _centred_ranks(p)
    moments_KG = np.stack([np.bincount(codes, x, num_groups) for x in _products(ranks_y, ranks_p)])
    statistics: dict[str, Statistic] = {
        "mse": lambda draws_RG: divide(draws_RG @ squared_G, draws_RG @ rows_G),
        "rmse": lambda draws_RG: np.sqrt(divide(draws_RG @ squared_G, draws_RG @ rows_G)),
        "mae": lambda draws_RG: divide(draws_RG @ absolute_G, draws_RG @ rows_G),
        "spearman": lambda draws_RG: _correlation(moments_KG @ draws_RG.T),
        "xauc": xauc_on_draws(y, p, codes, num_groups),
        "calibration_ratio": lambda draws_RG: divide(draws_RG @ prediction_G, draws_RG @ value_G),
    }
    undefined = {
        "spearman": "the values or the predictions are all equal",
        "xauc": ONE_VALUE,
        "calibration_ratio": "the values are all 0",
    }
    found = estimates(statistics, num_groups, undefined, replicates, seed, level)
    return RegressionMetrics(y.size, num_groups, **found)


def auc_on_draws(labels: Floats, scores: Floats, codes: Codes) -> Statistic:
    """AUC on draws of groups."""
    weighted = WeightedAUC(labels, scores, codes)
    return lambda draws_RG: np.array([weighted(draws_G) for draws_G in draws_RG])


def gauc_on_draws(labels: Floats, scores: Floats, codes: Codes, num_groups: int) -> Statistic:
    """AUC within groups, on draws of them."""
    auc_G, rows_used_G = auc_per_group(labels, scores, codes, num_groups)
    return lambda draws_RG: divide(draws_RG @ (auc_G * rows_used_G), draws_RG @ rows_used_G)


def entropy_on_draws(labels: Floats, probabilities: Floats, codes: Codes, num_groups: int) -> Statistic:
    """Normalized entropy on draws of groups."""
    rows_G = np.bincount(codes, minlength=num_groups).astype(np.float64)
    loss_G = np.bincount(codes, cross_entropy(labels, probabilities), num_groups)
    label_G = np.bincount(codes, labels, num_groups)

    def of_base_entropy(draws_RG: Floats) -> Floats:
        rows_R = draws_RG @ rows_G
        return divide(draws_RG @ loss_G, rows_R * base_entropy(divide(draws_RG @ label_G, rows_R)))

    return of_base_entropy


class WeightedAUC:
    """AUC of fixed scores under changing group weights: one sort, then each call is linear in the rows."""

    def __init__(self, labels: Floats, scores: Floats, codes: Codes) -> None:
        order = np.argsort(scores, kind="stable")
        positives, negatives = order[labels[order] == 1], order[labels[order] == 0]
        positive_scores, negative_scores = scores[positives], scores[negatives]
        self._positive_codes, self._negative_codes = codes[positives], codes[negatives]
        # Negatives strictly below, and at or below, each positive: the mean of both counts a tie as one half.
        self._below = np.searchsorted(negative_scores, positive_scores, side="left")
        self._at_or_below = np.searchsorted(negative_scores, positive_scores, side="right")

    def __call__(self, weights: Floats) -> float:
        positive_weights = weights[self._positive_codes]
        negative_mass = np.concatenate(([0.0], np.cumsum(weights[self._negative_codes])))
        pairs = float(positive_weights.sum()) * float(negative_mass[-1])
        if pairs == 0.0:
            return float("nan")
        wins = positive_weights @ (negative_mass[self._below] + negative_mass[self._at_or_below])
        return float(wins) / (2.0 * pairs)


def auc_per_group(labels: Floats, scores: Floats, codes: Codes, num_groups: int) -> tuple[Floats, Floats]:
    """AUC of each group [G] and its impressions [G]. Both are 0 for a group with labels of one class.

    Ranks are taken once, over (group, score). The Mann-Whitney statistic then needs only each group's rank
    sum of positives.
    """
    order = np.lexsort((scores, codes))
    sorted_codes, sorted_scores = codes[order], scores[order]
    starts_block = np.ones(order.size, dtype=bool)
    starts_block[1:] = (np.diff(sorted_codes) != 0) | (np.diff(sorted_scores) != 0)
    bounds = np.append(np.flatnonzero(starts_block), order.size)
    mean_rank = np.repeat((bounds[:-1] + bounds[1:] - 1) / 2.0, np.diff(bounds))
    rows_G = np.bincount(codes, minlength=num_groups).astype(np.float64)
    positives_G = np.bincount(codes, labels, num_groups)
    negatives_G = rows_G - positives_G
    first_rank_G = np.cumsum(rows_G) - rows_G
    rank_sum_G = np.bincount(sorted_codes, mean_rank * labels[order], num_groups) - positives_G * first_rank_G
    pairs_G = positives_G * negatives_G
    wins_G = rank_sum_G - positives_G * (positives_G - 1) / 2.0
    both = pairs_G > 0
    return np.where(both, wins_G / np.maximum(pairs_G, 1.0), 0.0), np.where(both, rows_G, 0.0)


def cross_entropy(labels: Floats, probabilities: Floats) -> Floats:
    """Cross entropy of each row, in nats."""
    clipped = np.clip(probabilities, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -np.log(np.where(labels == 1, clipped, 1 - clipped))


def base_entropy(rate: npt.ArrayLike) -> Floats:
    """Entropy of a rate, in nats. 0 at rates 0 and 1."""
    p = np.nan_to_num(np.asarray(rate, dtype=np.float64))
    inside = (p > 0) & (p < 1)
    safe = np.where(inside, p, 0.5)
    entropy: Floats = np.where(inside, -(safe * np.log(safe) + (1 - safe) * np.log1p(-safe)), 0.0)
    return entropy


def _centred_ranks(x: Floats) -> Floats:
    """Mean ranks scaled to about [-1, 1], centred so that the moments below do not cancel."""
    ranks: Floats = (rankdata(x) - (x.size + 1) / 2) / max(x.size / 2, 1.0)
    return ranks


def _products(x: Floats, y: Floats) -> tuple[Floats, ...]:
    return np.ones_like(x), x, y, x * x, y * y, x * y


def _correlation(moments: Floats) -> Floats:
    """Pearson correlation from sums of `_products`, [6] or [6, replicates]. NaN where a side is constant."""
    total, x, y, xx, yy, xy = moments
    total = np.maximum(total, 1.0)
    variances = np.maximum(xx - x * x / total, 0.0) * np.maximum(yy - y * y / total, 0.0)
    # Sums of up to millions of terms of size 1 leave rounding of about 1e-10. Real variances of ranks are far
    # above that.
    constant = variances <= 1e-18 * np.maximum(total, 1.0) ** 2
    covariance = xy - x * y / total
    correlation = covariance / np.sqrt(np.where(constant, 1.0, variances))
    return np.where(constant, np.nan, np.clip(correlation, -1.0, 1.0))


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0)


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def _binary_inputs(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    y, p, w = _aligned(scores=probabilities, labels=labels, weights=weights)
    _check_labels(y)
    outside = np.flatnonzero((p < 0) | (p > 1))
    if outside.size:
        row = outside[0]
        raise ValueError(f"probabilities must lie in [0, 1], row {row} has {p[row]}: give probabilities, not logits")
    return y, p, w


def _check_labels(labels: Floats) -> None:
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if wrong.size:
        raise ValueError(f"binary labels must be 0 or 1; row {wrong[0]} has {labels[wrong[0]]}")


def _aligned(
    *, scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    """Labels, scores and weights as float64 [rows] of one length, finite. Weights default to 1, never negative."""
    y = np.asarray(labels, dtype=np.float64)
    s = np.asarray(scores, dtype=np.float64)
    w = np.ones(y.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if y.ndim != 1 or s.shape != y.shape or w.shape != y.shape:
        shapes = f"{y.shape}, {s.shape}, {w.shape}"
        raise ValueError(f"labels, predictions and weights must be 1-D and of one length; got {shapes}")
    for what, array in (("labels", y), ("predictions", s), ("weights", w)):
        bad = np.flatnonzero(~np.isfinite(array))
        if bad.size:
            row = bad[0]
            raise ValueError(f"{what} must be finite; row {row} has {array[row]} ({bad.size} such rows)")
    if (w < 0).any():
        raise ValueError(f"weights must be 0 or more; row {np.flatnonzero(w < 0)[0]} has {w[w < 0][0]}")
    return y, s, w


def group_codes(groups: npt.ArrayLike, rows: int) -> tuple[Codes, int]:
    """Each row's group as 0..num_groups-1 in sorted order of the group, so that the order of the rows changes
    no draw.
    """
    array = np.asarray(groups)
    if array.shape != (rows,):
        raise ValueError(f"groups must have one entry per row; got {array.shape} for {rows} rows")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("groups must have no NaN; leave those rows out, or give each a group of its own")
    try:
        unique, codes = np.unique(array, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"groups must be all numbers or all strings, without nulls: {error}") from None
    return codes.astype(np.int64), unique.size
