"""Calibration of a run: its answers on the validation split -> maps (training/tasks/probability_maps.py).

Answers are those that will be served: training_only features at their serving value, negative downsampling undone.
Where negatives were sampled, each counts as 1 / rate impressions, and a row of a log that keeps a share of them by its
`data.weight`, in the fit and in what is reported.

Shapes: B rows of a split, N of them with an observed label, O outputs.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from model.calibration import Calibration
from model.ranker import Answers, Ranker
from model.tasks import Task
from training.config import SplitName
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, labels_of, observed_of, read_splits, row_weights
from training.evaluate.validation import predict
from training.run.run import Run
from training.tasks import learned
from training.tasks.probability_maps import CalibrationKind, NotCalibratedError, ProbabilityMap

Array = NDArray[np.float64]

log = logging.getLogger(__name__)

# Of a segment column, how many values are reported: those with most impressions.
MAX_SEGMENTS = 20


def calibrate(
    run: Run, ranker: Ranker, kind: CalibrationKind, segment_by: Sequence[str] = ()
) -> tuple[Calibration, dict[str, Any]]:
    """A map for each task of probabilities, and what it changes.

    By task and split these are NE and calibration ratio before and after, and the same for every value of the columns
    `segment_by` on the newest split. A task with too few labels is left as it is, with the reason. Raises ValueError
    for a column that is not in the data."""
    splits: tuple[SplitName, ...] = ("validation", "test") if run.config.data.has_test else ("validation",)
    tables = read_splits(run.config.data, run.schema, splits, extra=tuple(segment_by))
    answers = {split: _answers(run, ranker, table) for split, table in tables.items()}
    weights = {split: row_weights(run.config.data, table) for split, table in tables.items()}
    maps: dict[str, ProbabilityMap] = {}
    tasks: dict[str, Any] = {}
    for task in run.schema.tasks:
        if not task.is_probability:
            continue
        columns = run.schema.output_slices[task.name]
        seen = {split: _Seen(task, tables[split], answers[split][:, columns], weights[split]) for split in splits}
        try:
            mapping = seen["validation"].fit(kind)
        except NotCalibratedError as error:
            log.warning("task %s is not calibrated: %s", task.name, error)
            tasks[task.name] = {"not_calibrated": str(error)}
            continue
        maps[task.name] = mapping
        newest = seen[splits[-1]]
        tasks[task.name] = {
            **{split: one.change(mapping) for split, one in seen.items()},
            "segments": {
                f"{column}={value}": newest.change(mapping, is_in_B)
                for column in segment_by
                for value, is_in_B in _segments(tables[splits[-1]].column(column))
            },
        }
    return Calibration(tasks=maps), {"kind": kind, "tasks": tasks}


class _Seen:
    """Labels and probabilities of a task on a split, with the weights of its rows."""

    def __init__(self, task: Task, table: pa.Table, answers_BO: Array, weights_B: Array | None) -> None:
        self._task = learned(task)
        self._labels_B = labels_of(task, table)
        self._observed_B = observed_of(task, table) if weights_B is None else observed_of(task, table) & (weights_B > 0)
        self._answers_BO = answers_BO
        self._weights_B = weights_B

    def fit(self, kind: CalibrationKind) -> ProbabilityMap:
        """The map of all rows. Raises NotCalibratedError."""
        observed_B = self._observed_B
        return self._task.fit_map(
            kind, self._labels_B[observed_B], self._answers_BO[observed_B], self._weights(observed_B)
        )

    def change(self, mapping: ProbabilityMap, is_in_B: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """Changes by a map on some rows, or on all."""
        is_in_B = self._observed_B if is_in_B is None else self._observed_B & is_in_B
        labels_N, answers_NO, weights_N = self._labels_B[is_in_B], self._answers_BO[is_in_B], self._weights(is_in_B)
        return {
            "rows": len(labels_N),
            **self._task.label_counts(labels_N),
            "before": self._task.calibration_of(labels_N, answers_NO, weights_N),
            "after": self._task.calibration_of(labels_N, mapping(answers_NO), weights_N),
        }

    def _weights(self, is_in_B: NDArray[np.bool_]) -> Array | None:
        """weights_N of some rows, with mean 1."""
        if self._weights_B is None or not is_in_B.any():
            return None
        weights_N: Array = self._weights_B[is_in_B] / self._weights_B[is_in_B].mean()
        return weights_N


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
