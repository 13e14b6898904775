"""`make bench-off-policy`: how often the intervals of a policy's estimated value cover its true value.

python -m benchmarks.off_policy

Users of the feed simulator, each with some requests. A ranker that is wrong in parts scores their candidates, and a
policy explores. Every order of the places that are shown is followed under every policy once, by the service's own
functions. So each policy's true value is known exactly. Then come replications: users are drawn, their requests, orders
by their probabilities, and what a user does going down the places. Each replication estimates every policy.

Before that, orders of one request are drawn a million times, and their frequencies compared with the probabilities that
are logged with them.

Shapes: R requests of the pool, S orders of each, N candidates, D columns of a vector, K places shown, I requests of a
replication, U users.
"""

import argparse
import itertools
import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks import report
from benchmarks.command import run_benchmark
from model.policies.cascade import LEAST_EFFECTIVE, Estimates, Explored, estimate
from model.policies.draws import Draws
from model.policies.select import prefixes, select
from model.policies.select_stages import Select
from training.datasets.feed_world import DEVICE_SHARES, DEVICES, VECTOR_WIDTH, FeedWorld

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

USERS, REQUESTS_OF_A_USER, CANDIDATES, SHOWN = 60, 4, 6, 4
# A user goes on to the next place so often after a place without a click, and with one.
GOES_ON = (0.9, 0.6)
REPLICATION_USERS = (150, 500, 1_500)
CREATORS = 4
SPREAD_OF_ACTIVITY = 0.7
EXPLORE = {"temperature": 1.0, "head": SHOWN, "share": 1.0}
CAP = {"per": "creator", "count": 1, "within": 2}
MMR = {"lambda": 0.8, "head": SHOWN, "by": "item_id"}


class Policy(NamedTuple):
    """A policy: its stages, and the weight of long views in its value model."""

    name: str
    stages: dict[str, Any]
    long_view: float = 0.0


LOGGING = Policy("the one that explored", {"cap": CAP, "explore": EXPLORE})
POLICIES = (
    LOGGING,
    Policy("half the temperature", {"cap": CAP, "explore": {**EXPLORE, "temperature": 0.5}}),
    Policy("twice the temperature", {"cap": CAP, "explore": {**EXPLORE, "temperature": 2.0}}),
    Policy("another value model", {"cap": CAP, "explore": EXPLORE}, long_view=1.0),
    Policy("with mmr", {"cap": CAP, "mmr": MMR, "explore": EXPLORE}),
    Policy("another value model, a tenth explores", {"cap": CAP, "explore": {**EXPLORE, "share": 0.1}}, long_view=1.0),
    Policy("no exploration", {"cap": CAP, "explore": {**EXPLORE, "share": 0.0}}),
)


class Pool(NamedTuple):
    """Requests, and all orders of the places shown. Arrays of a policy are by its name: probabilities of the first
    places of each order, means of the ranker's value at each place times the probability of the places above it, and
    the ranker's value of the policy's own order."""

    orders_SK: NDArray[np.intp]
    click_RSK: Floats
    predicted_RSK: Floats
    prefix_RSK: dict[str, Floats]
    expected_RSK: dict[str, Floats]
    own_RK: dict[str, Floats]


def pool_of(seed: int) -> Pool:
    """The pool of a seed."""
    world, rng = FeedWorld(seed, users=USERS, items=400), np.random.default_rng([seed, 1])
    num = USERS * REQUESTS_OF_A_USER
    users = np.repeat(np.arange(USERS), REQUESTS_OF_A_USER).repeat(CANDIDATES)
    items = world.draw_pages(rng, num, CANDIDATES).reshape(-1)
    devices = rng.choice(len(DEVICES), num, p=DEVICE_SHARES).repeat(CANDIDATES)
    hours = rng.integers(0, 24, num).repeat(CANDIDATES)
    true = world.outcomes(users, items, np.zeros_like(items), hours, devices, world.age_at_start_hours[items])
    # The ranker knows both less well than the simulator does, click not at all alike for all items.
    click, long_view = (
        _probability(0.8 * _logit(chance) + rng.normal(scale=0.5, size=len(items)) + shift).reshape(num, CANDIDATES)
        for chance, shift in ((true.click_at_top, 0.3), (true.probabilities["long_view"], 0.0))
    )
    creators = world.creator[items].reshape(num, CANDIDATES) % CREATORS
    vectors = np.random.default_rng([seed, 2]).normal(size=(world.items, 2 * VECTOR_WIDTH)).astype(np.float32)
    orders_SK = np.array(list(itertools.permutations(range(CANDIDATES), SHOWN)), np.intp)
    pool = Pool(orders_SK, true.click_at_top.reshape(num, CANDIDATES)[:, orders_SK], click[:, orders_SK], {}, {}, {})
    for policy in POLICIES:
        stages, prefix, expected, own = Select.model_validate(policy.stages), [], [], []
        for row, of_items in enumerate(items.reshape(num, CANDIDATES)):
            utility_N = click[row] + policy.long_view * long_view[row]
            read: dict[str, Any] = {"group_N": creators[row], "vector_ND": vectors[of_items]}
            followed = [prefixes(stages, utility_N, order_K, click[row], **read) for order_K in orders_SK]
            prefix.append([one.probability_K for one in followed])
            expected.append([one.expected_K for one in followed])
            own.append(click[row][select(stages, utility_N, top_k=SHOWN, **read).order_K])
        pool.prefix_RSK[policy.name], pool.expected_RSK[policy.name] = np.array(prefix), np.array(expected)
        pool.own_RK[policy.name] = np.array(own)
    return pool


def true_value(pool: Pool, policy: Policy, activity_U: Floats) -> float:
    """Mean clicks a request of the policy: over users by their requests, orders, and what a user does."""
    reach_RS, clicks_RS = np.ones(pool.click_RSK.shape[:2]), np.zeros(pool.click_RSK.shape[:2])
    for click_RS in np.moveaxis(pool.click_RSK, 2, 0):
        clicks_RS += reach_RS * click_RS
        reach_RS = reach_RS * ((1 - click_RS) * GOES_ON[0] + click_RS * GOES_ON[1])
    value_R = (pool.prefix_RSK[policy.name][:, :, -1] * clicks_RS).sum(axis=1)
    return float(np.average(value_R, weights=activity_U.repeat(REQUESTS_OF_A_USER)))


def replicate(pool: Pool, activity_U: Floats, num_users: int, rng: np.random.Generator) -> dict[str, Estimates]:
    """The estimates of every policy from one log of explored requests."""
    users = rng.integers(0, USERS, num_users)
    user_I = np.arange(num_users).repeat(1 + rng.poisson(activity_U[users] - 1))
    request_I = users[user_I] * REQUESTS_OF_A_USER + rng.integers(0, REQUESTS_OF_A_USER, len(user_I))
    below_IS = pool.prefix_RSK[LOGGING.name][request_I, :, -1].cumsum(axis=1)
    order_I = (below_IS < (rng.random(len(user_I)) * below_IS[:, -1])[:, None]).sum(axis=1)
    click_IK = pool.click_RSK[request_I, order_I]
    reward_IK, is_there_I = np.zeros_like(click_IK), np.ones(len(user_I), np.bool_)
    for place in range(SHOWN):
        is_clicked_I = is_there_I & (rng.random(len(user_I)) < click_IK[:, place])
        reward_IK[:, place] = is_clicked_I
        is_there_I &= rng.random(len(user_I)) < np.where(is_clicked_I, GOES_ON[1], GOES_ON[0])
    logged_IK = pool.prefix_RSK[LOGGING.name][request_I, order_I]
    above_IK = np.column_stack([np.ones(len(user_I)), logged_IK[:, :-1]])
    return {
        policy.name: estimate(
            Explored(
                pool.prefix_RSK[policy.name][request_I, order_I] / logged_IK,
                reward_IK,
                pool.predicted_RSK[request_I, order_I],
                pool.expected_RSK[policy.name][request_I, order_I] / above_IK,
                pool.own_RK[policy.name][request_I],
                user_I,
            )
        )
        for policy in POLICIES
    }


def _logit(chance: Floats) -> Floats:
    logit: Floats = np.log(chance) - np.log1p(-chance)
    return logit


def _probability(logit: Floats) -> Floats:
    probability: Floats = 1 / (1 + np.exp(-logit))
    return probability


class Tally:
    """Replications of one policy with so many users."""

    def __init__(self) -> None:
        self.replications = 0
        self.refused_above = 0
        self.effective: list[float] = []
        self.covered = {"self_normalised": 0, "doubly_robust": 0}
        self.half_widths: dict[str, list[float]] = {"self_normalised": [], "doubly_robust": []}

    def add(self, found: Estimates, value: float) -> None:
        """Add one replication, whose true value is known."""
        self.replications += 1
        self.effective.append(found.effective)
        for name in self.covered:
            one = getattr(found, name)
            if one is None:
                self.refused_above += found.effective >= LEAST_EFFECTIVE
                continue
            self.covered[name] += one.low <= value <= one.high
            self.half_widths[name].append((one.high - one.low) / 2)

    @property
    def estimated(self) -> int:
        """Replications that were not refused."""
        return len(self.half_widths["self_normalised"])

    def document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "replications": self.replications,
            "estimated": self.estimated,
            "median_effective": float(np.median(self.effective)),
            "covered": self.covered,
            "mean_half_width": {n: float(np.mean(w)) if w else None for n, w in self.half_widths.items()},
        }


def draws_of_one_request(num: int, seed: int) -> dict[str, float]:
    """Chi-square of drawn orders against their logged probabilities, with cap and mmr on."""
    rng = np.random.default_rng([seed, 3])
    stages = Select.model_validate({"cap": CAP, "mmr": MMR, "explore": {**EXPLORE, "temperature": 2.0}})
    utility_N, group_N = rng.normal(size=CANDIDATES), np.arange(CANDIDATES) % 3
    vector_ND = rng.normal(size=(CANDIDATES, 8)).astype(np.float32)
    counts: Counter[bytes] = Counter()
    logged: dict[bytes, float] = {}
    for number in range(num):
        draws = Draws(f"request-{number}", str(seed))
        drawn = select(stages, utility_N, group_N=group_N, vector_ND=vector_ND, top_k=SHOWN, draws=draws)
        assert drawn.propensity_K is not None
        order = drawn.order_K.tobytes()
        counts[order] += 1
        logged[order] = float(drawn.propensity_K.prod())
    # Orders that a fair draw would have too seldom for the law of chi-square are one class.
    common = [order for order, probability in logged.items() if num * probability >= 10]
    observed = [counts[order] for order in common]
    expected = [num * logged[order] for order in common]
    rest = num - sum(observed), num - math.fsum(expected)
    if rest[1] >= 10:
        observed, expected = [*observed, rest[0]], [*expected, rest[1]]
    found = stats.chisquare(observed, np.array(expected) * (sum(observed) / math.fsum(expected)))
    return {"draws": num, "orders": len(observed), "chi_square": float(found.statistic), "p": float(found.pvalue)}


def main() -> None:
    """Simulate and write the results."""
    parser = argparse.ArgumentParser(prog="make bench-off-policy")
    parser.add_argument("--replications", type=int, default=500, help="logs of each number of users (default 500)")
    parser.add_argument("--draws", type=int, default=1_000_000, help="draws of one request's order (default 1,000,000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng([options.seed, 4])
    pool, activity_U = pool_of(options.seed), rng.lognormal(0.0, SPREAD_OF_ACTIVITY, USERS) + 1
    values = {policy.name: true_value(pool, policy, activity_U) for policy in POLICIES}
    tallies = {(policy.name, users): Tally() for users in REPLICATION_USERS for policy in POLICIES}
    for users in REPLICATION_USERS:
        for _ in range(options.replications):
            for name, found in replicate(pool, activity_U, users, rng).items():
                tallies[name, users].add(found, values[name])
    draws = draws_of_one_request(options.draws, options.seed)
    data = {
        "draws": draws,
        "values": values,
        "replications": [{"policy": name, "users": n, **one.document()} for (name, n), one in tallies.items()],
    }
    print(report.write("off_policy", "Policies estimated from explored requests", _body(draws, values, tallies), data,
                       "make bench-off-policy"))  # fmt: skip


def _body(draws: dict[str, float], values: dict[str, float], tallies: dict[tuple[str, int], Tally]) -> list[str]:
    whole = list(tallies.values())
    estimated = sum(one.estimated for one in whole)
    pooled = {name: sum(one.covered[name] for one in whole) / estimated for name in whole[0].covered}
    refused = sum(one.replications - one.estimated for one in whole)
    head = ["policy", "true value", "users", "effective users, median", "refused", "covered, self-normalised",
            "covered, doubly robust", "half-width, self-normalised", "half-width, doubly robust"]  # fmt: skip
    rows = []
    for (name, users), one in tallies.items():
        covered = [f"{count / one.estimated:.1%}" if one.estimated else "-" for count in one.covered.values()]
        widths = [f"{np.mean(width):.4f}" if width else "-" for width in one.half_widths.values()]
        share = 1 - one.estimated / one.replications
        effective = f"{np.median(one.effective):,.0f}"
        rows.append([name, f"{values[name]:.4f}", f"{users:,}", effective, f"{share:.0%}", *covered, *widths])
    return [
        f"{whole[0].replications:,} simulated logs for each number of users, of requests that one policy explored at",
        f"{SHOWN} places. True values, in clicks a request, are exact. Of {estimated:,} intervals of 95 %, with at",
        f"least {LEAST_EFFECTIVE:.0f} effective users, all policies together, {pooled['self_normalised']:.1%} of the",
        f"self-normalised and {pooled['doubly_robust']:.1%} of the doubly robust ones cover the true value.",
        f"{refused:,} estimates were refused, and {sum(one.refused_above for one in whole)} of them had",
        f"{LEAST_EFFECTIVE:.0f} effective users or more.",
        "",
        *report.table(head, rows),
        "",
        f"Draws: {draws['draws']:,.0f} orders of one request, with cap and mmr on, against the probabilities logged",
        f"with them: chi-square {draws['chi_square']:.1f} over {draws['orders']:.0f} classes, p = {draws['p']:.2f}.",
    ]


if __name__ == "__main__":
    run_benchmark(main)
