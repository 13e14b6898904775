"""Training on a sample of a task's negatives: `data.negative_sampling: {task: click, rate: 0.1}`. Answers stay right.

In: the training split. Out: its rows without those negatives that a hash of (seed, row) drops, the same ones each time
the split is read. Validation and test keep every row.

What is answered needs no correction, for it is in the loss. The task's own loss is taken at `logit + log(1 / rate)`:
negatives kept at a rate inflate the odds by its inverse (He et al. 2014, section 6.3), so the logit itself has the odds
of the whole log. Every other task counts a kept negative 1 / rate times: its rows count for those that were dropped.
The artifact's manifest says so. A schema's `negative_sampling_rate` is something else: a log that was sampled before it
came here, validation and test too.

Shapes: B rows, T tasks.
"""

import logging
import math

import numpy as np
import pyarrow as pa

from model.features.id_lookup import hash_integers
from model.schema import FeedSchema
from model.tasks import BinaryTask
from training.config import NegativeSampling
from training.data.rows import Rows, labels_of, observed_of

log = logging.getLogger(__name__)


def without_dropped_negatives(table: pa.Table, schema: FeedSchema, sampling: NegativeSampling) -> pa.Table:
    """The rows of the training split that are trained on: all but the dropped negatives. Raises ValueError for a task
    that is no binary task of the schema, or of which no row is left."""
    task = next((task for task in schema.tasks if task.name == sampling.task), None)
    if not isinstance(task, BinaryTask):
        binary = ", ".join(task.name for task in schema.tasks if isinstance(task, BinaryTask))
        raise ValueError(
            f"data.negative_sampling: '{sampling.task}' is no binary task that is learned; there are: {binary}"
        )
    is_negative_B = observed_of(task, table) & (labels_of(task, table) == 0)
    # Hashed twice, so that what neighbouring seeds keep has nothing to do with one another.
    words_B = hash_integers(np.arange(table.num_rows, dtype=np.int64))
    words_B = hash_integers((words_B ^ hash_integers(np.array([sampling.seed]))).view(np.int64))
    is_kept_B = ~is_negative_B | (words_B < np.uint64(int(sampling.rate * 2**64)))
    kept = int(is_kept_B.sum())
    if not kept:
        raise ValueError(f"data.negative_sampling: rate {sampling.rate:g} leaves no row of {table.num_rows:,}")
    log.info("%d of %d training rows are kept, negatives of %s at rate %g", kept, len(table), task.name, sampling.rate)
    return table.filter(pa.array(is_kept_B))


def weigh_kept_negatives(rows: Rows, schema: FeedSchema, sampling: NegativeSampling) -> None:
    """Weigh kept negatives by 1 / rate in the losses of the other tasks."""
    place = [task.name for task in schema.tasks].index(sampling.task)
    is_negative_B = (rows.observed_BT[:, place] > 0) & (rows.targets_BT[:, place] == 0)
    others = [other for other in range(len(schema.tasks)) if other != place]
    for other in others:
        rows.observed_BT[is_negative_B, other] /= sampling.rate


def logit_offsets(schema: FeedSchema, sampling: NegativeSampling | None) -> list[float]:
    """By task, what is added to the logit in the loss."""
    rates = {} if sampling is None else {sampling.task: sampling.rate}
    return [-math.log(rates.get(task.name, 1.0)) for task in schema.tasks]
