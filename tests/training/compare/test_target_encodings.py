"""Target encodings against loops over rows, and that no label reaches its own row's encoding."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from training.compare.target_encodings import Codes, EncodingsConfig, Floats, from_all, from_earlier, out_of_fold

SMOOTHING = 3.0
ROWS = 300


class Log(NamedTuple):
    """Rows of a small log. `groups_B` are its folds, or its days."""

    codes_B: Codes
    labels_B: Floats
    weights_B: Floats
    groups_B: Codes


@pytest.fixture
def rows() -> Log:
    rng = np.random.default_rng(0)
    return Log(
        rng.integers(0, 12, ROWS),
        rng.integers(0, 2, ROWS).astype(np.float64),
        rng.integers(0, 3, ROWS).astype(np.float64),
        rng.integers(0, 4, ROWS),
    )


def by_loops(rows: Log, may_see: Callable[[int, int], bool]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and weight of every row from the rows whose group its own may see: (own, other) -> yes or no."""
    means, weights = [], []
    for row in range(len(rows.codes_B)):
        seen = [other for other in range(ROWS) if may_see(rows.groups_B[row], rows.groups_B[other])]
        same = [other for other in seen if rows.codes_B[other] == rows.codes_B[row]]
        weight = sum(rows.weights_B[other] for other in seen)
        if not weight:
            means.append(np.nan)
            weights.append(0.0)
            continue
        mean = sum(rows.weights_B[other] * rows.labels_B[other] for other in seen) / weight
        own = sum(rows.weights_B[other] * rows.labels_B[other] for other in same)
        own_weight = sum(rows.weights_B[other] for other in same)
        means.append((own + SMOOTHING * mean) / (own_weight + SMOOTHING))
        weights.append(own_weight)
    return np.array(means), np.array(weights)


def test_out_of_fold_is_the_loop_over_other_folds(rows: Log) -> None:
    found = out_of_fold(*rows, SMOOTHING)
    means, weights = by_loops(rows, lambda own, other: own != other)
    # Sums of small integers are exact. The quotients differ in their last digit at most.
    np.testing.assert_allclose(found.mean_B, means, rtol=1e-14)
    np.testing.assert_array_equal(found.weight_B, weights)


def test_order_is_the_loop_over_earlier_days_and_the_first_day_knows_nothing(rows: Log) -> None:
    found = from_earlier(*rows, SMOOTHING)
    means, weights = by_loops(rows, lambda own, other: other < own)
    np.testing.assert_allclose(found.mean_B, means, rtol=1e-14)
    np.testing.assert_array_equal(found.weight_B, weights)
    assert np.isnan(found.mean_B[rows.groups_B == 0]).all()
    assert np.isfinite(found.mean_B[rows.groups_B > 0]).all()


def test_other_rows_are_encoded_from_all_training_rows(rows: Log) -> None:
    found = from_all(rows.codes_B, rows.labels_B, rows.weights_B, np.array([3, -1]), SMOOTHING)
    mean = np.average(rows.labels_B, weights=rows.weights_B)
    is_three = rows.codes_B == 3
    weight = rows.weights_B[is_three].sum()
    own = (rows.weights_B * rows.labels_B)[is_three].sum()
    np.testing.assert_allclose(found.mean_B, [(own + SMOOTHING * mean) / (weight + SMOOTHING), mean], rtol=1e-14)
    assert found.weight_B.tolist() == [weight, 0.0]


def test_no_row_sees_its_own_label(rows: Log) -> None:
    before = out_of_fold(*rows, SMOOTHING)
    others_changed = 0
    for row in range(0, ROWS, 7):
        labels_B = rows.labels_B.copy()
        labels_B[row] = 1 - labels_B[row]
        after = out_of_fold(rows.codes_B, labels_B, rows.weights_B, rows.groups_B, SMOOTHING)
        own_fold = rows.groups_B == rows.groups_B[row]
        np.testing.assert_array_equal(after.mean_B[own_fold], before.mean_B[own_fold])
        others_changed += int((after.mean_B != before.mean_B).any())
    assert others_changed > 10, "labels of weight 0 aside, other folds see the change"


@pytest.mark.parametrize("day", [0, 1, 2, 3])
def test_labels_of_a_day_reach_later_days_alone(rows: Log, day: int) -> None:
    before = from_earlier(*rows, SMOOTHING)
    labels_B = np.where(rows.groups_B == day, 1 - rows.labels_B, rows.labels_B)
    after = from_earlier(rows.codes_B, labels_B, rows.weights_B, rows.groups_B, SMOOTHING)
    until = rows.groups_B <= day
    np.testing.assert_array_equal(after.mean_B[until], before.mean_B[until])
    assert day == 3 or (after.mean_B[~until] != before.mean_B[~until]).any()


def test_folds_and_order_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="two ways"):
        EncodingsConfig.from_mapping({"folds": 3, "order": "day"}, "encodings")
