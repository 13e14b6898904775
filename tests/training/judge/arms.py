"""Users of two arms, drawn for tests: rows with true probabilities, clicks, and answers that may be off.

Shapes: U users, N rows.
"""

import numpy as np
from numpy.typing import NDArray

from model.tasks import BinaryTask
from training.judge.users import ArmUsers, Observed, TaskSums
from training.tasks import learned
from training.tasks.learned import Floats, LearnedTask

CLICK: LearnedTask = learned(BinaryTask(name="click", kind="binary", label="is_click"))


def rows_of(seed: int, users: int) -> tuple[NDArray[np.int64], Floats, Floats]:
    """User, probability and click of every row. A user has 1 to 40 rows."""
    rng = np.random.default_rng(seed)
    users_N = np.repeat(np.arange(users), rng.integers(1, 41, users))
    probabilities_N = rng.beta(2.0, 6.0, len(users_N))
    return users_N, probabilities_N, (rng.random(len(users_N)) < probabilities_N).astype(np.float64)


def arm_of(seed: int, users: int, *, answered: float = 1.0, noise: float = 0.0) -> ArmUsers:
    """An arm whose answers are the true odds times `answered`, with noise on the logit. The value is the clicks."""
    users_N, probabilities_N, clicks_N = rows_of(seed, users)
    logits_N = np.log(probabilities_N / (1 - probabilities_N)) + np.log(answered)
    logits_N += noise * np.random.default_rng(seed + 1).standard_normal(len(logits_N))
    answers_NO = 1 / (1 + np.exp(-logits_N))[:, None]
    sums = TaskSums.of_rows(CLICK, clicks_N, answers_NO, users_N, users)
    return ArmUsers(sums.labels_UO[:, 0], {"click": sums})


def with_values(canary_U: Floats, stable_U: Floats, share: float | None = None) -> Observed:
    """Users of whom only values are known."""
    return Observed(ArmUsers(canary_U), ArmUsers(stable_U), (len(canary_U), len(stable_U)), share)
