"""Shift of tastes: correlations and their errors against numpy's, and which days count as shifted.

Shapes: B rows, U users.
"""

import numpy as np
import pytest

from model.schema import FeedSchema
from training.judge.data_gate import outputs_shifted
from training.judge.day_figures import AnswerFigures, figures_of_answers
from training.judge.shift import (
    correlation_of_labels,
    elasticity_of_labels,
    follows_less,
    is_shifted,
    lift_of_choice,
    usual_of_days,
)
from training.judge.users import TaskSums
from training.tasks import learned
from training.tasks.learned import Floats, LearnedTask

SCHEMA = FeedSchema.from_mapping(
    {
        "name": "feed",
        "features": [{"name": "item", "side": "candidate", "kind": "id", "buckets": 10, "dim": 4}],
        "tasks": [
            {"name": "click", "kind": "binary", "label": "is_click"},
            {"name": "watch", "kind": "regression", "label": "watch_ms"},
        ],
    },
    "schema",
)
USERS, ROWS = 400, 8_000
KINDS: dict[str, LearnedTask] = {task.name: learned(task, {}) for task in SCHEMA.tasks}


def _day(seed: int, known: float) -> dict[str, tuple[Floats, Floats]]:
    """Answers and labels of both tasks. Answers know a share of what users like, and labels are drawn by all of it."""
    rng = np.random.default_rng(seed)
    liked_B = rng.normal(size=ROWS)
    answered_B = known * liked_B + np.sqrt(1 - known**2) * rng.normal(size=ROWS)
    chance_B = 1 / (1 + np.exp(1 - liked_B))
    watch_B = np.exp(0.5 * liked_B + 0.5 * rng.normal(size=ROWS))
    return {
        "click": (1 / (1 + np.exp(1 - answered_B)), (rng.random(ROWS) < chance_B).astype(np.float64)),
        "watch": (np.exp(0.5 * answered_B), watch_B),
    }


def _sums(seed: int, known: float) -> tuple[dict[str, TaskSums], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    users_B = np.random.default_rng([seed, 1]).integers(0, USERS, ROWS)
    of_tasks = _day(seed, known)
    return {
        name: TaskSums.of_rows(KINDS[name], labels_B, answers_B[:, None], users_B, USERS)
        for name, (answers_B, labels_B) in of_tasks.items()
    }, users_B


def _figures(seed: int, known: float, *, is_trained_on: bool = False) -> AnswerFigures:
    sums, _ = _sums(seed, known)
    return figures_of_answers(sums, KINDS, None if is_trained_on else sums)


@pytest.mark.parametrize("task", ["click", "watch"])
def test_a_correlation_is_numpys_and_its_error_that_of_drawn_users(task: str) -> None:
    sums, users_B = _sums(3, 0.7)
    answers_B, labels_B = _day(3, 0.7)[task]
    found = correlation_of_labels(sums[task], 0)
    assert found is not None
    assert found[0] == pytest.approx(np.corrcoef(answers_B, labels_B)[0, 1])
    rng, drawn = np.random.default_rng(0), []
    for _ in range(150):
        weights_B = np.bincount(rng.integers(0, USERS, USERS), minlength=USERS)[users_B]
        covariance = np.cov(answers_B, labels_B, fweights=weights_B)
        drawn.append(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))
    # 150 draws know a standard deviation to 6 %.
    assert found[1] == pytest.approx(np.std(drawn), rel=0.2)


def test_answers_that_are_alike_have_no_correlation() -> None:
    labels_B, users_B = np.array([0.0, 1.0, 1.0]), np.array([0, 0, 1])
    sums = TaskSums.of_rows(KINDS["click"], labels_B, np.full((3, 1), 0.3), users_B, 2)
    assert correlation_of_labels(sums, 0) is None
    assert correlation_of_labels(TaskSums.empty(KINDS["click"], 2), 0) is None


def test_days_count_by_their_rows() -> None:
    usual = usual_of_days([(300.0, (0.2, 0.01)), (100.0, (0.6, 0.03))])
    assert usual is not None
    assert usual[0] == pytest.approx(0.3)
    assert usual[1] == pytest.approx(np.hypot(300 * 0.01, 100 * 0.03) / 400)
    assert usual_of_days([]) is None


def test_a_shift_is_a_third_less_of_what_is_explained_beyond_chance() -> None:
    """Of a usual correlation of .3, .245 explains two thirds."""
    assert not is_shifted((0.25, 0.0001), (0.3, 0.0001), 1)
    assert is_shifted((0.24, 0.0001), (0.3, 0.0001), 1)
    assert not is_shifted((0.24, 0.03), (0.3, 0.0001), 1)
    # 2.2 standard errors are enough for one output, and not where the luckiest of ten is asked.
    beyond = 0.3 * np.sqrt(2 / 3) - 0.11
    assert is_shifted((beyond, 0.05), (0.3, 0.0), 1)
    assert not is_shifted((beyond, 0.05), (0.3, 0.0), 10)


def test_a_third_less_that_is_not_sure_is_a_shift_where_it_is_surely_less_than_usual() -> None:
    """.2 is 2 standard errors under the .245 of two thirds, of 2.6 that five outputs take, and 4.5 under the usual .3,
    of 3.5."""
    assert is_shifted((0.2, 0.02), (0.3, 0.01), 5)
    # 3.2 standard errors under the usual one.
    assert not is_shifted((0.2, 0.03), (0.3, 0.01), 5)
    # 4.5 of them, and a quarter less.
    assert not is_shifted((0.26, 0.008), (0.3, 0.004), 5)


def test_other_tastes_are_a_shift_and_chance_is_none() -> None:
    before = [_figures(seed, 0.8) for seed in range(3)]
    # One of forty days may be taken for a shift, of days on which nothing happened.
    assert sum(bool(outputs_shifted(_figures(seed, 0.8), before)) for seed in range(10, 30)) <= 1
    assert set(outputs_shifted(_figures(40, 0.2), before)) == {"click", "watch"}
    assert outputs_shifted(_figures(40, 0.2), []) == []


def test_days_that_a_version_was_trained_on_are_no_measure() -> None:
    known_well = [_figures(1, 1.0, is_trained_on=True)]
    assert known_well[0]["click"].outputs["click"].correlation is None
    assert outputs_shifted(_figures(2, 0.4), known_well) == []
    assert outputs_shifted(_figures(2, 0.4), [_figures(1, 1.0)]) == ["click", "watch"]


def test_an_elasticity_is_the_slope_of_shares_and_stays_where_labels_are_lost() -> None:
    """Answers of 30 and 20 labels: of a slope of .5, one per cent more makes .75 % more labels."""
    elasticity, error = elasticity_of_labels((0.5, 0.1), 30.0, 20.0, 0.04)
    assert elasticity == pytest.approx(0.75)
    assert error == pytest.approx(1.5 * np.hypot(0.1, 0.02))
    half_lost, _ = elasticity_of_labels((0.25, 0.1), 30.0, 10.0, 0.04)
    assert half_lost == pytest.approx(0.75)


def test_labels_follow_less_where_a_third_of_the_elasticity_is_surely_gone() -> None:
    assert follows_less((0.59, 0.001), (0.9, 0.001))
    assert not follows_less((0.61, 0.001), (0.9, 0.001))
    # 2.1 standard errors are sure, 1.9 are not. Two thirds of the usual one's error count.
    assert follows_less((0.39, 0.1), (0.9, 0.0))
    assert not follows_less((0.41, 0.1), (0.9, 0.0))
    assert not follows_less((0.39, 0.1), (0.9, 0.15))


def test_the_lift_of_choice_is_two_deviations_of_logarithms() -> None:
    assert lift_of_choice(0.0) == 1.0
    assert lift_of_choice(np.sqrt(np.e - 1)) == pytest.approx(np.e**2)
    # The best of twenty is lifted by less, and by most of it.
    answers_PN = np.exp(0.5 * np.random.default_rng(0).normal(size=(20_000, 20)))
    lifted = answers_PN.max(axis=1).mean() / answers_PN.mean()
    assert 0.75 < lifted / lift_of_choice(float(answers_PN.std() / answers_PN.mean())) < 1
