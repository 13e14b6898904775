"""Task weights that are solutions of small convex problems: MGDA, Nash-MTL, CAGrad, UPGrad.

In: the Gramian of the tasks' gradients, float64 [T, T], scaled so that its mean diagonal is 1. Out: w_T, float64.
TorchJD has the last three by way of cvxpy, ECOS or quadprog, and stops MGDA's Frank-Wolfe iteration short of the
solution. With at most a few dozen tasks all are a few lines of exact numpy and scipy, without state from one step to
the next. All but MGDA return ones for gradients that are orthogonal and of one length (CAGrad: with c = 0), that is
the plain sum. MGDA's weights are a convex combination.

Shapes: T tasks.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls
from torch import Tensor

_Array = NDArray[np.float64]


def mgda_weights(gramian_TT: Tensor) -> Tensor:
    """Desideri 2012, Sener and Koltun 2018, equation 3: the w on the simplex with the smallest w'Gw.

    With G = R'R the non-negative least squares of R w = 0 beside 1'w = 1 have a multiple of that w as their solution:
    for w = s v, v on the simplex, |R w|^2 + (s - 1)^2 is least where |R v|^2 is, for every s. Active sets solve it
    exactly, ill-conditioned or rank-deficient.
    """
    root = _root(gramian_TT)
    tasks = len(root)
    stacked: _Array = np.vstack([root, np.ones(tasks)])
    found: _Array = nnls(stacked, np.append(np.zeros(tasks), 1.0))[0]
    return torch.from_numpy(found / found.sum())


def nash_weights(gramian_TT: Tensor) -> Tensor:
    """Navon et al. 2022, equation 2: the w > 0 with G w = 1 / w, the bargaining solution.

    That w is where w'Gw / 2 - sum log w, convex and self-concordant, is smallest: damped Newton steps reach it from
    anywhere, and nothing of the step before is needed (the authors' solver linearises from there). Where a convex
    combination of the gradients vanishes there is no solution. A millionth on the diagonal gives one that is bounded.
    """
    gramian: _Array = gramian_TT.numpy() + 1e-6 * np.eye(len(gramian_TT))
    weights = 1.0 / np.sqrt(gramian.diagonal())
    for _ in range(100):
        slope = gramian @ weights - 1.0 / weights
        newton = np.linalg.solve(gramian + np.diag(weights**-2), slope)
        decrement = float(np.sqrt(slope @ newton))
        # The damping keeps every weight positive, by self-concordance (Boyd and Vandenberghe, section 9.6).
        weights = weights - newton / (1.0 + decrement)
        if decrement < 1e-10:
            break
    return torch.from_numpy(weights)


def cagrad_weights(gramian_TT: Tensor, c: float) -> Tensor:
    """Liu et al. 2021, algorithm 1, times T, so that c = 0 is the sum and not the mean: 1 + T c |g0| / |g_w| w.

    w on the simplex minimises g_w.g0 + c |g0| |g_w|, g0 being the mean gradient and g_w = sum_t w_t g_t. Where g_w
    vanishes its direction is undefined, and the sum, which is always in the method's ball, is taken.
    """
    gramian: _Array = gramian_TT.numpy()
    tasks = len(gramian)
    with_mean = gramian.mean(axis=1)
    radius = c * math.sqrt(max(float(gramian.mean()), 0.0))

    def length(weights: _Array) -> float:
        return math.sqrt(max(float(weights @ gramian @ weights), 1e-16))

    def slope(weights: _Array) -> _Array:
        total: _Array = with_mean + radius / length(weights) * (gramian @ weights)
        return total

    found = minimize(
        lambda weights: weights @ with_mean + radius * length(weights),
        np.full(tasks, 1.0 / tasks),
        jac=slope,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * tasks,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1.0, "jac": lambda _: np.ones(tasks)},
        options={"ftol": 1e-12, "maxiter": 200},
    )
    weights = np.clip(found.x, 0.0, None)
    weights /= weights.sum()
    if length(weights) < 1e-4:
        return torch.ones(tasks, dtype=torch.float64)
    return torch.from_numpy(1.0 + tasks * radius / length(weights) * weights)


def upgrad_weights(gramian_TT: Tensor) -> Tensor:
    """Quinton and Rey 2024: the sum of the gradients, each projected on the cone of what hurts no task.

    The projection of g_i has the weights v >= e_i with the smallest v'Gv (proposition 1 there). With v = e_i + z and
    G = R'R that is a least-squares problem in z >= 0, which active sets solve exactly, rank-deficient or not.
    """
    root = _root(gramian_TT)
    weights = np.ones(len(root))
    for task in range(len(root)):
        weights += nnls(root, -root[:, task])[0]
    return torch.from_numpy(weights)


def _root(gramian_TT: Tensor) -> _Array:
    """R [T, T] with R'R = G. An eigenvalue of G that rounding made negative counts as 0."""
    values_T, vectors_TT = torch.linalg.eigh(gramian_TT)
    root: _Array = (values_T.clamp(min=0.0).sqrt().unsqueeze(1) * vectors_TT.T).numpy()
    return root
