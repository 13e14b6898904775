"""Fits a calibration: a run's answers on the validation split -> strictly increasing maps (model/calibration.py).

Answers are those that will be served: training_only features at their serving value, negative downsampling undone.
Where negatives were sampled, each stands for 1 / rate impressions, in the fit and in what is reported.

Shapes: N impressions with an observed label, O outputs, K distinct probabilities, B blocks of equal rate.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit

from model.calibration import Calibration, Isotonic, Platt
from model.ranker import Answers, Ranker
from model.tasks import BinaryTask
from training.config import SplitName
from training.data.rows import Rows, columns_from_arrow, labels_of, observed_of, read_splits
from training.evaluate.validation import predict
from training.metrics.metrics import calibration_ratio, normalized_entropy
from training.run.run import Run

Array = NDArray[np.float64]
Kind = Literal["isotonic", "platt"]

log = logging.getLogger(__name__)

# Below these a fitted map says more about the sample than about the ranker.
MIN_ROWS = 1000
MIN_OF_EACH_CLASS = 20
# What float32 sigmoids can distinguish from 0 and 1: a logit must stay finite to be fitted.
FLOOR = 1e-7


# Of a segment column, how many values are reported: those with most impressions.
MAX_SEGMENTS = 20


class NotCalibratedError(ValueError):
    """The labels are too few to calibrate by. The message says why."""


def calibrate(
    run: Run, ranker: Ranker, kind: Kind, segment_by: Sequence[str] = ()
) -> tuple[Calibration, dict[str, Any]]:
    """A map for each binary task, and what it changes. By task and split these are NE and calibration ratio before and
    after, and the same for every value of the columns `segment_by` on the newest split. A task with too few labels is
    left as it is, with the reason. Raises ValueError for a column that is not in the data."""
    splits: tuple[SplitName, ...] = ("validation",) if run.config.data.split.test is None else ("validation", "test")
    tables = read_splits(run.config.data, run.schema, splits, extra=tuple(segment_by))
    answers = {split: _answers(run, ranker, table) for split, table in tables.items()}
    maps: dict[str, Platt | Isotonic] = {}
    tasks: dict[str, Any] = {}
    columns = run.schema.output_slices
    for task in run.schema.tasks:
        if not isinstance(task, BinaryTask):
            continue
        (column,) = range(len(run.schema.outputs))[columns[task.name]]
        seen = {split: _Seen(task, tables[split], answers[split][:, column]) for split in splits}
        fit = fit_isotonic if kind == "isotonic" else fit_platt
        try:
            mapping = fit(*seen["validation"].all())
        except NotCalibratedError as error:
            log.warning("task %s is not calibrated: %s", task.name, error)
            tasks[task.name] = {"not_calibrated": str(error)}
            continue
        maps[task.name] = mapping
        newest = seen[splits[-1]]
        tasks[task.name] = {
            **{split: _change(mapping, *one.all()) for split, one in seen.items()},
            "segments": {
                f"{column}={value}": _change(mapping, *newest.where(is_in_B))
                for column in segment_by
                for value, is_in_B in _segments(tables[splits[-1]].column(column))
            },
        }
    return Calibration(tasks=maps), {"kind": kind, "tasks": tasks}


class _Seen:
    """Labels, probabilities and weights of a task on a split."""

    def __init__(self, task: BinaryTask, table: pa.Table, answers_B: Array) -> None:
        labels_B = labels_of(task, table)
        self._observed_B = observed_of(task, table)
        self._columns = (labels_B, answers_B, np.where(labels_B == 0, 1 / task.negative_sampling_rate, 1.0))

    def where(self, is_in_B: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
        """Those of some rows."""
        labels_N, answers_N, weights_N = (column_B[self._observed_B & is_in_B] for column_B in self._columns)
        return labels_N, answers_N, weights_N

    def all(self) -> tuple[Array, Array, Array]:
        """Those of all rows."""
        return self.where(np.ones(len(self._observed_B), bool))


def _answers(run: Run, ranker: Ranker, table: pa.Table) -> Array:
    rows = Rows.encode(run.schema, run.encoder, table, columns_from_arrow(run.schema, table), as_served=True)
    with torch.no_grad():
        answers_BO = Answers(run.schema, run.fitted)(torch.from_numpy(predict(ranker, rows)))
    converted_BO: Array = answers_BO.numpy().astype(np.float64)
    return converted_BO


def _segments(column: pa.ChunkedArray) -> list[tuple[str, NDArray[np.bool_]]]:
    codes = column.combine_chunks().dictionary_encode(null_encoding="encode")
    indices_B = np.asarray(codes.indices)
    values, counts = np.unique(indices_B, return_counts=True)
    largest = values[np.argsort(-counts, kind="stable")][:MAX_SEGMENTS]
    return [(str(codes.dictionary[int(value)].as_py()), indices_B == value) for value in largest]


def _change(mapping: Platt | Isotonic, labels_N: Array, probability_N: Array, weights_N: Array) -> dict[str, Any]:
    return {
        "rows": len(labels_N),
        "positives": int(labels_N.sum()),
        **{
            when: {
                "normalized_entropy": normalized_entropy(labels_N, answer_N, weights_N),
                "calibration_ratio": calibration_ratio(labels_N, answer_N, weights_N),
            }
            for when, answer_N in (("before", probability_N), ("after", mapping(probability_N)))
        },
    }


def fit_platt(labels_N: Array, probability_N: Array, weights_N: Array) -> Platt:
    """The maximum-likelihood slope and intercept on the logit. Raises NotCalibratedError."""
    _check(labels_N)
    logit_N = logit(np.clip(probability_N, FLOOR, 1 - FLOOR))
    share_N = weights_N / weights_N.sum()

    def loss(parameters: Array) -> tuple[float, Array]:
        slope, intercept = np.exp(parameters[0]), parameters[1]
        value_N = slope * logit_N + intercept
        error_N = share_N * (expit(value_N) - labels_N)
        gradient = np.array([(error_N @ logit_N) * slope, error_N.sum()])
        return float(share_N @ (np.logaddexp(0, value_N) - labels_N * value_N)), gradient

    # The logarithm of the slope: a slope of 0 or less would reverse the ranking.
    found = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-10})
    slope, intercept = float(np.exp(found.x[0])), float(found.x[1])
    if not (np.isfinite([slope, intercept]).all() and slope > 1e-3):
        raise NotCalibratedError("the labels do not rise with the probability, so no increasing map fits")
    return Platt(kind="platt", slope=slope, intercept=intercept)


def fit_isotonic(labels_N: Array, probability_N: Array, weights_N: Array) -> Isotonic:
    """The points of an isotonic regression (pool adjacent violators). Each block's rate is smoothed by one impression
    at its mean probability, so that no block is at 0 or 1. Raises NotCalibratedError."""
    _check(labels_N)
    inputs_K, which_N = np.unique(np.clip(probability_N, FLOOR, 1 - FLOOR), return_inverse=True)
    rows_K = np.bincount(which_N, weights=weights_N).astype(np.float64)
    rate_K = np.bincount(which_N, weights=weights_N * labels_N) / rows_K
    inputs_B, rate_B, rows_B = _pooled(inputs_K, rate_K, rows_K)
    smoothed_B = (rate_B * rows_B + inputs_B) / (rows_B + 1)
    inputs_B, rate_B, rows_B = _pooled(inputs_B, smoothed_B, rows_B + 1)
    if len(inputs_B) < 2:
        raise NotCalibratedError("the labels do not rise with the probability, so no increasing map fits")
    return Isotonic(kind="isotonic", inputs=tuple(inputs_B.tolist()), outputs=tuple(rate_B.tolist()))


def _pooled(inputs_K: Array, rate_K: Array, rows_K: Array) -> tuple[Array, Array, Array]:
    """Blocks of the isotonic regression of the rates: mean input, rate and rows of each, all rates apart."""
    starts = isotonic_regression(rate_K, weights=rows_K).blocks[:-1]
    rows_B = np.add.reduceat(rows_K, starts)
    inputs_B = np.add.reduceat(inputs_K * rows_K, starts) / rows_B
    rate_B = np.add.reduceat(rate_K * rows_K, starts) / rows_B
    # Blocks whose rates agree to the last digit are one.
    is_new_B = np.concatenate([[True], np.diff(rate_B) > 0]) & np.concatenate([[True], np.diff(inputs_B) > 0])
    return inputs_B[is_new_B], rate_B[is_new_B], rows_B[is_new_B]


def _check(labels_N: Array) -> None:
    positives = int(labels_N.sum())
    if len(labels_N) < MIN_ROWS or min(positives, len(labels_N) - positives) < MIN_OF_EACH_CLASS:
        raise NotCalibratedError(
            f"{len(labels_N)} labels of the validation split, {positives} positive: at least {MIN_ROWS} are needed, "
            f"{MIN_OF_EACH_CLASS} of each class"
        )
