"""Value of a policy that was never shown, from requests that another one explored.

In: explored requests, place by place. Out: the mean value a request that the policy would have had, with its interval.
A user goes down the places, so that what is done at a place depends on the places above it and on none below (the
cascade). Then a request counts at place k by its weight w_k: the probability of its first k places under the policy,
over that under the one that explored. Both estimates take weights over their sum at each place:

* `self_normalised`: RIPS (McInerney, Brost, Chandar, Mehrotra and Carterette, "Counterfactual evaluation of slate
  recommendations with sequential reward interactions", KDD 2020).
* `doubly_robust`: cascade DR (Kiyohara, Saito, Matsuhiro, Narita, Shimizu and Yamamoto, "Doubly robust off-policy
  evaluation for ranking policies under the cascade behavior model", WSDM 2022), with the ranker as the model of
  rewards: its value of a candidate times one factor a place, which makes it right on average there. The places that
  follow are modelled as those of the policy's own order.

Intervals are of delete-one-user jackknifes: a user's requests are not independent. The effective sample is Kish's,
of users' weights, the least of all places.

Shapes: I requests, K places, U users.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

# An interval of fewer effective users is of the few whose weights are largest.
LEAST_EFFECTIVE = 100.0
CONFIDENCE = 0.95


class Explored(NamedTuple):
    """Explored requests, up to the last place that counts. `weight_IK` are probabilities of the first places under the
    policy over those under the one that explored. `reward_IK` is 0 where nothing was shown. `predicted_IK` is the
    ranker's value of what stood at a place. `expected_IK` is the mean of that value over the policy's own draw of the
    place, given what stood above it, times the weight of what stood above it. `own_IK` is the ranker's value of the
    policy's own order. `user_I` numbers users from 0."""

    weight_IK: Floats
    reward_IK: Floats
    predicted_IK: Floats
    expected_IK: Floats
    own_IK: Floats
    user_I: Codes


class Estimate(NamedTuple):
    """Mean value a request and its interval. None where the effective sample is too small to give them."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimates:
    """Both estimates, None where the effective sample refuses them. `effective_K` is that of users by places, and
    `mean_weight_K` near 1 where the requests could show what the policy would."""

    self_normalised: Estimate | None
    doubly_robust: Estimate | None
    effective_K: Floats
    mean_weight_K: Floats

    @property
    def effective(self) -> float:
        """The effective sample of all places together."""
        return float(self.effective_K.min())


def estimate(explored: Explored) -> Estimates:
    """Estimate by all places. Needs a request and a place."""
    num_users = int(explored.user_I.max()) + 1
    weight_UK = _by_user(explored.weight_IK, explored.user_I, num_users)
    effective_K = _effective(weight_UK)
    mean_weight_K: Floats = explored.weight_IK.mean(axis=0)
    if not effective_K.min() >= LEAST_EFFECTIVE:
        return Estimates(None, None, effective_K, mean_weight_K)
    quantile = _student_quantile(float(effective_K.min()) - 1)
    plain = _by_user(explored.weight_IK * explored.reward_IK, explored.user_I, num_users)
    before_UK = np.column_stack([np.bincount(explored.user_I, minlength=num_users), weight_UK[:, :-1]])
    left_UK, right_UK = _robust_sums(explored, num_users)
    return Estimates(
        _jackknife([(plain, weight_UK)], quantile),
        _jackknife([(left_UK, weight_UK), (right_UK, before_UK)], quantile),
        effective_K,
        mean_weight_K,
    )


def _robust_sums(explored: Explored, num_users: int) -> tuple[Floats, Floats]:
    """Users' sums of what a place adds by its own weights, and by those of the places above it."""
    weighed_reward_K = (explored.weight_IK * explored.reward_IK).sum(axis=0)
    weighed_predicted_K = (explored.weight_IK * explored.predicted_IK).sum(axis=0)
    # Where the ranker's value is 0 on average there is nothing to scale.
    is_known_K = weighed_predicted_K != 0
    factor_K = np.divide(weighed_reward_K, weighed_predicted_K, out=np.zeros_like(weighed_reward_K), where=is_known_K)
    own_IK = factor_K * explored.own_IK
    # What follows a place in the policy's own order.
    future_IK = own_IK[:, ::-1].cumsum(axis=1)[:, ::-1] - own_IK
    modelled_IK = factor_K * explored.predicted_IK + future_IK
    before_IK = np.column_stack([np.ones(len(explored.user_I)), explored.weight_IK[:, :-1]])
    residual_IK = explored.weight_IK * (explored.reward_IK - modelled_IK)
    expected_IK = factor_K * explored.expected_IK + before_IK * future_IK
    return (
        _by_user(residual_IK, explored.user_I, num_users),
        _by_user(expected_IK, explored.user_I, num_users),
    )


def _jackknife(ratios: list[tuple[Floats, Floats]], quantile: float) -> Estimate:
    """Sum over places of ratios of users' sums, `numerator_UK` over `denominator_UK`, and its interval."""
    num_users = len(ratios[0][0])
    value, left_out_U = 0.0, np.zeros(num_users)
    for numerator_UK, denominator_UK in ratios:
        numerator_K, denominator_K = numerator_UK.sum(axis=0), denominator_UK.sum(axis=0)
        value += float((numerator_K / denominator_K).sum())
        left_out_U += ((numerator_K - numerator_UK) / (denominator_K - denominator_UK)).sum(axis=1)
    deviation_U = left_out_U - left_out_U.mean()
    error = math.sqrt((num_users - 1) / num_users * float(deviation_U @ deviation_U))
    return Estimate(value, value - quantile * error, value + quantile * error)


def _by_user(values_IK: Floats, user_I: Codes, num_users: int) -> Floats:
    """Sums over each user's requests."""
    sums = [np.bincount(user_I, values_K, num_users) for values_K in values_IK.T]
    return np.stack(sums, axis=1)


def _effective(weight_UK: Floats) -> Floats:
    """Kish's effective sample of users by places, 0 where no weight is left."""
    sums_K, squares_K = weight_UK.sum(axis=0), (weight_UK**2).sum(axis=0)
    effective_K: Floats = np.divide(sums_K**2, squares_K, out=np.zeros_like(sums_K), where=squares_K > 0)
    return effective_K


def _student_quantile(freedom: float) -> float:
    """Two-sided quantile of Student's law, by the expansion of Cornish and Fisher: right to 1e-6 from 99 on."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + (z**3 + z) / 4 / freedom + second / freedom**2 + third / freedom**3
