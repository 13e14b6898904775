"""Means in the label's unit, of a run: maps of its answers on the validation split (training/tasks/label_mean_map.py).

Shapes: B rows, O outputs, N rows where a task is observed.
"""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.calibration import LabelMean
from model.ranker import Ranker
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, labels_of, observed_of, read_splits, row_weights
from training.evaluate.validation import predict
from training.run.run import Run
from training.tasks import learned
from training.tasks.label_mean_map import NoLabelMeanError, fit_label_mean

Array = NDArray[np.float64]

log = logging.getLogger(__name__)


def label_means(
    run: Run, ranker: Ranker, *, as_served: bool, every_task: bool
) -> tuple[dict[str, LabelMean], dict[str, Any]]:
    """Map of each regression task with a transform, or of all with `every_task`. Also, by task, how answers on the
    validation split compare with the labels before it, or why there is none."""
    tasks = [task for task in run.schema.tasks if task.scaling is not None]
    kinds = [kind for kind in (learned(task, run.fitted.targets) for task in tasks) if every_task or kind.is_mapped]
    maps: dict[str, LabelMean] = {}
    about: dict[str, Any] = {}
    if not kinds:
        return maps, about
    table = read_splits(run.config.data, run.schema, ("validation",))["validation"]
    logits_BO = logits_of(run, ranker, table, as_served=as_served)
    weights_B = row_weights(run.config.data, table)
    for kind in kinds:
        task = kind.task
        observed_B = observed_of(task, table) if weights_B is None else observed_of(task, table) & (weights_B > 0)
        weights_N = np.ones(int(observed_B.sum())) if weights_B is None else weights_B[observed_B]
        labels_N = labels_of(task, table)[observed_B]
        answers_N = kind.bare_answers(logits_BO[observed_B, run.schema.output_slices[task.name]])
        try:
            maps[task.name] = fit_label_mean(labels_N, answers_N, kind.scale.upper, weights_N)
        except NoLabelMeanError as error:
            log.warning("task %s is answered without a correction to its label's mean: %s", task.name, error)
            about[task.name] = {"not_fitted": str(error)}
            continue
        ratio = float(weights_N @ answers_N / (weights_N @ labels_N))
        about[task.name] = {"rows": len(labels_N), "calibration_ratio_before": ratio}
    return maps, about


def logits_of(run: Run, ranker: Ranker, table: pa.Table, *, as_served: bool) -> Array:
    """logits_BO of a split's rows."""
    columns = columns_from_arrow(run.schema, table)
    rows = Rows.encode(run.schema, run.encoder, table, columns, as_served=as_served)
    return predict(ranker, rows).astype(np.float64)
