"""Contrasts of arms: by metric the relative difference from the control arm, with intervals, and what is called.

In: what each user did. Out: `Analysis`. One observation a user and metric. Where users were there before the start,
what they did then explains a part of the spread, which is taken out (CUPED: Deng, Xu, Kohavi and Walker, "Improving the
sensitivity of online controlled experiments by utilizing pre-experiment data", WSDM 2013). Covariates are the metric
before the start and whether the user was there, their slopes pooled over arms.

Bounds are those of training/judge/sequences.py: sequences, which hold at every look together, and fixed ones, which
hold once. An experiment with an `end` is called once, after it, by the fixed ones. One without is called by sequences,
at any look. Differences of all metrics and arms are called together (Holm, "A simple sequentially rejective multiple
test procedure", 1979).

Shapes: U users, X covariates.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from training.experiment.question import Question
from training.experiment.users import VALUE, Users
from training.judge.sample_ratio import sample_ratio_evidence
from training.judge.sequences import Bounds, Moments, fixed_difference, relative_difference
from training.judge.verdict import MAX_MIXED, MAX_SKEWNESS, MIN_USERS
from training.tasks.learned import Floats
from training.wording import counted

ALPHA = 0.05
# Sequences are narrowest where they tell a difference of 5 %.
WIDTH = 0.05
WIDTHS = (0.05, 0.02, 0.01)
# Arms that are drawn by their shares are so far from them once in a hundred experiments, at any look.
RATIO_EVIDENCE = 100.0
# Of a normal distribution, 95 % on both sides.
_SURE = 1.96

Method = Literal["sequence", "fixed", "none"]
# Of a label that has no weight in the value nobody said what is better.
Call = Literal["better", "worse", "higher", "lower"]


class Interval(NamedTuple):
    """A relative difference with its 95 % interval, infinite where nothing bounds it."""

    value: float
    low: float
    high: float


class Effect(NamedTuple):
    """Relative difference of the value so many days after exposure, with the users of control and arm."""

    day: int
    arm: str
    users: tuple[int, int]
    difference: Interval | None


@dataclass(frozen=True, slots=True)
class Contrast:
    """An arm against the control arm in one metric: users and means of both, control first.

    `narrowing` is the share of the variance that users' past takes out. `needed` has the users of the arm at which a
    fixed interval has the half-width. `doubt` says why it is not called."""

    arm: str
    metric: str
    users: tuple[int, int]
    means: tuple[float, float]
    sequence: Interval | None
    fixed: Interval | None
    narrowing: float | None
    needed: dict[str, int]
    doubt: str | None = None
    called: Call | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """Contrasts, the evidence against the sample ratio, and faults for which nothing is called."""

    contrasts: list[Contrast]
    ratio_evidence: float
    method: Method
    faults: list[str]
    too_few: str | None
    days: list[Effect]


class _Pair(NamedTuple):
    control: Moments
    arm: Moments


def analyse(users: Users, question: Question) -> Analysis:
    """The analysis at this look."""
    arms = question.arms
    evidence = sample_ratio_evidence(list(users.exposed.values()), list(question.shares.values()))
    faults = list(_faults(users, evidence, question))
    too_few = _too_few(users, question)
    method: Method = "sequence" if question.end is None else "fixed" if users.is_over else "none"
    pairs: dict[tuple[str, str], _Pair] = {}
    contrasts: dict[tuple[str, str], Contrast] = {}
    for metric in users.labels:
        adjusted_U, narrowing = adjusted(users, metric)
        moments = [Moments.of_values(adjusted_U[users.arm_U == place]) for place in range(len(arms))]
        for arm, of_arm in zip(arms[1:], moments[1:], strict=True):
            key = arm, metric
            pairs[key] = _Pair(moments[0], of_arm)
            contrasts[key] = _contrast(arm, metric, pairs[key], narrowing)
    if not faults and too_few is None and method != "none":
        clear = {key: pair for key, pair in pairs.items() if contrasts[key].doubt is None}
        for key in called(clear, len(pairs), _sequence if method == "sequence" else fixed_difference):
            bounds = contrasts[key].sequence if method == "sequence" else contrasts[key].fixed
            assert bounds is not None, "a doubt otherwise"
            call = _call(key[1], question, is_higher=bounds.value > 0)
            contrasts[key] = replace(contrasts[key], called=call)
    return Analysis(list(contrasts.values()), evidence, method, faults, too_few, list(_days(users, arms)))


def _call(metric: str, question: Question, *, is_higher: bool) -> Call:
    weight = 1.0 if metric == VALUE else (question.realised or {}).get(metric, 0.0)
    if weight == 0:
        return "higher" if is_higher else "lower"
    return "better" if is_higher == (weight > 0) else "worse"


def adjusted(users: Users, metric: str) -> tuple[Floats, float | None]:
    """values_U of a metric less what users' past explains, and the share of the variance within arms that this is."""
    values_U = users.labels[metric]
    if users.before is None or not users.was_there_U.any():
        return values_U, None
    covariates_UX = np.stack([users.before[metric], users.was_there_U.astype(np.float64)], axis=1)
    within_UX, within_U = covariates_UX.copy(), values_U.copy()
    for place in np.unique(users.arm_U):
        is_in_U = users.arm_U == place
        within_UX[is_in_U] -= within_UX[is_in_U].mean(axis=0)
        within_U[is_in_U] -= within_U[is_in_U].mean()
    slopes_X = np.linalg.lstsq(within_UX, within_U, rcond=None)[0]
    spread = float(within_U @ within_U)
    rest_U = within_U - within_UX @ slopes_X
    narrowing = 1 - float(rest_U @ rest_U) / spread if spread > 0 else 0.0
    found: Floats = values_U - (covariates_UX - covariates_UX.mean(axis=0)) @ slopes_X
    return found, narrowing


def called(
    pairs: dict[tuple[str, str], _Pair], tested: int, bounds_of: Callable[[Moments, Moments, float], Bounds]
) -> set[tuple[str, str]]:
    """Differences that are surely not 0, of so many tested, by Holm's steps. Each that is found lets the next ones be
    tested at a larger level."""
    found: set[tuple[str, str]] = set()
    while True:
        level = ALPHA / (tested - len(found)) if tested > len(found) else ALPHA
        new = set()
        for key, pair in pairs.items():
            bounds = bounds_of(pair.arm, pair.control, level)
            if key not in found and (float(bounds.lower) > 0 or float(bounds.upper) < 0):
                new.add(key)
        if not new:
            return found
        found |= new


def _sequence(arm: Moments, control: Moments, alpha: float) -> Bounds:
    return relative_difference(arm, control, alpha=(alpha / 2, alpha / 2), width=(WIDTH, WIDTH))


def _contrast(arm: str, metric: str, pair: _Pair, narrowing: float | None) -> Contrast:
    sequence, fixed = (bounds_of(pair.arm, pair.control, ALPHA) for bounds_of in (_sequence, fixed_difference))
    variation = _variation(pair)
    doubt = None
    if not (np.isfinite(fixed.lower) and np.isfinite(fixed.upper)):
        doubt = "the control arm's mean is not surely above 0, so that nothing is relative to it"
    elif abs(float(fixed.skewness)) > MAX_SKEWNESS:
        doubt = f"few users have most of it (skewness of the difference {float(fixed.skewness):.2f})"
    return Contrast(
        arm,
        metric,
        (int(pair.control.users), int(pair.arm.users)),
        (float(pair.control.mean), float(pair.arm.mean)),
        _interval(sequence),
        _interval(fixed),
        narrowing,
        {} if variation is None else {f"{width:g}": math.ceil((_SURE / width) ** 2 * variation) for width in WIDTHS},
        doubt,
    )


def _variation(pair: _Pair) -> float | None:
    """Squared error of the relative difference, times the users of the arm. None where it is not defined."""
    control, arm = pair
    if min(int(control.users), int(arm.users)) < MIN_USERS or not float(control.mean) > 0:
        return None
    share = float(arm.users / control.users)
    return float((arm.variance + share * (arm.mean / control.mean) ** 2 * control.variance) / control.mean**2)


def _interval(bounds: Bounds) -> Interval | None:
    values = (float(bounds.estimate), float(bounds.lower), float(bounds.upper))
    return None if any(map(math.isnan, values)) else Interval(*values)


def _faults(users: Users, evidence: float, question: Question) -> Iterator[str]:
    if evidence > RATIO_EVIDENCE:
        shown = ", ".join(
            f"{arm} {count:,} ({question.shares[arm]:.1%} was said)" for arm, count in users.exposed.items()
        )
        yield (
            f"the arms are not as large as they were to be: {shown}; find what loses users of one arm before anything "
            "else is read"
        )
    if users.mixed > MAX_MIXED * sum(users.exposed.values()):
        yield (
            f"several arms answered {counted(users.mixed, 'user')}: the layer's unit is not the user of the logs, or "
            "arms were changed by hand"
        )


def _too_few(users: Users, question: Question) -> str | None:
    mature = {arm: int((users.arm_U == place).sum()) for place, arm in enumerate(question.arms)}
    few = {arm: count for arm, count in mature.items() if count < MIN_USERS}
    if not few:
        return None
    shown = ", ".join(f"{arm} has {count:,}" for arm, count in few.items())
    share = min(question.shares.values())
    return (
        f"an arm takes {MIN_USERS} users whose horizon is over before anything can be said, and {shown}; with these "
        f"shares that is {math.ceil(MIN_USERS / share):,} users of the experiment"
    )


def _days(users: Users, arms: Sequence[str]) -> Iterator[Effect]:
    """Relative difference of the value by day since exposure, as far as both arms have users who were seen so long."""
    for day, (arm_U, values_U) in enumerate(users.days):
        moments = [Moments.of_values(values_U[arm_U == place]) for place in range(len(arms))]
        if min(int(one.users) for one in moments) < MIN_USERS:
            return
        for arm, of_arm in zip(arms[1:], moments[1:], strict=True):
            bounds = _interval(_sequence(of_arm, moments[0], ALPHA))
            yield Effect(day, arm, (int(moments[0].users), int(of_arm.users)), bounds)
