"""Guards: NE and calibration of sums by user against those of rows, influences against left-out users, faults found.

Shapes: U users, N rows.
"""

import math

import numpy as np
import pytest
from sklearn.metrics import d2_tweedie_score, log_loss

from model.tasks import BinaryTask, MulticlassTask, RegressionTask
from model.tasks.task import BaseTask, TargetScale
from tests.training.judge.arms import CLICK, arm_of, rows_of
from training.judge.guards import calibration_influence, error_influence, faults_of_answers, normalized_error
from training.judge.settings import Guards
from training.judge.users import TaskSums
from training.tasks import learned
from training.tasks.learned import Floats, LearnedTask

USERS = 300


def _kind(task: BaseTask) -> LearnedTask:
    return learned(task, {"play_time": TargetScale(mean=0.0, scale=1.0, upper=1e6)})


def _samples() -> list[tuple[LearnedTask, Floats, Floats, float]]:
    """Kind, labels, answers, and the normalized error worked out elsewhere."""
    rng = np.random.default_rng(4)
    _, probabilities_N, clicks_N = rows_of(4, USERS)
    rows = len(clicks_N)
    binary = BinaryTask(name="click", kind="binary", label="is_click")
    quantity = RegressionTask(name="play_time", kind="regression", label="play_time_ms")
    long_tailed = RegressionTask(name="play_time", kind="regression", label="play_time_ms", transform="log1p")
    classes = MulticlassTask(name="rating", kind="multiclass", label="stars", classes={1: "bad", 2: "fair", 3: "good"})
    times_N = rng.gamma(0.7, 900.0, rows)
    guesses_N = times_N * 0.3 + 500
    shares_NC = rng.dirichlet([2.0, 3.0, 4.0], rows)
    stars_N = np.array([rng.choice(3, p=shares_C) for shares_C in shares_NC], np.float64)
    base = np.full(rows, clicks_N.mean())
    base_NC = np.tile(np.bincount(stars_N.astype(int)) / rows, (rows, 1))
    return [
        (
            _kind(binary),
            clicks_N,
            probabilities_N[:, None],
            log_loss(clicks_N, probabilities_N) / log_loss(clicks_N, base),
        ),
        (_kind(quantity), times_N, guesses_N[:, None], ((guesses_N - times_N) ** 2).mean() / times_N.var()),
        (
            _kind(long_tailed),
            np.rint(times_N),
            guesses_N[:, None],
            1 - d2_tweedie_score(np.rint(times_N) + 1, guesses_N + 1, power=1),
        ),
        (_kind(classes), stars_N, shares_NC, _relative(stars_N, shares_NC, base_NC)),
    ]


def _relative(labels_N: Floats, answers_N: Floats, base_N: Floats) -> float:
    return float(log_loss(labels_N, answers_N) / log_loss(labels_N, base_N))


@pytest.mark.parametrize("place", range(4))
def test_sums_by_user_give_the_error_of_all_rows_and_their_influence_that_of_a_user(place: int) -> None:
    kind, labels_N, answers_NO, error = _samples()[place]
    users_N, _, _ = rows_of(4, USERS)
    sums = TaskSums.of_rows(kind, labels_N, answers_NO, users_N, USERS)
    assert normalized_error(sums, kind) == pytest.approx(error, rel=1e-9)

    influence_U = error_influence(sums, kind)
    for user in (0, 7, 120):
        is_left_N = users_N != user
        without = TaskSums.of_rows(kind, labels_N[is_left_N], answers_NO[is_left_N], users_N[is_left_N], USERS)
        changed = normalized_error(without, kind)
        assert changed is not None
        # Leaving a user out changes the log by its influence, to the second order of its share of the rows.
        assert math.log(error / changed) == pytest.approx(influence_U[user], abs=5 * (~is_left_N).mean() ** 2 + 1e-4)
    for output in range(answers_NO.shape[1]):
        influence_U = calibration_influence(sums, output)
        labels_UO, answers_UO = sums.labels_UO[:, output], sums.answers_UO[:, output]
        ratio_of_rest = (answers_UO[1:].sum() / labels_UO[1:].sum()) / (answers_UO.sum() / labels_UO.sum())
        assert -math.log(ratio_of_rest) == pytest.approx(influence_U[0], abs=1e-3)


def test_weights_of_rows_count_as_copies_of_them() -> None:
    users_N, probabilities_N, clicks_N = rows_of(8, 50)
    weights_N = np.random.default_rng(0).integers(1, 4, len(users_N))
    copies = np.repeat(np.arange(len(users_N)), weights_N)
    weighted = TaskSums.of_rows(CLICK, clicks_N, probabilities_N[:, None], users_N, 50, weights_N.astype(np.float64))
    copied = TaskSums.of_rows(CLICK, clicks_N[copies], probabilities_N[copies, None], users_N[copies], 50)
    assert normalized_error(weighted, CLICK) == pytest.approx(normalized_error(copied, CLICK))
    np.testing.assert_allclose(weighted.answers_UO, copied.answers_UO)


@pytest.mark.parametrize(
    ("canary", "stable", "words"),
    [
        ({}, {}, []),
        ({"answered": 1.15}, {}, []),
        ({"answered": 3.5}, {}, ["NE", "over"]),
        ({"answered": 0.5}, {}, ["under"]),
        ({"answered": 2.0}, {"answered": 2.0}, []),
        ({"noise": 1.5}, {}, ["NE"]),
    ],
    ids=["equal", "a little off", "far over", "half the odds", "both off", "noisy answers"],
)
def test_answers_that_are_worse_than_stables_are_faults(
    canary: dict[str, float], stable: dict[str, float], words: list[str]
) -> None:
    one, other = arm_of(10, 1500, **canary), arm_of(20, 6000, **stable)
    faults, figures = faults_of_answers(one.tasks, other.tasks, {"click": CLICK}, Guards(), 0.01)
    assert len(faults) == len(words)
    assert all(word in fault and "click" in fault for word, fault in zip(words, faults, strict=True))
    assert set(figures["click"]) == {"ne", "calibration"}


def test_guards_say_nothing_of_few_users_and_of_labels_that_are_alike() -> None:
    few, many = arm_of(1, 90, answered=3.0), arm_of(2, 3000)
    assert faults_of_answers(few.tasks, many.tasks, {"click": CLICK}, Guards(), 0.01)[0] == []
    users_N, probabilities_N, _ = rows_of(3, 500)
    alike = {"click": TaskSums.of_rows(CLICK, np.zeros(len(users_N)), probabilities_N[:, None], users_N, 500)}
    faults, figures = faults_of_answers(alike, many.tasks, {"click": CLICK}, Guards(), 0.01)
    assert faults == []
    assert figures["click"]["ne"][0] is None
