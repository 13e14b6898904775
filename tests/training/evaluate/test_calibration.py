"""Fitted calibrations: against scikit-learn, against planted distortions, and refused where labels are too few."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from training.tasks.probability_maps import NotCalibratedError, fit_isotonic, fit_platt

RANDOM = np.random.default_rng(7)
TRUE = RANDOM.beta(1, 12, 40_000)
LABELS = (RANDOM.random(len(TRUE)) < TRUE).astype(np.float64)
# What a ranker might say: three times the odds, and too steep.
GIVEN = expit(1.4 * logit(TRUE) + np.log(3)).astype(np.float32).astype(np.float64)

ONES = np.ones(len(TRUE))


def test_platt_is_the_unpenalised_logistic_regression_on_the_logit() -> None:
    fitted = fit_platt(LABELS, GIVEN, ONES)
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit(GIVEN)[:, None], LABELS)
    assert (fitted.slope, fitted.intercept) == pytest.approx((oracle.coef_[0, 0], oracle.intercept_[0]), rel=1e-5)
    # The likelihood's own equations at its maximum.
    assert fitted(GIVEN).sum() == pytest.approx(LABELS.sum(), rel=1e-6)
    # The planted distortion undone. Three standard errors of 40,000 labels with a rate of .08 are about this.
    assert (fitted.slope, fitted.intercept) == pytest.approx((1 / 1.4, -np.log(3) / 1.4), abs=0.06)


def test_isotonic_points_are_the_blocks_of_the_isotonic_regression() -> None:
    """Large blocks, where the one smoothing impression is nothing: rates in ten steps, 4,000 rows each."""
    steps = np.repeat(np.linspace(0.05, 0.5, 10), 4000)
    labels = (np.random.default_rng(1).random(len(steps)) < np.square(steps)).astype(np.float64)
    fitted = fit_isotonic(labels, steps, ONES)
    oracle = IsotonicRegression().fit(steps, labels)
    np.testing.assert_allclose(fitted(steps), oracle.predict(steps), atol=1 / 4000)


def test_isotonic_undoes_a_distortion() -> None:
    fitted = fit_isotonic(LABELS, GIVEN, ONES)
    fresh = np.random.default_rng(8).beta(1, 12, 40_000)
    answers = fitted(expit(1.4 * logit(fresh) + np.log(3)))
    for part in np.array_split(np.argsort(fresh), 10):
        rate = fresh[part].mean()
        # 4,000 labels of a tenth in the fit: four standard errors of their rate.
        assert answers[part].mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 4000))


@pytest.mark.parametrize("fit", [fit_isotonic, fit_platt])
def test_a_weight_of_two_is_the_impression_twice(fit: Any) -> None:
    labels, given = LABELS[:5000], GIVEN[:5000]
    twice = np.repeat(np.arange(5000), np.where(labels == 0, 2, 1))
    weighted = fit(labels, given, np.where(labels == 0, 2.0, 1.0))
    repeated = fit(labels[twice], given[twice], np.ones(len(twice)))
    # The same sums in another order, and an optimum found to about this.
    np.testing.assert_allclose(weighted(GIVEN), repeated(GIVEN), rtol=1e-6)


def test_isotonic_never_reaches_0_or_1() -> None:
    """The lowest block has no positive, the highest no negative."""
    given = np.linspace(0.01, 0.99, 2000)
    fitted = fit_isotonic((given > 0.5).astype(np.float64), given, ONES[:2000])
    assert 0 < fitted(given).min() < 0.01
    assert 0.99 < fitted(given).max() < 1


@pytest.mark.parametrize("fit", [fit_isotonic, fit_platt])
def test_labels_that_tell_too_little_are_refused(fit: Any) -> None:
    given = np.linspace(0.01, 0.99, 2000)
    with pytest.raises(NotCalibratedError, match="900 labels of the validation split, 4"):
        fit((given[:900] > 0.25).astype(np.float64), given[:900], ONES[:900])
    with pytest.raises(NotCalibratedError, match="0 positive: at least 1000 are needed, 20 of each class"):
        fit(np.zeros(2000), given, ONES[:2000])
    with pytest.raises(NotCalibratedError, match="do not rise with the probability"):
        fit((given < 0.5).astype(np.float64), given, ONES[:2000])
