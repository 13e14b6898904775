"""Arrow columns -> raw columns (model.features.kinds.columns), labels and row weights, and which rows break a rule.

Every fault is a ValueError. One in rows is a `RowFault`, which says which rows: a reader with a budget
(data.max_bad_rows) leaves them out, any other stops.

Shapes: B rows, V list values.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.features.kinds import Feature
from model.features.kinds.columns import Column, Dtype
from model.schema import FeedSchema
from model.tasks.task import BaseTask
from training.columns import floats, plain
from training.data.bad_rows import Fault, Mask, RowFault
from training.data.kinds import in_log
from training.data.kinds.values import NOT_TEXT, is_text, not_text
from training.data.usual_types import usual, usual_table
from training.tasks import learned


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


def refuse_other_text(values: pa.ChunkedArray) -> None:
    """Raise RowFault for text that is not UTF-8. That of features is checked where it is decoded."""
    values = plain(values)
    try:
        for chunk in values.chunks:
            chunk.validate(full=True)
    except pa.ArrowInvalid:
        encoded = values.combine_chunks().dictionary_encode()
        codes_B = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        raise RowFault(NOT_TEXT, np.isin(codes_B, not_text(encoded.dictionary))) from None


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


def dtypes_of(schema: FeedSchema) -> dict[str, Dtype]:
    """The dtypes of the ids of every id and id_list feature."""
    return {name: table.dtype for table in schema.tables for name in table.features}


def column_from_arrow(
    feature: Feature, dtype: Dtype | None, values: pa.ChunkedArray, *, is_coded: bool = False
) -> Column:
    """A `Column` from an Arrow column, of each string once if `is_coded`. Raises ValueError for a type that does not
    fit, and for NaN (write null)."""
    values, fault = usual(plain(values))
    if fault is not None:
        raise fault
    return in_log(feature).column(dtype, values, is_coded=is_coded)


def columns_from_arrow(schema: FeedSchema, table: pa.Table, *, is_coded: bool = False) -> dict[str, Column]:
    """The columns of every feature of a checked table."""
    dtypes = dtypes_of(schema)
    return {
        feature.name: column_from_arrow(
            feature, dtypes.get(feature.name), table.column(feature.name), is_coded=is_coded
        )
        for feature in schema.features
    }


def observed_of(task: BaseTask, table: pa.Table) -> Mask:
    """Mask of the rows whose label of a task counts."""
    if task.mask is None:
        return np.ones(table.num_rows, bool)
    observed_B: Mask = floats(table.column(task.mask)) == 1
    return observed_B


def labels_of(task: BaseTask, table: pa.Table) -> NDArray[np.float64]:
    """A task's labels in their own unit. 0 where they do not count."""
    return np.where(observed_of(task, table), learned(task).labels(table.column(task.label)), 0.0)
