"""Guards of a canary: NE and calibration of its answers against stable's, by task. They can withdraw, never promote.

NE is the loss of the answers over that of the best constant. Both are sums over users. The constant is where its loss
is least, so that an error of it does not count to first order, and a user's influence on log NE is its share of the
loss less its share of the constant's. Bounds are those of sequences.py, of asymptotically linear estimates.

Shapes: U users, O outputs of a task.
"""

import math
from collections.abc import Mapping
from typing import Any

from training.judge.sequences import Floats, lower_bound
from training.judge.settings import Guards
from training.judge.users import TaskSums
from training.tasks.learned import LearnedTask

# Users that a guard needs in either arm.
MIN_USERS = 100


def faults_of_answers(
    canary: Mapping[str, TaskSums],
    stable: Mapping[str, TaskSums],
    kinds: Mapping[str, LearnedTask],
    guards: Guards,
    alpha: float,
) -> tuple[list[str], dict[str, Any]]:
    """Sentences on guards that a canary breaks, and figures by task. `alpha` is the chance of any false one: each
    task's NE, and each output's calibration above and below 1, has an equal part."""
    tests = sum(1 + 2 * len(kinds[name].task.outputs) for name in kinds)
    faults: list[str] = []
    figures: dict[str, Any] = {}
    for name, kind in kinds.items():
        arms = [canary[name], stable[name]]
        figures[name] = {
            "ne": [normalized_error(arm, kind) for arm in arms],
            "calibration": {
                output: [_ratio(arm.answers_UO[:, place].sum(), arm.labels_UO[:, place].sum()) for arm in arms]
                for place, output in enumerate(kind.task.outputs)
            },
        }
        if min(int((arm.rows_U > 0).sum()) for arm in arms) < MIN_USERS:
            continue
        faults += _worse_error(name, kind, arms, guards.ne_ratio, alpha / tests)
        for place, output in enumerate(kind.task.outputs):
            faults += _off_calibration(output, arms, place, guards.calibration, alpha / tests)
    return faults, figures


def normalized_error(sums: TaskSums, kind: LearnedTask) -> float | None:
    """NE: loss over that of the best constant, of a quantity too. None where labels are alike."""
    return _ratio(float(sums.loss_U.sum()), float(sums.constant_loss(kind).sum()))


def error_influence(sums: TaskSums, kind: LearnedTask) -> Floats:
    """influence_U of each user on the log of the normalized error."""
    constant_U = sums.constant_loss(kind)
    influence_U: Floats = sums.loss_U / sums.loss_U.sum() - constant_U / constant_U.sum()
    return influence_U


def calibration_influence(sums: TaskSums, place: int) -> Floats:
    """influence_U of each user on the log of an output's calibration ratio."""
    answers_U, labels_U = sums.answers_UO[:, place], sums.labels_UO[:, place]
    influence_U: Floats = answers_U / answers_U.sum() - labels_U / labels_U.sum()
    return influence_U


def _worse_error(name: str, kind: LearnedTask, arms: list[TaskSums], limit: float, alpha: float) -> list[str]:
    errors = [normalized_error(arm, kind) for arm in arms]
    if not all(errors):
        return []
    one, other = (error for error in errors if error is not None)
    estimate = math.log(one / other)
    of_canary, of_stable = (error_influence(arm, kind) for arm in arms)
    lower = lower_bound(estimate, [of_canary, -of_stable], alpha, math.log(limit))
    if lower <= math.log(limit):
        return []
    return [f"task {name}: NE {one:.3f} of the canary is {math.exp(lower):.2f} times stable's {other:.3f} at least"]


def _off_calibration(output: str, arms: list[TaskSums], place: int, limit: float, alpha: float) -> list[str]:
    ratios = [_ratio(arm.answers_UO[:, place].sum(), arm.labels_UO[:, place].sum()) for arm in arms]
    if not all(ratios):
        return []
    one, other = (ratio for ratio in ratios if ratio is not None)
    # Both must be sure at the level: the canary is off, and is further off than stable.
    of_canary, of_stable = (
        math.copysign(1.0, math.log(ratio)) * calibration_influence(arm, place)
        for arm, ratio in zip(arms, (one, other), strict=True)
    )
    off, width = abs(math.log(one)), math.log(limit)
    is_off = lower_bound(off, [of_canary], alpha, width) > width
    is_further = lower_bound(off - abs(math.log(other)), [of_canary, -of_stable], alpha, width) > 0
    if not (is_off and is_further):
        return []
    way = "over" if one > 1 else "under"
    return [f"{output}: the canary's answers are {way} what was observed, calibration {one:.2f}, stable's {other:.2f}"]


def _ratio(numerator: float, denominator: float) -> float | None:
    return float(numerator) / float(denominator) if denominator > 0 and numerator > 0 else None
