"""Figures of a version's answers on a day, as the journal keeps them: what the next days are compared with.

In: sums of answers and labels by user (users.py). Out: `AnswerFigures`, by task.

Shapes: U users, O outputs of a task.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.strict_yaml import StrictModel
from training.judge.guards import calibration_influence, error_influence
from training.judge.shift import Estimate, correlation_of_labels
from training.judge.users import TaskSums
from training.tasks.learned import Floats, LearnedTask

# Of sums of squares.
_ROUNDING = 1e-9


class OutputFigures(StrictModel):
    """Sums of an output's answers and labels on a day.

    `error` is the standard error of the logarithm of their quotient, over users. `slope` is that of labels over
    answers, `correlation` that of both, each with its standard error. `variation` is the deviation of answers over
    their mean."""

    answers: float
    labels: float
    error: float
    slope: Estimate | None
    correlation: Estimate | None
    variation: float


class TaskFigures(StrictModel):
    """Sums of a task's losses on a day: of the answers and of the constant that NE compares with. `error` is the
    standard error of the logarithm of NE over users."""

    rows: float
    loss: float
    constant_loss: float
    error: float
    outputs: dict[str, OutputFigures]


# By task.
AnswerFigures = dict[str, TaskFigures]


def figures_of_answers(
    sums: Mapping[str, TaskSums], kinds: Mapping[str, LearnedTask], chosen: Mapping[str, TaskSums] | None = None
) -> AnswerFigures:
    """Figures of a day's answers, by task.

    Correlations come from the `chosen` rows, which the version put on top itself: among rows that another one chose,
    labels follow its answers by other chances. None, of a day that it was trained on and knows too well, gives none."""
    found: AnswerFigures = {}
    for name, of_task in sums.items():
        kind = kinds[name]
        own = None if chosen is None else chosen[name]
        constant, loss = float(of_task.constant_loss(kind).sum()), float(of_task.loss_U.sum())
        found[name] = TaskFigures(
            rows=float(of_task.rows_U.sum()),
            loss=loss,
            constant_loss=constant,
            error=_norm(error_influence(of_task, kind)) if constant > 0 and loss > 0 else 0.0,
            outputs={output: _of_output(of_task, place, own) for place, output in enumerate(kind.task.outputs)},
        )
    return found


def read_figures(answers: Mapping[str, Any], place: str) -> AnswerFigures:
    """Figures of an earlier day, from the `answers` of its own. Raises ValueError, which `place` opens, for others."""
    return {task: TaskFigures.from_mapping(of_task, f"{place}: {task}") for task, of_task in answers.items()}


def _of_output(sums: TaskSums, place: int, chosen: TaskSums | None) -> OutputFigures:
    answers, labels = float(sums.answers_UO[:, place].sum()), float(sums.labels_UO[:, place].sum())
    error = _norm(calibration_influence(sums, place)) if answers > 0 and labels > 0 else 0.0
    return OutputFigures(
        answers=answers,
        labels=labels,
        error=error,
        slope=slope_of_labels(sums, place),
        correlation=None if chosen is None else correlation_of_labels(chosen, place),
        variation=_variation(float(sums.rows_U.sum()), answers, float(sums.squares_UO[:, place].sum())),
    )


def _variation(rows: float, total: float, squares: float) -> float:
    return math.sqrt(max(0.0, squares * rows / total**2 - 1)) if total > 0 else 0.0


def slope_of_labels(sums: TaskSums, place: int) -> Estimate | None:
    """Slope of a line through labels over an output's answers, and its standard error over users. 1 of calibrated
    answers, -1 where their labels are inverted. None where answers are alike."""
    rows = float(sums.rows_U.sum())
    columns = (sums.answers_UO, sums.labels_UO, sums.squares_UO, sums.products_UO)
    answers_U, labels_U, squares_U, products_U = (column_UO[:, place] for column_UO in columns)
    if not rows:
        return None
    mean, label = float(answers_U.sum()) / rows, float(labels_U.sum()) / rows
    spread = float(squares_U.sum()) - rows * mean**2
    if spread <= _ROUNDING * float(squares_U.sum()):
        return None
    slope = (float(products_U.sum()) - rows * mean * label) / spread
    level = label - slope * mean
    residual_U = labels_U - level * sums.rows_U - slope * answers_U
    influence_U = products_U - level * answers_U - slope * squares_U - mean * residual_U
    return slope, _norm(influence_U) / spread


def _norm(influence_U: Floats | NDArray[np.float64]) -> float:
    return float(np.sqrt(influence_U @ influence_U))
