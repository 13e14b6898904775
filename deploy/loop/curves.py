"""Realised value a request by day and arm, with intervals over users, and how much of a shift an arm regains.

In: users and values of the requests of each day. Out: means with 95 % intervals by a bootstrap over users, the same
resamples for all arms: arms that rank the same visits differ with less noise than each has.

Shapes: D days, U users, R requests, B resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.datasets.feed_world import Floats, Integers

_RESAMPLES = 2_000
_LEVEL = 0.95


class Ledger:
    """Sums by user and day of one arm's values."""

    def __init__(self, days: int, users: int) -> None:
        self.value_DU: Floats = np.zeros((days, users))
        self.requests_DU: Floats = np.zeros((days, users))

    def take_requests(self, day: int, users_R: Integers, value_R: Floats) -> None:
        """Count requests and their values."""
        np.add.at(self.value_DU[day], users_R, value_R)
        np.add.at(self.requests_DU[day], users_R, 1.0)


def curves(ledgers: Mapping[str, Ledger], seed: int) -> dict[str, list[dict[str, float]]]:
    """Mean value a request by day, of each arm, with its interval."""
    weights_BU = _resamples(ledgers, seed)
    found = {}
    for name, ledger in ledgers.items():
        means_D = ledger.value_DU.sum(axis=1) / ledger.requests_DU.sum(axis=1)
        resampled_BD = (weights_BU @ ledger.value_DU.T) / (weights_BU @ ledger.requests_DU.T)
        low_D, high_D = _bounds(resampled_BD)
        days = zip(means_D.tolist(), low_D.tolist(), high_D.tolist(), strict=True)
        found[name] = [{"mean": mean, "low": low, "high": high} for mean, low, high in days]
    return found


def regained(ledgers: Mapping[str, Ledger], days: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """By day: (loop - static) / (cold - static), of the arms of these names, with its interval. Null where the static
    arm is not below the cold one."""
    weights_BU = _resamples(ledgers, seed)

    def share(value: Mapping[str, Floats]) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            shares: Floats = (value["loop"] - value["static"]) / (value["cold"] - value["static"])
        return shares

    found = []
    for day in days:
        total = {name: np.array([ledger.value_DU[day].sum()]) for name, ledger in ledgers.items()}
        resampled = {name: weights_BU @ ledger.value_DU[day] for name, ledger in ledgers.items()}
        (mean,), (low, high) = share(total), _bounds(share(resampled))
        is_known = total["cold"] > total["static"] and np.isfinite([low, high]).all()
        named = {"mean": float(mean), "low": float(low), "high": float(high)}
        found.append({"day": day, **(named if is_known else dict.fromkeys(named))})
    return found


def relative_difference(one: Ledger, other: Ledger, seed: int) -> dict[str, float]:
    """Relative difference of value a request over all days, with its interval."""
    ledgers = {"one": one, "other": other}
    weights_BU = np.vstack([np.ones(one.value_DU.shape[1]), _resamples(ledgers, seed)])
    rate_B = {
        name: weights_BU @ ledger.value_DU.sum(axis=0) / (weights_BU @ ledger.requests_DU.sum(axis=0))
        for name, ledger in ledgers.items()
    }
    difference_B = rate_B["one"] / rate_B["other"] - 1
    low, high = _bounds(difference_B[1:])
    return {"mean": float(difference_B[0]), "low": float(low), "high": float(high)}


def _resamples(ledgers: Mapping[str, Ledger], seed: int) -> Floats:
    """Weights of users in each resample [B, U]."""
    users = next(iter(ledgers.values())).value_DU.shape[1]
    rng = np.random.default_rng([seed, 4])
    return rng.multinomial(users, np.full(users, 1 / users), _RESAMPLES).astype(np.float64)


def _bounds(resampled: Floats) -> tuple[Any, Any]:
    tail = (1 - _LEVEL) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail], axis=0)
    return low, high
