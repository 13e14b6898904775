"""`make bench-judge`: how often the judge is wrong when somebody looks every hour, and how many users it takes.

python -m benchmarks.judge_simulation

Simulated canaries of a week. Users come at their own rates and come back, so that the frequent ones are seen first. The
value of one is what happens within 24 hours of exposure. A worse canary has that share of the clicks less, drawn click
by click. The judge's own functions look at the end of every hour. A run counts as wrong where it was wrong at any look.

Shapes: U users in the order in which they mature, L looks.
"""

import argparse
import math
from collections.abc import Callable
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


class Run(NamedTuple):
    """Users of one canary that are mature within the week."""

    hour_U: NDArray[np.int64]
    is_canary_U: Bools
    rows_U: Floats
    clicks_U: NDArray[np.int64]
    worth_U: Floats
    taste_U: Floats


def drawn(population: Population, rng: np.random.Generator) -> Run:
    """A run with equal arms."""
    users = population.users
    visits_a_day_U = rng.gamma(population.activity, VISITS_A_DAY / population.activity, users)
    first_U = rng.exponential(1.0, users) / np.maximum(visits_a_day_U, 1e-9) * 24
    hour_U = np.ceil(first_U + HORIZON)
    order = np.argsort(hour_U, kind="stable")
    order = order[hour_U[order] <= HOURS]
    visits_a_day_U = visits_a_day_U[order]
    rows_U = ROWS_A_VISIT * (1 + rng.poisson(visits_a_day_U))
    taste_U = rng.beta(population.taste, population.taste * (1 / population.rate - 1), len(order))
    return Run(
        hour_U=hour_U[order].astype(np.int64),
        is_canary_U=rng.random(len(order)) < population.share,
        rows_U=rows_U.astype(np.float64),
        clicks_U=rng.binomial(rows_U, taste_U),
        worth_U=rng.lognormal(0.0, population.worth, len(order)),
        taste_U=taste_U,
    )


class Looks(NamedTuple):
    """At the end of every hour: users of the canary, and whether the value withdraws, promotes."""

    canary_L: Floats
    withdraws_L: Bools
    promotes_L: Bools


def looked_at(run: Run, effect: float, rng: np.random.Generator, *, with_skewness: bool = True) -> Looks:
    """The judge's bounds at all looks of a run whose canary has a true relative `effect`."""
    clicks_U = run.clicks_U.copy()
    clicks_U[run.is_canary_U] = rng.binomial(clicks_U[run.is_canary_U], 1 + effect)
    values_U = clicks_U * run.worth_U
    arms = []
    for is_in_U in (run.is_canary_U, ~run.is_canary_U):
        of_arm_U, hour_U = values_U[is_in_U], run.hour_U[is_in_U]
        powers = (np.ones(len(of_arm_U)), of_arm_U, of_arm_U**2, of_arm_U**3)
        sums = [np.cumsum(np.bincount(hour_U, power_U, HOURS + 1)).astype(np.float64) for power_U in powers]
        arm = Moments.of_sums(sums[0], sums[1], sums[2], sums[3])
        arms.append(arm if with_skewness else replace(arm, third=np.zeros(HOURS + 1)))
    bounds = value_bounds(arms[0], arms[1], SETTINGS)
    is_read_L = (arms[0].users >= MIN_USERS) & (arms[1].users >= MIN_USERS) & np.isfinite(bounds.upper)
    is_read_L &= np.abs(bounds.skewness) <= MAX_SKEWNESS
    with np.errstate(invalid="ignore"):
        withdraws_L = is_read_L & (bounds.upper < 0)
        return Looks(arms[0].users, withdraws_L, is_read_L & ~withdraws_L & (bounds.lower > -SETTINGS.max_worse))


def _arm(run: Run, is_in_U: Bools, answered: float) -> ArmUsers:
    """An arm with answers that are the users' tastes, off by a factor on the odds."""
    odds_U = run.taste_U / (1 - run.taste_U) * answered
    answers_U = np.clip(odds_U / (1 + odds_U), 1e-6, 1 - 1e-6)
    rows_U, clicks_U = run.rows_U, run.clicks_U.astype(np.float64)
    losses_U = -(clicks_U * np.log(answers_U) + (rows_U - clicks_U) * np.log1p(-answers_U))
    columns = [answers_U * rows_U, clicks_U, answers_U**2 * rows_U, answers_U * clicks_U, clicks_U]
    sums = TaskSums(rows_U, losses_U, *(column_U[:, None] for column_U in columns))
    return ArmUsers((run.clicks_U * run.worth_U)[is_in_U], {"click": sums.of_users(is_in_U)})


def is_withdrawn_by_guards(run: Run, answered: float) -> bool:
    """True where the answers alone withdraw the canary, at any look."""
    canary, stable = _arm(run, run.is_canary_U, answered), _arm(run, ~run.is_canary_U, 1.0)
    hours = [run.hour_U[is_in_U] for is_in_U in (run.is_canary_U, ~run.is_canary_U)]
    for hour in range(HORIZON, HOURS + 1):
        seen = [of_arm <= hour for of_arm in hours]
        tasks = [arm.tasks["click"].of_users(is_in) for arm, is_in in zip((canary, stable), seen, strict=True)]
        alpha = SETTINGS.alpha * (1 - VALUE_SHARE)
        kinds = {"click": CLICK}
        if faults_of_answers({"click": tasks[0]}, {"click": tasks[1]}, kinds, SETTINGS.guards, alpha)[0]:
            return True
    return False


def check_looks(population: Population, rng: np.random.Generator) -> None:
    """Have the verdict itself look at some hours of a run, and compare. Raises ValueError where the two differ."""
    run = drawn(population, rng)
    found = looked_at(run, EQUAL, rng)
    # A binomial of all clicks, each kept, is the clicks: the same values are judged.
    for hour in range(HORIZON, HOURS + 1, 24):
        is_in_U = run.hour_U <= hour
        values_U = run.clicks_U * run.worth_U
        arms = [ArmUsers(values_U[is_in_U & of_arm_U]) for of_arm_U in (run.is_canary_U, ~run.is_canary_U)]
        observed = Observed(arms[0], arms[1], (len(arms[0].values_U), len(arms[1].values_U)), None)
        decision = judge(observed, SETTINGS, {}).decision
        expected = "withdraw" if found.withdraws_L[hour] else "promote" if found.promotes_L[hour] else "wait"
        if decision != expected:
            raise ValueError(f"{population.name}, hour {hour}: the verdict is {decision}, its bounds say {expected}")


def measured(population: Population, runs: int, seed: int) -> dict[str, Any]:
    """Shares of wrong runs, and users until the verdict."""
    rng = np.random.default_rng(seed)
    check_looks(population, rng)
    counts = dict.fromkeys(("withdrawn", "withdrawn_plain", "promoted_at_limit", "promoted", "found"), 0)
    until: list[float] = []
    variations: list[float] = []
    for _ in range(runs):
        run = drawn(population, rng)
        equal, limit, worse = (looked_at(run, effect, rng) for effect in (EQUAL, AT_LIMIT, WORSE))
        plain = looked_at(run, EQUAL, rng, with_skewness=False)
        counts["withdrawn"] += bool(equal.withdraws_L.any())
        counts["withdrawn_plain"] += bool(plain.withdraws_L.any())
        counts["promoted_at_limit"] += _is_before(limit.promotes_L, limit.withdraws_L)
        counts["promoted"] += _is_before(equal.promotes_L, equal.withdraws_L)
        counts["found"] += _is_before(worse.withdraws_L, worse.promotes_L)
        until.append(float(worse.canary_L[worse.withdraws_L.argmax()]) if worse.withdraws_L.any() else math.inf)
        values_U = run.clicks_U * run.worth_U
        variations.append(float(values_U.std() / values_U.mean()))
    cv, ratio = float(np.mean(variations)), population.share / (1 - population.share)
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
    """Shares of runs that guards withdraw: of equal answers, of answers at the limit, and of answers far off."""
    rng = np.random.default_rng(seed)
    population = replace(POPULATIONS[0], users=12_000)
    cases: dict[str, Callable[[], bool]] = {
        "equal": lambda: is_withdrawn_by_guards(drawn(population, rng), 1.0),
        "odds times 2": lambda: is_withdrawn_by_guards(drawn(population, rng), 2.0),
    }
    of_case = {"equal": runs, "odds times 2": runs // 10}
    shares = {
        name: sum(is_withdrawn() for _ in range(of_case[name])) / of_case[name] for name, is_withdrawn in cases.items()
    }
    return {"runs": of_case, "withdrawn": shares}


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
        f"{runs:,} simulated canaries of a week for each row. The verdict is asked at the end of every hour. Settings",
        f"are the defaults: max_worse {SETTINGS.max_worse:.0%}, horizon {HORIZON} hours, alpha {SETTINGS.alpha:.0%}. A",
        "promotion is false of a canary that is worse by max_worse, and a withdrawal of one that is equal. A share of",
        f"5 % is known to {noise * 100:.1f} points.",
        "",
        *report.table(head, rows),
        "",
        "`One look` is the one-sided test of the same level at a number of users that was fixed before.",
        "",
        f"Guards (NE and calibration of one task, 12,000 users): {guards['withdrawn']['equal']:.1%} of "
        f"{guards['runs']['equal']:,} equal canaries are withdrawn, and {guards['withdrawn']['odds times 2']:.0%} of "
        f"{guards['runs']['odds times 2']:,} whose odds are twice the true ones.",
    ]
    data = {"populations": found, "guards": guards}
    print(report.write("judge", "The judge, looked at every hour", body, data, "make bench-judge"))


if __name__ == "__main__":
    run_benchmark(main)
