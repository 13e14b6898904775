"""Rows of a log with a version's answers -> sums by user and task, which gates and judge read.

In: an Arrow table with the schema's columns, and a scorer, which answers as a service would, each row a request of its
own. Or what a service answered at the time, from the columns `_answer_<output>` of joined rows. Out: `Answered`.

Shapes: B rows of the table, N of them where a task's label counts, U users, O outputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from model.schema import FeedSchema
from model.scorer.batch_scoring import score_requests
from model.scorer.scorer import Scorer
from model.tasks.task import BaseTask, Scales
from training.columns import floats
from training.data.arrow import labels_of, observed_of
from training.data.groups import group_codes
from training.judge.users import TaskSums
from training.score.rows import RowReader
from training.tasks import learned
from training.tasks.learned import Floats, LearnedTask

ANSWER = "_answer_"
BATCH_ROWS = 4096


class Answered(NamedTuple):
    """Sums by user of each task's rows, and the tasks as they are learned, by name."""

    sums: dict[str, TaskSums]
    kinds: dict[str, LearnedTask]


def answers_of(scorer: Scorer, table: pa.Table) -> Floats:
    """answers_BO of a version. Raises ValueError for a row that it cannot read, with the column and the rule."""
    reader = RowReader(scorer.schema, None)
    answers_BO = np.empty((table.num_rows, len(scorer.outputs)))
    for start in range(0, table.num_rows, BATCH_ROWS):
        part, bad = reader.read(table.slice(start, BATCH_ROWS))
        if bad:
            raise ValueError(f"row {start + bad[0].row}: column '{bad[0].column}': {bad[0].rule}")
        if part is not None:
            scored = score_requests(scorer, part.requests, part.num_requests, part.columns, part.request_of_N)
            answers_BO[start : start + len(part.rows_N)] = scored.answers_NO
    return answers_BO


def logged_answers(table: pa.Table, outputs: Sequence[str]) -> Floats:
    """answers_BO that were given at the time, NaN where a version had no such output."""
    missing = np.full(table.num_rows, np.nan)
    columns = [
        floats(table.column(f"{ANSWER}{output}")) if f"{ANSWER}{output}" in table.column_names else missing
        for output in outputs
    ]
    return np.stack(columns, axis=1)


def sums_of_answers(
    schema: FeedSchema,
    scales: Scales,
    table: pa.Table,
    answers_BO: Floats,
    *,
    group_by: str | None,
    weight: str | None = None,
    tasks: Sequence[BaseTask] | None = None,
) -> Answered:
    """Sums of answers by user of `group_by`, in one order of users for all versions that answer one table. Rows
    without an answer do not count. `tasks` are those of the schema that are summed, by default all."""
    users_B = group_codes(table, group_by).astype(np.int64)
    num_users = int(users_B.max(initial=-1)) + 1
    weights_B = np.ones(table.num_rows) if weight is None else floats(table.column(weight))
    sums: dict[str, TaskSums] = {}
    kinds: dict[str, LearnedTask] = {}
    for task in schema.tasks if tasks is None else tasks:
        kind = kinds[task.name] = learned(task, scales)
        of_task_BO = answers_BO[:, schema.output_slices[task.name]]
        is_counted_B = observed_of(task, table) & np.isfinite(of_task_BO).all(axis=1)
        labels_N = labels_of(task, table)[is_counted_B]
        weights_N = weights_B[is_counted_B] * kind.impressions(labels_N)
        sums[task.name] = TaskSums.of_rows(
            kind, labels_N, of_task_BO[is_counted_B], users_B[is_counted_B], num_users, weights_N
        )
    return Answered(sums, kinds)
