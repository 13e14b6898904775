"""XAUC against a loop over all pairs, Somers' D of scipy, AUC of scikit-learn, and drawing the rows again."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import somersd
from sklearn.metrics import roc_auc_score

from training.metrics.metrics import evaluate_regression, xauc
from training.metrics.pair_order import pair_order, xauc_on_draws

Floats = NDArray[np.float64]


def by_loop(values: Floats, predictions: Floats) -> tuple[list[float], list[float]]:
    """Right pairs and counting pairs of each row."""
    right, pairs = [0.0] * len(values), [0.0] * len(values)
    for i in range(len(values)):
        for j in range(len(values)):
            if values[i] == values[j]:
                continue
            pairs[i] += 1
            if predictions[i] == predictions[j]:
                right[i] += 0.5
            elif (values[i] < values[j]) == (predictions[i] < predictions[j]):
                right[i] += 1
    return right, pairs


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 130])
@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_pairs_are_those_of_a_loop(rows: int, decimals: int) -> None:
    """Many ties, some, and none. Counts are whole or half numbers, so they are the same to the bit."""
    rng = np.random.default_rng(100 * rows + decimals)
    values = np.round(rng.normal(size=rows), decimals)
    predictions = np.round(values + rng.normal(size=rows), decimals)
    found = pair_order(values, predictions)
    assert (found.right_N.tolist(), found.pairs_N.tolist()) == by_loop(values, predictions)


def test_xauc_is_somers_d_on_the_scale_of_auc() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 12, 400).astype(float)
    predictions = np.round(values + 4 * rng.normal(size=400))
    expected = (somersd(values, predictions).statistic + 1) / 2
    assert xauc(values, predictions) == pytest.approx(expected, abs=1e-12)  # sums of whole numbers, one quotient


def test_xauc_of_labels_0_and_1_is_auc() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random(500) < 0.2).astype(float)
    scores = np.round(labels + rng.normal(size=500), 1)
    assert xauc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_half_a_million_rows_are_counted() -> None:
    """Rows in order but for the last third, which comes first. Of n (n - 1) / 2 pairs (n / 3) (2 n / 3) are wrong. A
    loop over the pairs would take 10^11 steps."""
    rows = 480_000
    values = np.arange(rows, dtype=np.float64)
    predictions = np.roll(values, rows // 3)
    wrong = (rows // 3) * (2 * rows // 3)
    assert xauc(values, predictions) == pytest.approx(1 - wrong / (rows * (rows - 1) / 2), abs=1e-12)


def test_without_two_values_there_is_none() -> None:
    assert xauc([3.0, 3.0, 3.0], [1.0, 2.0, 3.0]) is None
    assert xauc([], []) is None
    found = evaluate_regression([3.0, 3.0], [1.0, 2.0], [0, 1], replicates=20).xauc
    assert (found.value, found.reason) == (None, "all values are equal")
    assert xauc([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) == 0.5


def test_draws_are_near_the_value_on_the_drawn_rows() -> None:
    """The expansion leaves terms of second order. With 150 users of 8 rows a draw moves XAUC by .01, and its square is
    a hundredth of that. The spread of draws, and their mean, are held to a tenth of the spread."""
    rng = np.random.default_rng(3)
    users = rng.integers(0, 150, 1200)
    values = np.round(rng.normal(size=1200) + rng.normal(size=150)[users], 1)
    predictions = np.round(values + 1.5 * rng.normal(size=1200), 2)
    draws_RG = np.stack([np.bincount(rng.integers(0, 150, 150), minlength=150) for _ in range(60)]).astype(np.float64)
    found = xauc_on_draws(values, predictions, users, 150)(draws_RG)
    orders = [np.sign(x[:, None] - x[None, :]) for x in (values, predictions)]
    right = np.where(orders[0] == orders[1], 1.0, np.where(orders[1] == 0, 0.5, 0.0)) * (orders[0] != 0)
    expected = []
    for draws_G in draws_RG:
        times = draws_G[users]
        expected.append((times @ right @ times) / (times @ (orders[0] != 0) @ times))
    spread = float(np.std(expected))
    assert np.corrcoef(found, expected)[0, 1] > 0.99
    assert np.std(found) == pytest.approx(spread, rel=0.1)
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.1 * spread)
    once = xauc_on_draws(values, predictions, users, 150)(np.ones((1, 150)))
    assert float(once[0]) == xauc(values, predictions)
