"""Means in the label's unit: a known law recovered, order kept, and refused where labels are too few."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.tasks.label_mean_map import Array, NoLabelMeanError, cross_fitted, fit_label_mean

RANDOM = np.random.default_rng(5)
ROWS = 30_000
MEAN_OF_LOGS = RANDOM.uniform(0.5, 4.0, ROWS)
# Spread grows with the mean, and a third of the labels are 0: no single factor, nor Duan's smearing, is right.
SPREAD = 0.3 + 0.25 * MEAN_OF_LOGS
LABELS = np.where(RANDOM.random(ROWS) < 1 / 3, 0.0, np.exp(MEAN_OF_LOGS + RANDOM.normal(size=ROWS) * SPREAD))
TRUE_MEANS = 2 / 3 * np.exp(MEAN_OF_LOGS + SPREAD**2 / 2)
# What a network that learned the mean of log1p says, about: two thirds of the logarithm.
BARE = np.expm1(2 / 3 * MEAN_OF_LOGS)
USERS = RANDOM.integers(0, 2000, ROWS)
UPPER = float(LABELS.max())


def test_the_mean_of_a_known_law_is_recovered() -> None:
    mapping = fit_label_mean(LABELS, BARE, UPPER)
    means = mapping(BARE)
    assert means.sum() == pytest.approx(LABELS.sum(), rel=1e-12)
    for part in np.array_split(np.argsort(BARE), 10):
        error = 4 * LABELS[part].std() / np.sqrt(len(part))
        assert means[part].mean() == pytest.approx(TRUE_MEANS[part].mean(), abs=error)
    # The best single factor is further from the truth.
    factor = LABELS.sum() / BARE.sum()
    assert np.mean((means - TRUE_MEANS) ** 2) < 0.2 * np.mean((factor * BARE - TRUE_MEANS) ** 2)


def test_held_out_rows_are_calibrated() -> None:
    means = cross_fitted(LABELS, BARE, USERS, UPPER)
    assert means.sum() / LABELS.sum() == pytest.approx(1, abs=0.03)
    assert BARE.sum() / LABELS.sum() < 0.5


def test_an_absurd_label_moves_its_own_bin_alone() -> None:
    labels = LABELS.copy()
    place = int(np.argmax(BARE))
    labels[place] = 1e30
    means, before = fit_label_mean(labels, BARE, UPPER)(BARE), fit_label_mean(LABELS, BARE, UPPER)(BARE)
    np.testing.assert_allclose(np.quantile(means, 0.9), np.quantile(before, 0.9), rtol=0.1)


def test_no_row_is_measured_by_a_map_that_saw_its_user() -> None:
    """One user's labels are absurd: only the others' means notice."""
    labels = np.where(USERS == 7, 1e9, LABELS)
    ours = USERS == 7
    without = cross_fitted(LABELS, BARE, USERS, 1e12)
    with_absurd = cross_fitted(labels, BARE, USERS, 1e12)
    np.testing.assert_array_equal(with_absurd[ours], without[ours])
    assert with_absurd[~ours].sum() > 10 * without[~ours].sum()


def test_few_rows_make_a_factor() -> None:
    mapping = fit_label_mean(LABELS[:100], BARE[:100], UPPER)
    factor = LABELS[:100].sum() / BARE[:100].sum()
    np.testing.assert_allclose(mapping(BARE[:100]), factor * BARE[:100], rtol=1e-12)


def test_answers_that_fall_with_the_labels_are_one_factor_still_rising() -> None:
    mapping = fit_label_mean(np.linspace(9, 1, 5000), np.linspace(1, 9, 5000), 1e6)
    assert len(mapping.inputs) == 1
    assert mapping.outputs[0] > 0


def test_no_answer_is_above_the_bound() -> None:
    assert fit_label_mean(LABELS, BARE, 50.0)(np.array([1e9])).tolist() == [50.0]


@pytest.mark.parametrize(("labels", "answers", "message"), [
    (np.zeros(5000), np.ones(5000), "^0 labels of the validation split are above 0, 20 are needed"),
    (np.ones(19), np.ones(19), "^19 labels"),
    (np.zeros(0), np.zeros(0), "^0 labels"),
    (np.ones(5000), np.zeros(5000), "all answers on the validation split are 0"),
])  # fmt: skip
def test_what_tells_too_little_is_refused(labels: Array, answers: Array, message: str) -> None:
    with pytest.raises(NoLabelMeanError, match=message):
        fit_label_mean(labels, answers, 10.0)


@given(st.integers(0, 2**32 - 1), st.sampled_from([20, 300, 3000]), st.sampled_from([0.0, 0.5, 0.97]))
def test_any_map_keeps_the_order(seed: int, rows: int, zeros: float) -> None:
    random = np.random.default_rng(seed)
    answers = np.exp(random.normal(0, random.uniform(0, 6), rows)) * (random.random(rows) < 0.9)
    labels = np.exp(random.normal(0, 3, rows)) * (random.random(rows) >= zeros)
    labels[:20] += 1
    try:
        mapping = fit_label_mean(labels, answers, 1e30)
    except NoLabelMeanError:
        assert not answers.any()
        return
    given_N = np.unique(answers)
    # Neighbours closer than the rounding of a sum may become one.
    given_N = given_N[np.append(True, np.diff(given_N) > 1e-9 * given_N[1:])]
    assert (np.diff(mapping(given_N)) > 0).all()
    assert mapping(answers).sum() == pytest.approx(labels.sum(), rel=1e-9)
