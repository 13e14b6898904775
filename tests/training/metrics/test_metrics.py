"""Metrics against sklearn, scipy, plain loops and properties. Intervals against what they promise."""

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as oracle

from training.metrics import metrics

Floats = npt.NDArray[np.float64]
# Both sides sum up to a few thousand float64 terms: agreement to rounding.
ROUNDING = 1e-9


def _clicks(
    rng: np.random.Generator, rows: int, users: int, *, decimals: int = 12
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Labels, probabilities (rounded, to make ties) and users of impressions with an effect per user."""
    groups = rng.integers(0, users, rows)
    logits = rng.normal(size=rows) + rng.normal(size=users)[groups] - 1.0
    true = 1 / (1 + np.exp(-logits))
    labels = (rng.random(rows) < true).astype(np.float64)
    guess = 1 / (1 + np.exp(-(logits + rng.normal(size=rows))))
    # Off 0 and 1, where sklearn clips at another floor.
    return labels, np.clip(np.round(guess, decimals), 0.01, 0.99), groups


@pytest.mark.parametrize("decimals", [12, 1, 0])
def test_auc_equals_sklearn_with_ties_and_weights(decimals: int) -> None:
    rng = np.random.default_rng(1)
    labels, scores, _ = _clicks(rng, 3000, 50, decimals=decimals)
    weights = rng.integers(0, 4, labels.size).astype(float)
    assert metrics.auc(labels, scores) == pytest.approx(oracle.roc_auc_score(labels, scores), abs=ROUNDING)
    expected = oracle.roc_auc_score(labels, scores, sample_weight=weights)
    weighted = metrics.WeightedAUC(labels, scores, np.arange(labels.size))(weights)
    assert weighted == pytest.approx(expected, abs=ROUNDING)


def test_auc_takes_any_finite_scores_and_only_their_order_counts() -> None:
    labels, scores, _ = _clicks(np.random.default_rng(2), 500, 10, decimals=2)
    assert metrics.auc(labels, 1000 * scores - 7) == metrics.auc(labels, scores)
    reverse = metrics.auc(labels, -scores)
    assert reverse is not None
    assert metrics.auc(labels, scores) == pytest.approx(1 - reverse, abs=ROUNDING)


def test_normalized_entropy_by_hand() -> None:
    # Base rate 1/4: its entropy is -(1/4 ln 1/4 + 3/4 ln 3/4).
    labels, probabilities = [1, 0, 0, 0], [0.5, 0.2, 0.1, 0.4]
    cross_entropy = -(np.log(0.5) + np.log(0.8) + np.log(0.9) + np.log(0.6)) / 4
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert metrics.normalized_entropy(labels, probabilities) == pytest.approx(cross_entropy / entropy)
    assert metrics.normalized_entropy(labels, [0.25] * 4) == pytest.approx(1.0)


def test_weights_are_repeated_rows() -> None:
    rng = np.random.default_rng(3)
    labels, probabilities, _ = _clicks(rng, 400, 20, decimals=1)
    times = rng.integers(0, 4, labels.size)
    repeated = np.repeat(labels, times), np.repeat(probabilities, times)
    for function in (metrics.normalized_entropy, metrics.calibration_ratio):
        assert function(labels, probabilities, times) == pytest.approx(function(*repeated), abs=ROUNDING)


def test_log_loss_equals_sklearn_and_bounds_a_saturated_row() -> None:
    labels, probabilities, users = _clicks(np.random.default_rng(4), 1000, 20)
    found = metrics.evaluate_binary(labels, probabilities, users, replicates=0).log_loss.value
    assert found == pytest.approx(oracle.log_loss(labels, probabilities), abs=ROUNDING)
    saturated = metrics.evaluate_binary([1, 0], np.array([0.0, 1.0], dtype=np.float32), [1, 1], replicates=0)
    assert saturated.log_loss.value == pytest.approx(-np.log(1e-7), rel=1e-6)


def test_gauc_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    labels, scores, users = _clicks(rng, 900, 200, decimals=1)
    total = rows = used = 0.0
    for user in np.unique(users):
        mine = users == user
        if 0 < labels[mine].sum() < mine.sum():
            total += mine.sum() * oracle.roc_auc_score(labels[mine], scores[mine])
            rows += mine.sum()
            used += 1
    assert metrics.gauc(labels, scores, users) == pytest.approx(total / rows, abs=ROUNDING)
    named = np.char.add("u", users.astype(str))
    assert metrics.gauc(labels, scores, named) == pytest.approx(total / rows, abs=ROUNDING)
    reported = metrics.evaluate_binary(labels, scores, users, replicates=0)
    assert (reported.gauc_groups_used, reported.gauc_groups_left_out) == (used, np.unique(users).size - used)


def test_regression_metrics_equal_scipy_and_sklearn() -> None:
    rng = np.random.default_rng(6)
    values = np.round(rng.lognormal(size=800), 1)
    predictions = np.round(values + rng.normal(size=800), 1)
    found = metrics.evaluate_regression(values, predictions, np.arange(800), replicates=0)
    squared = oracle.mean_squared_error(values, predictions)
    assert metrics.mse(values, predictions) == pytest.approx(squared)
    assert (found.mse.value, found.rmse.value) == pytest.approx((squared, squared**0.5))
    assert found.mae.value == pytest.approx(oracle.mean_absolute_error(values, predictions))
    assert found.spearman.value == pytest.approx(spearmanr(values, predictions).statistic, abs=ROUNDING)
    constant = metrics.evaluate_regression(values, np.full(800, 3.0), np.arange(800), replicates=0)
    assert constant.spearman.value is None


def test_evaluate_agrees_with_the_single_metrics() -> None:
    labels, probabilities, users = _clicks(np.random.default_rng(7), 2000, 100, decimals=2)
    found = metrics.evaluate_binary(labels, probabilities, users, replicates=50, seed=0)
    assert (found.rows, found.positives, found.groups) == (2000, labels.sum(), 100)
    assert found.auc.value == pytest.approx(metrics.auc(labels, probabilities))
    assert found.log_loss.value == pytest.approx(oracle.log_loss(labels, probabilities))
    assert found.calibration_ratio.value == pytest.approx(probabilities.sum() / labels.sum())
    assert found.gauc.value == pytest.approx(metrics.gauc(labels, probabilities, users))
    entropy = metrics.normalized_entropy(labels, probabilities)
    assert found.normalized_entropy.value == pytest.approx(entropy)
    for estimate in (
        found.auc,
        found.gauc,
        found.log_loss,
        found.normalized_entropy,
        found.calibration_ratio,
    ):
        assert estimate.value is not None
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < estimate.value < estimate.high
        assert estimate.reason is None
    regression = metrics.evaluate_regression(labels * 3, probabilities, users, replicates=50, seed=0)
    assert regression.mse.value == pytest.approx(metrics.mse(labels * 3, probabilities))
    assert regression.spearman.value == pytest.approx(spearmanr(labels * 3, probabilities).statistic)


def test_intervals_do_not_depend_on_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(8)
    labels, probabilities, users = _clicks(rng, 600, 60, decimals=2)
    shuffle = rng.permutation(600)
    first = metrics.evaluate_binary(labels, probabilities, users, replicates=40, seed=3)
    second = metrics.evaluate_binary(labels[shuffle], probabilities[shuffle], users[shuffle], replicates=40, seed=3)
    for name in ("auc", "gauc", "normalized_entropy", "log_loss", "calibration_ratio"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=ROUNDING)


def test_a_replicate_is_the_metric_on_the_drawn_users() -> None:
    """Statistics on weights equal the metrics on rows copied as often as their user came up."""
    rng = np.random.default_rng(9)
    labels, probabilities, users = _clicks(rng, 300, 30, decimals=2)
    seen: list[tuple[float, ...]] = []
    draws = np.random.default_rng(11)
    for _ in range(200):
        times = np.bincount(draws.integers(0, 30, 30), minlength=30)[users]
        y, p = np.repeat(labels, times), np.repeat(probabilities, times)
        seen.append((oracle.roc_auc_score(y, p), oracle.log_loss(y, p), p.sum() / y.sum()))
    low, high = np.quantile(np.array(seen), [0.025, 0.975], axis=0)
    found = metrics.evaluate_binary(labels, probabilities, users, replicates=200, seed=11)
    for k, estimate in enumerate((found.auc, found.log_loss, found.calibration_ratio)):
        assert (estimate.low, estimate.high) == pytest.approx((low[k], high[k]), abs=ROUNDING)


def test_intervals_cover_the_truth_on_clustered_data() -> None:
    """The rate of a task whose users differ a lot: drawing users covers it, drawing rows would not.

    Predicting the true mean rate makes the calibration ratio's true value 1. Of 120 intervals at 90 %,
    coverage by users has a standard error of 2.7 points. The bounds are three and more of these away from
    what is expected.
    """
    covered_by_users = covered_by_rows = 0
    for trial in range(120):
        rng = np.random.default_rng(1000 + trial)
        users = np.repeat(np.arange(80), 25)
        rates = rng.beta(0.8, 1.2, 80)  # mean 0.4
        labels = (rng.random(2000) < rates[users]).astype(float)
        guess = np.full(2000, 0.4)
        by_user = metrics.evaluate_binary(labels, guess, users, replicates=200, seed=trial, level=0.9)
        by_row = metrics.evaluate_binary(labels, guess, np.arange(2000), replicates=200, seed=trial, level=0.9)
        for estimate, is_by_user in ((by_user.calibration_ratio, True), (by_row.calibration_ratio, False)):
            assert estimate.low is not None
            assert estimate.high is not None
            hit = estimate.low <= 1.0 <= estimate.high
            covered_by_users += hit and is_by_user
            covered_by_rows += hit and not is_by_user
    assert 0.80 <= covered_by_users / 120 <= 0.98
    assert covered_by_rows / 120 < 0.60


def test_spearman_interval_is_close_to_one_with_new_ranks_per_replicate() -> None:
    rng = np.random.default_rng(12)
    users = rng.integers(0, 120, 2400)
    values = rng.normal(size=2400) + rng.normal(size=120)[users]
    predictions = values + 1.5 * rng.normal(size=2400)
    by_user = [np.flatnonzero(users == user) for user in range(120)]
    reranked = []
    for _ in range(300):
        rows = np.concatenate([by_user[user] for user in rng.integers(0, 120, 120)])
        reranked.append(spearmanr(values[rows], predictions[rows]).statistic)
    found = metrics.evaluate_regression(values, predictions, users, replicates=500, seed=1).spearman
    assert found.low is not None
    assert found.high is not None
    # Fixed ranks are an approximation and 300 replicates leave about 10 % of noise in a width.
    assert (found.high - found.low) / np.ptp(np.quantile(reranked, [0.025, 0.975])) == pytest.approx(1, abs=0.35)


def test_one_class_gives_none_with_a_reason_and_the_rest_goes_on() -> None:
    found = metrics.evaluate_binary([0.0] * 6, [0.1] * 6, [1, 1, 2, 2, 3, 3], replicates=20, seed=0)
    assert found.auc.value is None
    assert found.auc.reason == "all labels are of one class"
    assert found.normalized_entropy.value is None
    assert found.gauc.reason == "no group has labels of both classes"
    assert found.gauc_groups_left_out == 3
    assert found.calibration_ratio.reason == "no positive label"
    assert found.log_loss.value == pytest.approx(-np.log(0.9))
    assert metrics.auc([1, 1], [0.2, 0.3]) is None
    assert metrics.normalized_entropy([1, 1], [0.2, 0.3]) is None
    assert metrics.gauc([0, 1], [0.2, 0.3], [1, 2]) is None


def test_no_rows_gives_none_with_a_reason() -> None:
    binary = metrics.evaluate_binary([], [], [], replicates=10, seed=0)
    regression = metrics.evaluate_regression([], [], [], replicates=10, seed=0)
    assert (binary.rows, binary.auc.value, binary.auc.reason) == (0, None, "no rows")
    assert (regression.rows, regression.mse.value, regression.spearman.reason) == (0, None, "no rows")
    assert metrics.mse([], []) is None


def test_an_interval_that_the_data_cannot_give_is_none_with_a_reason() -> None:
    # One positive user of 30: a third of the replicates miss it.
    labels = np.zeros(60)
    labels[0] = 1
    rare = metrics.evaluate_binary(labels, np.linspace(0.9, 0.1, 60), np.arange(60) // 2, replicates=200, seed=0)
    assert rare.auc.value == 1.0
    assert rare.auc.low is None
    assert rare.auc.reason is not None
    assert "bootstrap replicates" in rare.auc.reason
    single = metrics.evaluate_binary([0, 1], [0.2, 0.3], ["u", "u"], replicates=200, seed=0)
    assert (single.auc.value, single.auc.low) == (1.0, None)
    assert single.auc.reason == "an interval needs 2 groups or more"
    without = metrics.evaluate_binary([0, 1], [0.2, 0.3], ["u", "v"], replicates=0)
    assert without.log_loss.low is None
    assert without.log_loss.reason == "no bootstrap was asked for"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0.5], [1, 1]), "of one length"),
        (([[0, 1]], [[0.5, 0.5]], [1]), "1-D"),
        (([0, 2], [0.5, 0.5], [1, 1]), "row 1 has 2.0"),
        (([0, 1], [0.5, float("nan")], [1, 1]), "predictions must be finite; row 1"),
        (([0, float("inf")], [0.5, 0.5], [1, 1]), "labels must be finite; row 1"),
        (([0, 1], [0.5, 1.5], [1, 1]), "not logits"),
        (([0, 1], [0.5, 0.5], [1]), "one entry per row"),
        (([0, 1], [0.5, 0.5], [1.0, float("nan")]), "no NaN"),
        (([0, 1], [0.5, 0.5], np.array(["u", None], dtype=object)), "without nulls"),
    ],
)
def test_wrong_input_is_refused_naming_the_place(arguments: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.evaluate_binary(*arguments, replicates=10, seed=0)


def test_wrong_bootstrap_arguments_are_refused() -> None:
    for options, message in (
        ({"replicates": -1}, "replicates >= 1"),
        ({"level": 1.0}, "a level is between 0 and 1; got 1.0"),
        ({"level": 0.0}, "a level is between 0 and 1; got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.evaluate_regression([0, 1], [0.5, 0.5], [1, 2], **options)
    with pytest.raises(ValueError, match="weights must be 0 or more; row 1"):
        metrics.normalized_entropy([0, 1], [0.5, 0.5], [1, -1])


def test_seven_tasks_of_a_test_day_take_seconds() -> None:
    """27k rows x 500 replicates. One task of seven has 1/7 of the 15 s that an evaluation may spend on
    intervals.
    """
    labels, probabilities, users = _clicks(np.random.default_rng(13), 27_000, 12_000)
    start = time.process_time()
    metrics.evaluate_binary(labels, probabilities, users, replicates=500, seed=0)
    assert time.process_time() - start < 15 / 7
