"""Task weights of the gradient methods: optimality conditions, scipy on the problem as published, special cases."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from training.step.balancing.solvers import cagrad_weights, mgda_weights, nash_weights, upgrad_weights

Array = NDArray[np.float64]


def gradients(seed: int, tasks: int, width: int = 8) -> Array:
    """Gradients around a common direction that is weak enough for conflicts. Mean squared length 1."""
    rng = np.random.default_rng(seed)
    jacobian = rng.normal(size=(tasks, width)) * rng.uniform(0.3, 3, (tasks, 1)) + 0.3 * rng.normal(size=width)
    scaled: Array = jacobian / np.sqrt(np.mean((jacobian**2).sum(axis=1)))
    return scaled


def gramian_of(jacobian: Array) -> torch.Tensor:
    return torch.from_numpy(jacobian @ jacobian.T)


CASES = [(seed, tasks) for seed in range(4) for tasks in (1, 2, 3, 6)]


def ill_conditioned(seed: int, tasks: int) -> Array:
    """Gradients close to a plane, with lengths over two orders of magnitude. Mean squared length 1."""
    rng = np.random.default_rng(seed)
    jacobian = rng.normal(size=(tasks, 2)) @ rng.normal(size=(2, 8)) + 1e-3 * rng.normal(size=(tasks, 8))
    jacobian *= np.geomspace(1, 1e-2, tasks)[:, None]
    scaled: Array = jacobian / np.sqrt(np.mean((jacobian**2).sum(axis=1)))
    return scaled


@pytest.mark.parametrize("make", [gradients, ill_conditioned])
@pytest.mark.parametrize(("seed", "tasks"), CASES)
def test_mgda_is_the_point_of_least_norm(make: Callable[[int, int], Array], seed: int, tasks: int) -> None:
    jacobian = make(seed, tasks)
    weights = mgda_weights(gramian_of(jacobian)).numpy()
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)
    step = weights @ jacobian
    # A point of a convex hull is its shortest exactly where no gradient has a smaller product with it than itself.
    # 1e-12: sums of float64 whose terms are around 1.
    assert (jacobian @ step).min() >= step @ step * (1 - 1e-6) - 1e-12


def test_mgda_by_hand_and_where_gradients_cancel() -> None:
    # On the segment from (2, 0) to (0, 1) the shortest point is (2/5, 4/5).
    jacobian = np.array([[2.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(mgda_weights(gramian_of(jacobian)).numpy() @ jacobian, [0.4, 0.8])
    cancelling = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]])
    np.testing.assert_allclose(mgda_weights(gramian_of(cancelling)).numpy(), [0.5, 0.5, 0.0], atol=1e-12)


@pytest.mark.parametrize(("seed", "tasks"), CASES)
def test_nash_weights_solve_the_bargaining_equation(seed: int, tasks: int) -> None:
    gramian = gramian_of(gradients(seed, tasks))
    weights = nash_weights(gramian).numpy()
    assert (weights > 0).all()
    # The millionth on the diagonal moves G w by 1e-6 w.
    np.testing.assert_allclose(gramian.numpy() @ weights, 1 / weights, rtol=1e-4)


def test_nash_weights_stay_bounded_where_gradients_cancel() -> None:
    weights = nash_weights(gramian_of(np.array([[1.0, 0.0], [-1.0, 0.0]]))).numpy()
    np.testing.assert_allclose(weights[0], weights[1])
    assert 0 < weights[0] <= 1e3 * (1 + 1e-6)  # 1e-6 w = 1 / w


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize(("seed", "tasks"), [case for case in CASES if case[1] > 1])
def test_cagrad_improves_the_worst_task_most_within_its_ball(seed: int, tasks: int, c: float) -> None:
    jacobian = gradients(seed, tasks)
    mean = jacobian.mean(axis=0)
    radius = c * np.linalg.norm(mean)
    step = cagrad_weights(gramian_of(jacobian), c).numpy() @ jacobian / tasks
    assert np.linalg.norm(step - mean) <= radius * (1 + 1e-6)
    # The problem as published: max over d of min_t <g_t, d> in the ball around the mean, here by scipy in d itself.
    oracle = minimize(
        lambda x: -x[-1],
        np.append(mean, (jacobian @ mean).min()),
        constraints=[
            {"type": "ineq", "fun": lambda x: jacobian @ x[:-1] - x[-1]},
            {"type": "ineq", "fun": lambda x: radius**2 - ((x[:-1] - mean) ** 2).sum()},
        ],
        method="SLSQP",
        options={"ftol": 1e-9, "maxiter": 500},
    )
    assert oracle.success
    # Two solvers of one problem whose values lie around 1.
    assert (jacobian @ step).min() == pytest.approx(oracle.x[-1], abs=1e-4)


def test_cagrad_of_one_task_goes_to_the_edge_of_its_ball() -> None:
    np.testing.assert_allclose(cagrad_weights(gramian_of(gradients(0, 1)), 0.4).numpy(), [1.4])


def test_cagrad_with_an_empty_ball_or_cancelling_gradients_is_the_sum() -> None:
    np.testing.assert_allclose(cagrad_weights(gramian_of(gradients(0, 4)), 0.0).numpy(), np.ones(4))
    np.testing.assert_allclose(cagrad_weights(gramian_of(np.array([[1.0], [-1.0]])), 0.4).numpy(), np.ones(2))


@pytest.mark.parametrize(("seed", "tasks"), CASES)
def test_upgrad_hurts_no_task_and_equals_scipys_projections(seed: int, tasks: int) -> None:
    jacobian = gradients(seed, tasks)
    step = upgrad_weights(gramian_of(jacobian)).numpy() @ jacobian
    assert (jacobian @ step).min() >= -1e-9
    expected = np.zeros(jacobian.shape[1])
    for gradient in jacobian:
        found = minimize(
            lambda d, gradient=gradient: ((d - gradient) ** 2).sum(),
            np.zeros_like(gradient),
            constraints=[{"type": "ineq", "fun": lambda d: jacobian @ d}],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found.success
        expected += found.x
    np.testing.assert_allclose(step, expected, atol=1e-4)  # an iterative solver against an exact one


def test_upgrad_of_two_by_hand() -> None:
    # g1 = (1, 0), g2 = (-1, 1): g1 on the cone becomes (1/2, 1/2), g2 becomes (0, 1).
    jacobian = np.array([[1.0, 0.0], [-1.0, 1.0]])
    np.testing.assert_allclose(upgrad_weights(gramian_of(jacobian)).numpy() @ jacobian, [0.5, 1.5], atol=1e-12)


def test_upgrad_takes_gradients_that_are_linearly_dependent() -> None:
    jacobian = np.array([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    step = upgrad_weights(gramian_of(jacobian)).numpy() @ jacobian
    np.testing.assert_allclose(step, 0.0, atol=1e-7)  # the only direction that hurts none is to stand still


@pytest.mark.parametrize("solve", [nash_weights, upgrad_weights, lambda gramian: cagrad_weights(gramian, 0.0)])
def test_orthogonal_gradients_of_one_length_are_summed(solve: object) -> None:
    assert callable(solve)
    np.testing.assert_allclose(solve(torch.eye(5, dtype=torch.float64)).numpy(), np.ones(5), rtol=1e-5)
