"""Means in the label's unit: what a quantity learned on a transformed scale is answered by.

The inverse of a mean of logarithms is no mean: it is below it by as much as labels spread around it. In: a run's
answers on the validation split, as the bare inverse gives them, and the labels. Out: a map of the one to the mean of
the other (model/calibration.py), which export puts into the artifact, and `evaluate` measures. On the validation split
itself it is by cross-fitting, so that no row is measured by a map that saw its label.

The map is the isotonic regression of about MOST_BINS bins of rows of near answers, scaled so that answers and labels
have one sum. With few rows it becomes a single factor. benchmarks/label_means.py compares it with other estimates.

Shapes: N rows whose label counts, O outputs, K bins, B blocks of equal mean (in logits: rows).
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from model.calibration import LabelMean
from model.ranker import Ranker
from model.tasks import RegressionTask
from model.tasks.regression import inverse_target
from model.tasks.task import TargetScale
from training.data.rows import Rows, columns_from_arrow, labels_of, observed_of, read_splits
from training.evaluate.validation import predict
from training.run.run import Run

Array = NDArray[np.float64]

log = logging.getLogger(__name__)

MOST_BINS = 50
BIN_ROWS = 250
# Bins whose answers are nearer to each other are one: a line between them could be so steep that the last digits of an
# answer, which differ from machine to machine, would show.
BINS_APART = 1.05
# Below this a factor says more about the sample than about the ranker.
MIN_POSITIVE = 20
FOLDS = 5
_SEED = 0


class NoLabelMeanError(ValueError):
    """The labels are too few to fit a map. The message says why."""


def fit_label_mean(labels_N: Array, answers_N: Array, upper: float) -> LabelMean:
    """The map of answers to means of labels, as far as these are not above the bound. Raises NoLabelMeanError."""
    _check(labels_N)
    # A label that is absurd (1e30 for an unknown one) counts as the bound, which is robust against such.
    labels_N = np.minimum(labels_N, upper)
    rows_K, answer_K, label_K = _binned(labels_N, answers_N)
    starts = isotonic_regression(label_K / rows_K, weights=rows_K).blocks[:-1]
    rows_B, answer_B, label_B = (np.add.reduceat(sums_K, starts) for sums_K in (rows_K, answer_K, label_K))
    mean_B = label_B / rows_B
    # A block without a positive answer or label has no point beside (0, 0). Blocks of one mean are one.
    is_point_B = (answer_B > 0) & (mean_B > 0) & (np.diff(mean_B, prepend=0.0) > 0)
    if not is_point_B.any():
        raise NoLabelMeanError("all answers on the validation split are 0")
    inputs = tuple((answer_B / rows_B)[is_point_B].tolist())
    outputs_B = mean_B[is_point_B]
    unscaled = LabelMean(kind="label_mean", inputs=inputs, outputs=tuple(outputs_B.tolist()), upper=upper)
    outputs = tuple((outputs_B * (labels_N.sum() / unscaled(answers_N).sum())).tolist())
    return LabelMean(kind="label_mean", inputs=inputs, outputs=outputs, upper=upper)


def bare_answers(task: RegressionTask, scale: TargetScale, logits_N: Array) -> Array:
    """answers_N in the label's unit as the exported module gives them, before any map (model.ranker.Answers)."""
    transformed_N = np.maximum(logits_N * scale.scale + scale.mean, 0.0)
    return np.minimum(inverse_target(transformed_N, task.transform), scale.upper)


def label_means(
    run: Run, ranker: Ranker, *, as_served: bool, every_task: bool
) -> tuple[dict[str, LabelMean], dict[str, Any]]:
    """Map of each regression task with a transform, or of all with `every_task`. Also, by task, how answers on the
    validation split compare with the labels before it, or why there is none."""
    tasks = [
        (run.schema.outputs.index(task.name), task)
        for task in run.schema.tasks
        if isinstance(task, RegressionTask) and (every_task or task.transform != "none")
    ]
    maps: dict[str, LabelMean] = {}
    about: dict[str, Any] = {}
    if not tasks:
        return maps, about
    table = read_splits(run.config.data, run.schema, ("validation",))["validation"]
    logits_BO = logits_of(run, ranker, table, as_served=as_served)
    for position, task in tasks:
        scale = run.fitted.targets[task.name]
        observed_B = observed_of(task, table)
        labels_N = labels_of(task, table)[observed_B]
        answers_N = bare_answers(task, scale, logits_BO[observed_B, position])
        try:
            maps[task.name] = fit_label_mean(labels_N, answers_N, scale.upper)
        except NoLabelMeanError as error:
            log.warning("task %s is answered without a correction to its label's mean: %s", task.name, error)
            about[task.name] = {"not_fitted": str(error)}
            continue
        ratio = float(answers_N.sum() / labels_N.sum())
        about[task.name] = {"rows": len(labels_N), "calibration_ratio_before": ratio}
    return maps, about


def logits_of(run: Run, ranker: Ranker, table: pa.Table, *, as_served: bool) -> Array:
    """logits_BO of a split's rows."""
    columns = columns_from_arrow(run.schema, table)
    rows = Rows.encode(run.schema, run.encoder, table, columns, as_served=as_served)
    return predict(ranker, rows).astype(np.float64)


def cross_fitted(labels_N: Array, answers_N: Array, groups_N: NDArray[Any], upper: float) -> Array:
    """means_N, each by a map fitted on other groups (users, say). Raises NoLabelMeanError."""
    _check(labels_N)
    means_N = np.empty_like(answers_N)
    for is_held_out_N in _folds(groups_N):
        mapping = fit_label_mean(labels_N[~is_held_out_N], answers_N[~is_held_out_N], upper)
        means_N[is_held_out_N] = mapping(answers_N[is_held_out_N])
    return means_N


def _check(labels_N: Array) -> None:
    positive = int((labels_N > 0).sum())
    if positive < MIN_POSITIVE:
        raise NoLabelMeanError(f"{positive} labels of the validation split are above 0, {MIN_POSITIVE} are needed")


def _folds(groups_N: NDArray[Any]) -> Iterator[NDArray[np.bool_]]:
    _, group_N = np.unique(groups_N, return_inverse=True)
    fold_N = np.random.default_rng(_SEED).permutation(group_N.max() + 1)[group_N] % FOLDS
    yield from (fold_N == fold for fold in range(FOLDS))


def _binned(labels_N: Array, answers_N: Array) -> tuple[Array, Array, Array]:
    """Rows, sum of answers and sum of labels of each bin, by ascending answers."""
    order = np.argsort(answers_N, kind="stable")
    bins = max(1, min(MOST_BINS, len(order) // BIN_ROWS))
    sums: list[list[float]] = []
    for rows in np.array_split(order, bins):
        one = [float(len(rows)), float(answers_N[rows].sum()), float(labels_N[rows].sum())]
        if sums and one[1] / one[0] <= BINS_APART * sums[-1][1] / sums[-1][0]:
            sums[-1] = [before + more for before, more in zip(sums[-1], one, strict=True)]
        else:
            sums.append(one)
    rows_K, answer_K, label_K = np.array(sums).T
    return rows_K, answer_K, label_K
