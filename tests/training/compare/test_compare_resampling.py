"""The paired bootstrap over users against repeating the users' rows one by one."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error, roc_auc_score

from training.compare.measures import TaskTruth
from training.compare.resampling import MEAN, SEED, Replicates, paired_replicates
from training.metrics.bootstrap import percentile_interval

USERS = 12
ROWS = 120
REPLICATES = 100

Floats = NDArray[np.float64]


def task(name: str, seed: int, kind: str = "binary") -> TaskTruth:
    rng = np.random.default_rng(seed)
    labels_B = (rng.random(ROWS) < 0.4).astype(np.float64) if kind == "binary" else rng.normal(0, 1, ROWS)
    return TaskTruth(name, kind, slice(0, 1), np.arange(ROWS), labels_B, rng.permutation(ROWS) % USERS)


def outputs_of(truth: TaskTruth, seed: int, skill: float) -> Floats:
    noise: Floats = np.random.default_rng(seed).normal(0, 1, ROWS) + skill * truth.labels_B
    return noise[:, None]


def metric_of(metric: str, labels: Floats, outputs: Floats) -> float:
    """The metric by scikit-learn."""
    if metric == "auc":
        return float(roc_auc_score(labels, outputs))
    if metric == "accuracy":
        return float(accuracy_score(labels, expit(outputs) > 0.5))
    if metric == "mse":
        return float(mean_squared_error(labels, outputs))
    rate = labels.mean()
    return float(log_loss(labels, expit(outputs)) / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


def repeated_rows(truth: TaskTruth, draw: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every row of every drawn user, as often as the user was drawn."""
    return np.concatenate([np.flatnonzero(truth.groups_B == user) for user in draw])


@pytest.mark.parametrize("metric", ["auc", "normalized_entropy", "accuracy", "mse"])
def test_replicates_are_those_of_repeated_rows(metric: str) -> None:
    kind = "regression" if metric == "mse" else "binary"
    tasks = [task("click", 0, kind), task("like", 1, kind)]
    outputs = {
        network: {
            t.name: {seed: outputs_of(t, seed + 10 * number, skill) for seed in (1, 2)}
            for number, t in enumerate(tasks)
        }
        for network, skill in {"base": 0.3, "better": 1.0}.items()
    }
    found = paired_replicates(metric, tasks, outputs, "base", USERS, replicates=REPLICATES)

    rng = np.random.default_rng(SEED)
    expected: dict[str, list[NDArray[np.float64]]] = {"click": [], "like": [], MEAN: []}
    levels: dict[str, list[float]] = {"click": [], "like": [], MEAN: []}
    for _ in range(REPLICATES):
        draw = rng.integers(0, USERS, USERS)
        differences = []
        for t in tasks:
            rows = repeated_rows(t, draw)
            of_network = {
                network: np.array(
                    [metric_of(metric, t.labels_B[rows], x[rows, 0]) for x in outputs[network][t.name].values()]
                )
                for network in outputs
            }
            differences.append(of_network["better"] - of_network["base"])
            expected[t.name].append(differences[-1])
            levels[t.name].append(float(of_network["base"].mean()))
        expected[MEAN].append(np.mean(differences, axis=0))
        levels[MEAN].append((levels["click"][-1] + levels["like"][-1]) / 2)
    for name, values in expected.items():
        # Sums in another order, in float64.
        assert list(found.differences_RS[name]) == ["better"]
        np.testing.assert_allclose(found.differences_RS[name]["better"], values, atol=1e-9)
        np.testing.assert_allclose(found.levels_R[name]["base"], levels[name], atol=1e-9)


def test_percentiles_want_nearly_all_replicates() -> None:
    values = np.arange(101.0)
    assert percentile_interval(values) == pytest.approx((2.5, 97.5))
    values[:5] = np.nan
    assert percentile_interval(values) is not None
    values[5] = np.nan
    assert percentile_interval(values) is None


def test_a_network_against_itself_differs_by_nothing() -> None:
    truth = task("click", 3)
    same = {"click": {0: outputs_of(truth, 1, 0.5)}}
    for metric in ("auc", "gauc", "normalized_entropy"):
        found = paired_replicates(metric, [truth], {"a": same, "b": same}, "a", USERS, replicates=100)
        assert not found.differences_RS["click"]["b"].any()


def test_seeds_that_the_baseline_has_not_are_left_out() -> None:
    truth = task("click", 3)
    base = {"click": {1: outputs_of(truth, 1, 0.5)}}
    more = {"click": {1: outputs_of(truth, 2, 0.5), 2: outputs_of(truth, 3, 2.0)}}
    paired = {"click": {1: more["click"][1]}}
    none = {"click": {2: more["click"][2]}}
    outputs = {"base": base, "more": more, "paired": paired, "none": none}
    found = paired_replicates("auc", [truth], outputs, "base", USERS, replicates=100).differences_RS["click"]
    np.testing.assert_array_equal(found["more"], found["paired"])
    assert "none" not in found


def test_one_user_gives_no_interval() -> None:
    truth = TaskTruth("click", "binary", slice(0, 1), np.arange(4), np.array([0.0, 1, 0, 1]), np.zeros(4, np.int64))
    outputs = {name: {"click": {0: np.arange(4.0)[:, None]}} for name in ("a", "b")}
    assert paired_replicates("auc", [truth], outputs, "a", 1, replicates=100) == Replicates()
