"""Verdict of a canary: what users did, and the settings, in. Promote, withdraw or wait out, with reasons and figures.

One observation a user: realised value within the horizon of exposure. Withdraw where the upper bound of the relative
difference is below 0, which is tested first. Promote where the lower bound is above -max_worse. Bounds hold at every
look together (sequences.py), so anybody may look at any time.

False withdrawal has the chance alpha in all: four fifths of it are the value's, one fifth the guards', in equal parts
(Bonferroni). False promotion has alpha, and no guard can promote.

Shapes: U users.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from training.judge.guards import faults_of_answers
from training.judge.sample_ratio import sample_ratio_evidence
from training.judge.sequences import Bounds, Moments, information_needed, relative_difference
from training.judge.settings import JudgeSettings
from training.judge.users import ArmUsers, Observed
from training.tasks.learned import LearnedTask
from training.wording import counted

Decision = Literal["promote", "withdraw", "wait"]
VALUE_SHARE = 0.8
# In units of max_worse.
HARMFUL = 2
# Below it no estimate of a variance is worth a bound.
MIN_USERS = 100
# Of the difference: the correction of skewness was measured up to it (make bench-judge).
MAX_SKEWNESS = 0.6
# Arms that are drawn by the share are so far from it once in a thousand canaries.
RATIO_EVIDENCE = 1000.0
# Of the canary's users. Of more, the difference is no longer that of the two versions.
MAX_MIXED = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision with its reasons, in sentences, and figures, as JSON."""

    decision: Decision
    reasons: tuple[str, ...]
    figures: dict[str, Any] = field(default_factory=dict)


def judge(observed: Observed, settings: JudgeSettings, kinds: dict[str, LearnedTask]) -> Verdict:
    """The verdict at this look. `kinds` are the tasks whose answers are guarded, by name."""
    bounds = value_bounds(
        Moments.of_values(observed.canary.values_U), Moments.of_values(observed.stable.values_U), settings
    )
    faults, guard_figures = faults_of_answers(
        observed.canary.tasks, observed.stable.tasks, kinds, settings.guards, settings.alpha * (1 - VALUE_SHARE)
    )
    needed = users_needed(observed, settings)
    figures = {
        "users": {name: _described(arm) for name, arm in _arms(observed).items()},
        "exposed": dict(zip(("canary", "stable"), observed.exposed, strict=True)),
        "left_out": observed.left_out,
        "answered_by_both": observed.mixed,
        "relative_difference": {
            "estimate": _finite(bounds.estimate),
            "lower": _finite(bounds.lower),
            "upper": _finite(bounds.upper),
            "skewness": _finite(bounds.skewness),
        },
        "guards": guard_figures,
        "users_needed": needed,
    }
    doubts = _doubts(observed, bounds)
    upper, lower = float(bounds.upper), float(bounds.lower)
    if not doubts and upper < 0:
        reason = f"realised value is lower by {-upper:.1%} at least ({_said(bounds)})"
        return Verdict("withdraw", (reason, *faults), figures)
    if faults:
        return Verdict("withdraw", tuple(faults), figures)
    if not doubts and lower > -settings.max_worse:
        reason = f"realised value is lower by {settings.max_worse:.1%} at most ({_said(bounds)})"
        return Verdict("promote", (reason,), figures)
    if not doubts:
        doubts = [f"the difference is not known well enough yet ({_said(bounds)})"]
    if needed is not None:
        doubts.append(
            f"the question takes about {counted(needed['canary'], 'canary user')}; "
            f"{counted(len(observed.canary.values_U), 'user')} of it are mature"
        )
    return Verdict("wait", tuple(doubts), figures)


def value_bounds(canary: Moments, stable: Moments, settings: JudgeSettings) -> Bounds:
    """Bounds of the relative difference of realised value: the lower one promotes, the upper one withdraws.

    The one is narrowest where equal versions are told from a canary at the limit. The other is so for one that is
    twice as bad: the worse a canary, the more it matters to be quick."""
    alpha, limit = settings.alpha, settings.max_worse
    return relative_difference(canary, stable, alpha=(alpha, alpha * VALUE_SHARE), width=(limit, HARMFUL * limit))


def users_needed(observed: Observed, settings: JudgeSettings) -> dict[str, int] | None:
    """Mature users of each arm at which half of all equal canaries are promoted, at the sizes that the arms have to
    each other. None where the arms have too few users to say."""
    arms = [Moments.of_values(arm.values_U) for arm in (observed.canary, observed.stable)]
    if any(arm.users < MIN_USERS or not arm.mean > 0 for arm in arms):
        return None
    canary, stable = arms
    variation = float(canary.variance / canary.mean**2 + canary.users / stable.users * stable.variance / stable.mean**2)
    if variation == 0:
        return None
    users = users_for(variation, settings.max_worse, settings.alpha)
    return {"canary": users, "stable": math.ceil(users * float(stable.users / canary.users))}


def users_for(variation: float, width: float, alpha: float = 0.05, power: float = 0.5) -> int:
    """Canary users whose interval has the half-width `width`. `variation` is the squared variation coefficient of the
    canary's users, and that of stable's over the number of them for each canary user."""
    return math.ceil(information_needed(alpha, width, power) * variation)


def _doubts(observed: Observed, bounds: Bounds) -> list[str]:
    """Reasons for which realised value decides nothing."""
    few = [
        f"{name} has {counted(len(arm.values_U), 'mature user')}, of {MIN_USERS} at least"
        for name, arm in _arms(observed).items()
        if len(arm.values_U) < MIN_USERS
    ]
    if few:
        return few
    doubts = []
    if observed.share is not None:
        evidence = sample_ratio_evidence(observed.exposed, (observed.share, 1 - observed.share))
        if evidence > RATIO_EVIDENCE:
            canary, stable = observed.exposed
            doubts.append(
                f"the arms are not drawn by the share: {canary:,} of {canary + stable:,} users are the canary's, and "
                f"{observed.share:.1%} was said (a chance of 1 in {evidence:,.0f}); find what loses users of one arm"
            )
    if observed.mixed > MAX_MIXED * observed.exposed[0]:
        doubts.append(
            f"both versions answered {counted(observed.mixed, 'user')}, and the canary has {observed.exposed[0]:,}; "
            "a share that changed, or a canary that does not answer, makes the arms alike"
        )
    if not (np.isfinite(bounds.lower) and np.isfinite(bounds.upper)):
        doubts.append("stable's realised value is not surely above 0, so that nothing is relative to it")
    elif abs(bounds.skewness) > MAX_SKEWNESS:
        doubts.append(f"few users make up most of the value (skewness of the difference {float(bounds.skewness):.2f})")
    return doubts


def _arms(observed: Observed) -> dict[str, ArmUsers]:
    return {"canary": observed.canary, "stable": observed.stable}


def _described(arm: ArmUsers) -> dict[str, float | int | None]:
    moments = Moments.of_values(arm.values_U)
    with np.errstate(divide="ignore", invalid="ignore"):
        variation = np.sqrt(moments.variance) / moments.mean
    return {"users": len(arm.values_U), "mean_value": _finite(moments.mean), "variation": _finite(variation)}


def _said(bounds: Bounds) -> str:
    return f"{float(bounds.estimate):+.1%}, between {float(bounds.lower):+.1%} and {float(bounds.upper):+.1%}"


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
