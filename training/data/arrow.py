"""Arrow columns -> raw columns (model.features.kinds.columns), labels and row weights, and which rows break a rule.

Every fault is a ValueError. One in rows is a `RowFault`, which says which rows: a reader with a budget
(data.max_bad_rows) leaves them out, any other stops.

Shapes: B rows, V list values.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.features.kinds import Feature
from model.features.kinds.columns import Column
from model.schema import FeedSchema
from model.tasks.task import BaseTask
from training.columns import floats
from training.data.bad_rows import Fault, Mask, RowFault
from training.data.files import LogFiles
from training.data.kinds.columns import column_from_arrow, dtypes_of
from training.data.kinds.values import is_text, refuse_other_text
from training.data.usual_types import usual_table, usual_type
from training.tasks import learned
from training.wording import counted


class LogColumns:
    """The columns that training reads of a log: features, labels, masks, row weights."""

    def __init__(self, schema: FeedSchema, weight: str | None = None, *, is_coded: bool = False) -> None:
        """Strings are given each once if `is_coded` (model.features.kinds.columns.Column)."""
        self._is_coded = is_coded
        self._schema = schema
        self._weight = weight
        self._dtypes = dtypes_of(schema)
        self._features = {feature.name for feature in schema.features}

    def read(self, table: pa.Table, place: str) -> tuple[pa.Table, dict[str, Column], list[Fault]]:
        """The table in usual types, the features' columns, and the faults of rows in all that is read. A feature at
        fault has no column. Raises ValueError for a column that cannot be used at all. `place` (a file, say) opens the
        message."""
        columns: dict[str, Column] = {}
        table, odd = usual_table(table)
        faults = [Fault(f"column '{name}'", fault) for name, fault in odd.items()]

        def take(feature: Feature) -> None:
            values = table.column(feature.name)
            columns[feature.name] = column_from_arrow(
                feature, self._dtypes.get(feature.name), values, is_coded=self._is_coded
            )

        def collect(column: str, check: Callable[[], None]) -> None:
            try:
                check()
            except RowFault as fault:
                faults.append(Fault(column, fault))
            except ValueError as error:
                raise ValueError(f"{place}: {column}: {error}") from None

        for feature in self._schema.features:
            collect(f"column '{feature.name}'", partial(take, feature))
        for task in self._schema.tasks:
            if task.mask is not None:
                collect(f"column '{task.mask}' (task {task.name})", partial(_check_mask, task, table))
            collect(f"column '{task.label}' (task {task.name})", partial(_check_label, task, table))
        if self._weight is not None:
            column = f"column '{self._weight}' (row weights, data.weight)"
            collect(column, partial(_check_weights, table.column(self._weight)))
        for name in table.column_names:
            if name not in self._features and is_text(table.column(name).type):
                collect(f"column '{name}'", partial(refuse_other_text, table.column(name)))
        return table, columns, faults


class AbsentColumns:
    """Columns that a file of a log may lack: features, and labels of tasks with a mask, with their masks. A feature is
    null there, and rows without a label do not count. Those in `required` every file has."""

    def __init__(self, schema: FeedSchema, required: Sequence[str]) -> None:
        self._masks = {task.label: task.mask for task in schema.tasks if task.mask is not None}
        self._tasks = {task.label: task.name for task in schema.tasks}
        features = {feature.name for feature in schema.features}
        self.may_lack = frozenset((features | {*self._masks, *self._masks.values()}) - {*required})

    def fill(self, table: pa.Table, files: LogFiles, place: str) -> tuple[pa.Table, list[str]]:
        """The table with its absent columns, and their names. Raises ValueError for one that no file of the log has,
        for a mask without its label, and for an absent label of rows that count."""
        absent = sorted(self.may_lack.difference(table.column_names))
        for name in absent:
            kind = files.type_of(name)
            if kind is None:
                raise ValueError(f"{place}: no column '{name}', nor in another file of the log")
            if name in self._masks.values():
                values = pa.array(np.zeros(table.num_rows, np.int8)).cast(usual_type(kind))
            else:
                # Null for a feature: what its type should be is a matter of the files that have it.
                values = pa.nulls(table.num_rows, usual_type(kind) if name in self._masks else pa.null())
            table = table.append_column(name, values)
        for label, mask in self._masks.items():
            if mask in absent and label not in absent:
                raise ValueError(f"{place}: no column '{mask}', the mask of label '{label}'; write both or neither")
            rows = int((floats(table.column(mask)) == 1).sum()) if label in absent else 0
            if rows:
                raise ValueError(
                    f"{place}: no column '{label}' (task {self._tasks[label]}), whose mask '{mask}' is 1 in "
                    f"{counted(rows, 'row')}; mask them"
                )
        return table, absent

    def as_typed(self, table: pa.Table, files: LogFiles) -> pa.Table:
        """A split in whose files a column is absent from all, with the type that it has elsewhere."""
        for place, held in enumerate(table.schema):
            kind = files.type_of(held.name) if pa.types.is_null(held.type) and held.name in self.may_lack else None
            if kind is not None:
                table = table.set_column(place, held.name, pa.nulls(table.num_rows, usual_type(kind)))
        return table


def _check_mask(task: BaseTask, table: pa.Table) -> None:
    assert task.mask is not None
    values_B = floats(table.column(task.mask))
    _refuse(values_B, (values_B != 0.0) & (values_B != 1.0), "must be 0 or 1")


def _check_label(task: BaseTask, table: pa.Table) -> None:
    column, kind = table.column(task.label), learned(task)
    labels_B = kind.labels(column)
    is_bad_B = observed_of(task, table) & ~kind.are_labels(labels_B)
    _refuse(labels_B, is_bad_B, kind.label_rule, lambda row: kind.shown_label(column[row].as_py()))


def _check_weights(weights: pa.ChunkedArray) -> None:
    weights_B = floats(weights)
    with np.errstate(invalid="ignore"):
        _refuse(weights_B, ~((weights_B >= 0) & (weights_B <= 1e9)), "must be a number from 0 to 1e9")


def _refuse(
    values_B: NDArray[np.float64], is_bad_B: Mask, rule: str, shown: Callable[[int], str] | None = None
) -> None:
    """Raise RowFault where a row is bad. `shown` gives a row's value in words, where it is not the number."""

    def got(row: int) -> str:
        if np.isnan(values_B[row]):
            return "null or NaN (mask it or drop the row)"
        return f"{values_B[row]:g}" if shown is None else shown(row)

    if is_bad_B.any():
        raise RowFault(rule, is_bad_B, got)


def observed_of(task: BaseTask, table: pa.Table) -> Mask:
    """Mask of the rows whose label of a task counts."""
    if task.mask is None:
        return np.ones(table.num_rows, bool)
    observed_B: Mask = floats(table.column(task.mask)) == 1
    return observed_B


def labels_of(task: BaseTask, table: pa.Table) -> NDArray[np.float64]:
    """A task's labels in their own unit. 0 where they do not count."""
    return np.where(observed_of(task, table), learned(task).labels(table.column(task.label)), 0.0)
