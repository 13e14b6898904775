"""`make bench-judge`: how often the judge is wrong when somebody looks every hour, and how many users it takes.

python -m benchmarks.judge_simulation

Simulated canaries of a week. Users come at their own rates and come back, so that the frequent ones are seen first. The
value of one is what happens within 24 hours of exposure. A worse canary has that share of the clicks less, drawn click
by click. The judge's own functions look at the end of every hour. A run counts as wrong where it was wrong at any look.

Shapes: U users, L looks.
"""

import argparse
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks import report
from benchmarks.command import run_benchmark
from model.tasks import BinaryTask
from training.judge.guards import faults_of_answers
from training.judge.sequences import Floats, Moments
from training.judge.settings import JudgeSettings
from training.judge.users import ArmUsers, Observed, TaskSums
from training.judge.verdict import MAX_SKEWNESS, MIN_USERS, VALUE_SHARE, judge, users_for, value_bounds
from training.tasks import learned

HOURS = 7 * 24
HORIZON = 24
SETTINGS = JudgeSettings.from_mapping({"horizon": "24h", "at_most": "7d"}, "bench")
CLICK = learned(BinaryTask(name="click", kind="binary", label="is_click"))
BANK = 1_000_000
GUARDED_USERS = 12_000
ROWS_A_VISIT = 10
VISITS_A_DAY = 0.5
EQUAL, AT_LIMIT, WORSE = 0.0, -SETTINGS.max_worse, -0.1
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Population:
    """Users of a feed. `activity` and `taste` are shapes of gamma and beta laws: small ones are uneven. `worth` is the
    spread of the logarithm of what a user's click is worth."""

    name: str
    users: int
    share: float
    activity: float
    rate: float
    taste: float
    worth: float


POPULATIONS = (
    Population("usual feed, a tenth in the canary", 160_000, 0.1, 1.0, 0.2, 1.5, 0.7),
    Population("usual feed, half in the canary", 50_000, 0.5, 1.0, 0.2, 1.5, 0.7),
    Population("few heavy users have most of the value", 110_000, 0.1, 0.4, 0.1, 0.6, 1.2),
    Population("few users, heavy ones, a fiftieth in the canary", 12_000, 0.02, 0.4, 0.1, 0.6, 1.2),
)


class Users(NamedTuple):
    """Users who are mature within the week, with the hour at which they are."""

    hour_U: NDArray[np.int64]
    rows_U: Floats
    clicks_U: NDArray[np.int64]
    worth_U: Floats
    taste_U: Floats

    @property
    def values_U(self) -> Floats:
        """Realised values."""
        return self.clicks_U * self.worth_U


def bank_of(population: Population, rng: np.random.Generator) -> Users:
    """A feed's users, from whom every run draws its own."""
    visits_a_day_U = rng.gamma(population.activity, VISITS_A_DAY / population.activity, BANK)
    first_U = rng.exponential(1.0, BANK) / np.maximum(visits_a_day_U, 1e-9) * 24
    hour_U = np.ceil(first_U + HORIZON)
    is_mature_U = hour_U <= HOURS
    visits_a_day_U = visits_a_day_U[is_mature_U]
    rows_U = ROWS_A_VISIT * (1 + rng.poisson(visits_a_day_U))
    taste_U = rng.beta(population.taste, population.taste * (1 / population.rate - 1), len(rows_U))
    clicks_U, worth_U = rng.binomial(rows_U, taste_U), rng.lognormal(0.0, population.worth, len(rows_U))
    return Users(hour_U[is_mature_U].astype(np.int64), rows_U.astype(np.float64), clicks_U, worth_U, taste_U)


def drawn(bank: Users, users: int, share: float, rng: np.random.Generator) -> tuple[Users, Users]:
    """The canary and stable of one run. `users` of the feed are drawn, some of whom never come in the week."""
    mature = len(bank.hour_U) / BANK
    canary, stable, _ = rng.multinomial(users, (share * mature, (1 - share) * mature, 1 - mature))
    return _picked(bank, canary, rng), _picked(bank, stable, rng)


def _picked(bank: Users, count: int, rng: np.random.Generator) -> Users:
    places = rng.integers(0, len(bank.hour_U), count)
    return Users(
        bank.hour_U[places], bank.rows_U[places], bank.clicks_U[places], bank.worth_U[places], bank.taste_U[places]
    )


class Looks(NamedTuple):
    """At the end of every hour: users of the canary, and whether the value withdraws, promotes."""

    canary_L: Floats
    withdraws_L: Bools
    promotes_L: Bools


def moments_of(hour_U: NDArray[np.int64], values_U: Floats) -> Moments:
    """Moments at all looks."""
    powers = (np.ones(len(values_U)), values_U, values_U**2, values_U**3)
    sums = [np.cumsum(np.bincount(hour_U, power_U, HOURS + 1)).astype(np.float64) for power_U in powers]
    return Moments.of_sums(sums[0], sums[1], sums[2], sums[3])


def worsened(canary: Users, effect: float, rng: np.random.Generator) -> Moments:
    """Moments of a canary with a true relative `effect`: so many clicks less, drawn click by click."""
    return moments_of(canary.hour_U, rng.binomial(canary.clicks_U, 1 + effect) * canary.worth_U)


def looked_at(canary: Moments, stable: Moments) -> Looks:
    """The judge's bounds at all looks."""
    bounds = value_bounds(canary, stable, SETTINGS)
    is_read_L = (canary.users >= MIN_USERS) & (stable.users >= MIN_USERS) & np.isfinite(bounds.upper)
    is_read_L &= np.abs(bounds.skewness) <= MAX_SKEWNESS
    with np.errstate(invalid="ignore"):
        withdraws_L = is_read_L & (bounds.upper < 0)
        return Looks(canary.users, withdraws_L, is_read_L & ~withdraws_L & (bounds.lower > -SETTINGS.max_worse))


def _sums_of(users: Users, answered: float) -> TaskSums:
    """Rows of an arm whose answers are the users' tastes, off by a factor on the odds."""
    odds_U = users.taste_U / (1 - users.taste_U) * answered
    answers_U = np.clip(odds_U / (1 + odds_U), 1e-6, 1 - 1e-6)
    rows_U, clicks_U = users.rows_U, users.clicks_U.astype(np.float64)
    losses_U = -(clicks_U * np.log(answers_U) + (rows_U - clicks_U) * np.log1p(-answers_U))
    # The square of a click is itself, and so is its moment.
    columns = [answers_U * rows_U, clicks_U, answers_U**2 * rows_U, clicks_U, answers_U * clicks_U, clicks_U]
    return TaskSums(rows_U, losses_U, *(column_U[:, None] for column_U in columns))


def is_withdrawn_by_guards(canary: Users, stable: Users, answered: float) -> bool:
    """True where the answers alone withdraw the canary, at any look."""
    alpha, kinds = SETTINGS.alpha * (1 - VALUE_SHARE), {"click": CLICK}
    arms = [(users.hour_U, _sums_of(users, off)) for users, off in ((canary, answered), (stable, 1.0))]
    for hour in range(HORIZON, HOURS + 1):
        seen = [{"click": sums.of_users(hour_U <= hour)} for hour_U, sums in arms]
        if faults_of_answers(seen[0], seen[1], kinds, SETTINGS.guards, alpha)[0]:
            return True
    return False


def check_looks(canary: Users, stable: Users) -> None:
    """Have the verdict itself look at some hours of a run, and compare. Raises ValueError where the two differ."""
    found = looked_at(*(moments_of(users.hour_U, users.values_U) for users in (canary, stable)))
    for hour in range(HORIZON, HOURS + 1, 24):
        one_U, other_U = (users.values_U[users.hour_U <= hour] for users in (canary, stable))
        observed = Observed(ArmUsers(one_U), ArmUsers(other_U), (len(one_U), len(other_U)), None)
        decision = judge(observed, SETTINGS, {}).decision
        expected = "withdraw" if found.withdraws_L[hour] else "promote" if found.promotes_L[hour] else "wait"
        if decision != expected:
            raise ValueError(f"hour {hour}: the verdict is {decision}, its bounds say {expected}")


def measured(population: Population, runs: int, seed: int) -> dict[str, Any]:
    """Shares of wrong runs, and users until the verdict."""
    rng = np.random.default_rng(seed)
    bank = bank_of(population, rng)
    check_looks(*drawn(bank, population.users, population.share, rng))
    counts = dict.fromkeys(("withdrawn", "withdrawn_plain", "promoted_at_limit", "promoted", "found"), 0)
    until: list[float] = []
    for _ in range(runs):
        canary, other = drawn(bank, population.users, population.share, rng)
        stable, same = moments_of(other.hour_U, other.values_U), moments_of(canary.hour_U, canary.values_U)
        equal = looked_at(same, stable)
        limit, worse = (looked_at(worsened(canary, effect, rng), stable) for effect in (AT_LIMIT, WORSE))
        plain = looked_at(*(replace(arm, third=np.zeros(HOURS + 1)) for arm in (same, stable)))
        counts["withdrawn"] += bool(equal.withdraws_L.any())
        counts["withdrawn_plain"] += bool(plain.withdraws_L.any())
        counts["promoted_at_limit"] += _is_before(limit.promotes_L, limit.withdraws_L)
        counts["promoted"] += _is_before(equal.promotes_L, equal.withdraws_L)
        counts["found"] += _is_before(worse.withdraws_L, worse.promotes_L)
        until.append(float(worse.canary_L[worse.withdraws_L.argmax()]) if worse.withdraws_L.any() else math.inf)
    cv, ratio = float(bank.values_U.std() / bank.values_U.mean()), population.share / (1 - population.share)
    variation = cv**2 * (1 + ratio)
    fixed = (stats.norm.isf(SETTINGS.alpha) + stats.norm.ppf([0.5, 0.8])) / -WORSE
    return {
        "population": population.name,
        "share": population.share,
        "runs": runs,
        "variation_coefficient": cv,
        "shares": {name: count / runs for name, count in counts.items()},
        "users_to_withdraw": [_known(float(np.quantile(until, q, method="higher"))) for q in (0.5, 0.8)],
        "users_of_one_look": [math.ceil(variation * one**2) for one in fixed],
        "users_needed": users_for(variation, SETTINGS.max_worse),
    }


def _is_before(one_L: Bools, other_L: Bools) -> bool:
    return bool(one_L.any() and (not other_L.any() or one_L.argmax() < other_L.argmax()))


def _known(users: float) -> float | None:
    return users if math.isfinite(users) else None


def guards_measured(runs: int, seed: int) -> dict[str, Any]:
    """Shares of runs that guards withdraw, of equal answers and of answers that are far off."""
    rng = np.random.default_rng(seed)
    bank = bank_of(POPULATIONS[0], rng)
    of_case = {1.0: runs, 2.0: runs // 10}
    shares = {
        f"odds times {off:g}": sum(
            is_withdrawn_by_guards(*drawn(bank, GUARDED_USERS, POPULATIONS[0].share, rng), off) for _ in range(count)
        )
        / count
        for off, count in of_case.items()
    }
    return {"runs": list(of_case.values()), "withdrawn": list(shares.values())}


def main() -> None:
    """Simulate and write the results."""
    parser = argparse.ArgumentParser(prog="make bench-judge")
    parser.add_argument("--runs", type=int, default=1000, help="simulated canaries of each population (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = [measured(population, options.runs, options.seed + place) for place, population in enumerate(POPULATIONS)]
    guards = guards_measured(options.runs, options.seed + 100)
    rows = [
        [
            one["population"],
            f"{one['variation_coefficient']:.2f}",
            f"{one['shares']['withdrawn']:.1%}",
            f"{one['shares']['withdrawn_plain']:.1%}",
            f"{one['shares']['promoted_at_limit']:.1%}",
            f"{one['shares']['promoted']:.0%}",
            f"{one['shares']['found']:.0%}",
            *(f"{users:,.0f}" if users is not None else "not in a week" for users in one["users_to_withdraw"]),
            *(f"{users:,}" for users in one["users_of_one_look"]),
        ]
        for one in found
    ]
    head = [
        "users", "variation", "false withdrawals", "the same without Hall's correction", "false promotions",
        "equal, promoted", "10 % worse, withdrawn", "by canary users, median", "by canary users, 80 %",
        "one look, power 50 %", "one look, power 80 %",
    ]  # fmt: skip
    runs, noise = options.runs, 1.96 * math.sqrt(0.05 * 0.95 / options.runs)
    body = [
        f"{runs:,} simulated canaries of a week for each row. The judge runs at the end of every hour. Settings",
        f"are the defaults: max_worse {SETTINGS.max_worse:.0%}, horizon {HORIZON} hours, alpha {SETTINGS.alpha:.0%}. A",
        "promotion is false of a canary that is worse by max_worse, and a withdrawal of one that is equal. A share of",
        f"5 % is known to {noise * 100:.1f} points.",
        "",
        *report.table(head, rows),
        "",
        "`One look` is the one-sided test of the same level at a number of users that was fixed before.",
        "",
        f"Guards (NE and calibration of one task, {GUARDED_USERS:,} users): {guards['withdrawn'][0]:.1%} of "
        f"{guards['runs'][0]:,} equal canaries are withdrawn, and {guards['withdrawn'][1]:.0%} of "
        f"{guards['runs'][1]:,} whose odds are twice the true ones.",
    ]
    data = {"populations": found, "guards": guards}
    print(report.write("judge", "The judge, looked at every hour", body, data, "make bench-judge"))


if __name__ == "__main__":
    run_benchmark(main)
