"""Fits of calibrations: probabilities of labelled rows -> the map that follows them (model/calibration.py).

Shapes: N impressions with an observed label, C classes, K distinct probabilities, B blocks of equal rate.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, log_softmax, logit

from model.calibration import BiasCorrectedTemperature, Isotonic, Platt

Array = NDArray[np.float64]
# What a binary task is calibrated by. Of several classes there is one way.
CalibrationKind = Literal["isotonic", "platt"]
ProbabilityMap = Platt | Isotonic | BiasCorrectedTemperature

# Below these a fitted map says more about the sample than about the ranker.
MIN_ROWS = 1000
MIN_OF_EACH_CLASS = 20
# What float32 sigmoids can distinguish from 0 and 1: a logit must stay finite to be fitted.
FLOOR = 1e-7


class NotCalibratedError(ValueError):
    """The labels are too few to calibrate by. The message says why."""


def fit_platt(labels_N: Array, probability_N: Array, weights_N: Array) -> Platt:
    """The maximum-likelihood slope and intercept on the logit. Raises NotCalibratedError."""
    _check(labels_N)
    logit_N = logit(np.clip(probability_N, FLOOR, 1 - FLOOR))
    share_N = weights_N / weights_N.sum()

    def loss(parameters: Array) -> tuple[float, Array]:
        slope, intercept = np.exp(parameters[0]), parameters[1]
        value_N = slope * logit_N + intercept
        error_N = share_N * (expit(value_N) - labels_N)
        gradient = np.array([(error_N @ logit_N) * slope, error_N.sum()])
        return float(share_N @ (np.logaddexp(0, value_N) - labels_N * value_N)), gradient

    # The logarithm of the slope: a slope of 0 or less would reverse the ranking.
    found = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-10})
    slope, intercept = float(np.exp(found.x[0])), float(found.x[1])
    if not (np.isfinite([slope, intercept]).all() and slope > 1e-3):
        raise NotCalibratedError("the labels do not rise with the probability, so no increasing map fits")
    return Platt(kind="platt", slope=slope, intercept=intercept)


def fit_bias_corrected_temperature(
    labels_N: Array, probabilities_NC: Array, weights_N: Array | None = None
) -> BiasCorrectedTemperature:
    """The maximum-likelihood slope and intercepts on the logarithms. Raises NotCalibratedError.

    Where the likelihood is largest each class's probabilities sum to its labels."""
    classes = probabilities_NC.shape[1]
    is_own_NC = np.eye(classes)[labels_N.astype(np.int64)]
    rows_C = is_own_NC.sum(axis=0)
    if len(labels_N) < MIN_ROWS or rows_C.min() < MIN_OF_EACH_CLASS:
        raise NotCalibratedError(
            f"{len(labels_N)} labels of the validation split, {int(rows_C.min())} of the rarest class: at least "
            f"{MIN_ROWS} are needed, {MIN_OF_EACH_CLASS} of each class"
        )
    logs_NC = np.log(np.maximum(probabilities_NC, FLOOR))
    share_N = np.full(len(labels_N), 1 / len(labels_N)) if weights_N is None else weights_N / weights_N.sum()

    def loss(parameters: Array) -> tuple[float, Array]:
        slope = np.exp(parameters[0])
        # The first intercept is 0: one number more on all of them changes no probability.
        values_NC = log_softmax(slope * logs_NC + np.append(0.0, parameters[1:]), axis=1)
        error_NC = (np.exp(values_NC) - is_own_NC) * share_N[:, None]
        gradient = np.append((error_NC * logs_NC).sum() * slope, error_NC.sum(axis=0)[1:])
        return float(-(share_N @ (values_NC * is_own_NC).sum(axis=1))), gradient

    found = minimize(loss, np.zeros(classes), jac=True, method="BFGS", options={"gtol": 1e-10})
    slope = float(np.exp(found.x[0]))
    if not (np.isfinite(found.x).all() and slope > 1e-3):
        raise NotCalibratedError("the labels do not follow the probabilities, so no increasing map fits")
    intercepts = (0.0, *found.x[1:].tolist())
    return BiasCorrectedTemperature(kind="bias_corrected_temperature", slope=slope, intercepts=intercepts)


def fit_isotonic(labels_N: Array, probability_N: Array, weights_N: Array) -> Isotonic:
    """The points of an isotonic regression (pool adjacent violators). Each block's rate is smoothed by one impression
    at its mean probability, so that no block is at 0 or 1. Raises NotCalibratedError."""
    _check(labels_N)
    inputs_K, which_N = np.unique(np.clip(probability_N, FLOOR, 1 - FLOOR), return_inverse=True)
    rows_K = np.bincount(which_N, weights=weights_N).astype(np.float64)
    rate_K = np.bincount(which_N, weights=weights_N * labels_N) / rows_K
    inputs_B, rate_B, rows_B = _pooled(inputs_K, rate_K, rows_K)
    smoothed_B = (rate_B * rows_B + inputs_B) / (rows_B + 1)
    inputs_B, rate_B, rows_B = _pooled(inputs_B, smoothed_B, rows_B + 1)
    if len(inputs_B) < 2:
        raise NotCalibratedError("the labels do not rise with the probability, so no increasing map fits")
    return Isotonic(kind="isotonic", inputs=tuple(inputs_B.tolist()), outputs=tuple(rate_B.tolist()))


def _pooled(inputs_K: Array, rate_K: Array, rows_K: Array) -> tuple[Array, Array, Array]:
    """Blocks of the isotonic regression of the rates: mean input, rate and rows of each, all rates apart."""
    starts = isotonic_regression(rate_K, weights=rows_K).blocks[:-1]
    rows_B = np.add.reduceat(rows_K, starts)
    inputs_B = np.add.reduceat(inputs_K * rows_K, starts) / rows_B
    rate_B = np.add.reduceat(rate_K * rows_K, starts) / rows_B
    # Blocks whose rates agree to the last digit are one.
    is_new_B = np.concatenate([[True], np.diff(rate_B) > 0]) & np.concatenate([[True], np.diff(inputs_B) > 0])
    return inputs_B[is_new_B], rate_B[is_new_B], rows_B[is_new_B]


def _check(labels_N: Array) -> None:
    positives = int(labels_N.sum())
    if len(labels_N) < MIN_ROWS or min(positives, len(labels_N) - positives) < MIN_OF_EACH_CLASS:
        raise NotCalibratedError(
            f"{len(labels_N)} labels of the validation split, {positives} positive: at least {MIN_ROWS} are needed, "
            f"{MIN_OF_EACH_CLASS} of each class"
        )
