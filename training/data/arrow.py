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

from model.features.kinds import Feature, IdListFeature, NumberFeature
from model.features.kinds.columns import ID_LIMITS, Column, Dtype
from model.schema import FeedSchema
from model.tasks import Task
from training.columns import floats, plain
from training.data.bad_rows import Fault, Mask, RowFault
from training.data.usual_types import usual, usual_table
from training.tasks import learned

_LIST_KINDS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_STRING_KINDS = (pa.types.is_string, pa.types.is_large_string)
_NOT_TEXT = "text that is not valid UTF-8"


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
            if name not in self._features and _is_text(table.column(name).type):
                collect(f"column '{name}'", partial(refuse_other_text, table.column(name)))
        return table, columns, faults


def _check_mask(task: Task, table: pa.Table) -> None:
    assert task.mask is not None
    values_B = floats(table.column(task.mask))
    _refuse(values_B, (values_B != 0.0) & (values_B != 1.0), "must be 0 or 1")


def _check_label(task: Task, table: pa.Table) -> None:
    column, kind = table.column(task.label), learned(task)
    labels_B = kind.labels(column)
    is_bad_B = observed_of(task, table) & ~kind.are_labels(labels_B)
    _refuse(labels_B, is_bad_B, kind.label_rule, lambda row: kind.shown_label(column[row].as_py()))


def _check_weights(weights: pa.ChunkedArray) -> None:
    weights_B = floats(weights)
    with np.errstate(invalid="ignore"):
        _refuse(weights_B, ~((weights_B >= 0) & (weights_B <= 1e9)), "must be a number from 0 to 1e9")


def refuse_other_text(values: pa.ChunkedArray) -> None:
    """Raises RowFault for text that is not UTF-8. That of features is checked where it is decoded."""
    values = plain(values)
    try:
        for chunk in values.chunks:
            chunk.validate(full=True)
    except pa.ArrowInvalid:
        encoded = values.combine_chunks().dictionary_encode()
        codes_B = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        raise RowFault(_NOT_TEXT, np.isin(codes_B, _not_text(encoded.dictionary))) from None


def _not_text(values: pa.Array) -> list[int]:
    """The places of strings that are not valid UTF-8."""
    places = []
    for place, content in enumerate(values.cast(pa.large_binary()).to_pylist()):
        try:
            content.decode()
        except UnicodeDecodeError:
            places.append(place)
    return places


def _refuse(
    values_B: NDArray[np.float64], is_bad_B: Mask, rule: str, shown: Callable[[int], str] | None = None
) -> None:
    """Raises RowFault where a row is bad. `shown` gives a row's value in words, where it is not the number."""

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
    feature: Feature, dtype: str | None, values: pa.ChunkedArray, *, is_coded: bool = False
) -> Column:
    """A `Column` from an Arrow column, of each string once if `is_coded`. Raises ValueError for a type that does not
    fit, and for NaN (write null)."""
    values, fault = usual(plain(values))
    if fault is not None:
        raise fault
    if isinstance(feature, NumberFeature):
        numbers_B = floats(values)
        missing = values.is_null().to_numpy() if values.null_count else None
        is_bad = ~np.isfinite(numbers_B) if missing is None else ~np.isfinite(numbers_B) & ~missing
        if is_bad.any():
            raise RowFault("NaN or infinity; write null where a number is missing", is_bad)
        return Column(np.where(missing, 0.0, numbers_B) if missing is not None else numbers_B, missing)
    if isinstance(feature, IdListFeature):
        if pa.types.is_null(values.type):
            values = values.cast(pa.list_(pa.null()))
        if not any(is_kind(values.type) for is_kind in _LIST_KINDS):
            raise ValueError(f"is {values.type}, an id_list needs a list column")
        lengths_B = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)
        elements = plain(pc.list_flatten(values))
        _refuse_kind(dtype, elements.type, str(values.type), "lists")
        return _ids(dtype, elements, lengths_B, is_coded=is_coded)
    _refuse_kind(dtype, values.type, str(values.type), "column")
    return _ids(dtype, values, is_coded=is_coded)


def _refuse_kind(dtype: str | None, kind: pa.DataType, shown: str, what: str) -> None:
    is_good = pa.types.is_integer(kind) if dtype == "int64" else _is_text(kind)
    if not is_good and not pa.types.is_null(kind):
        needs = {"column": "an integer column", "lists": "lists of integers"}
        if dtype == "string":
            needs = {"column": "a string column", "lists": "lists of strings"}
        raise ValueError(f"is {shown}, an id of dtype {dtype} needs {needs[what]}")


def _is_text(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in _STRING_KINDS)


def _ids(
    dtype: str | None, values: pa.ChunkedArray, lengths_B: NDArray[np.int64] | None = None, *, is_coded: bool
) -> Column:
    kind = values.type
    missing = values.is_null().to_numpy() if values.null_count else None
    if pa.types.is_null(kind):
        empty: list[str] | NDArray[np.int64] = (
            [""] * len(values) if dtype == "string" else np.zeros(len(values), np.int64)
        )
        return Column(empty, missing, lengths_B)
    if dtype == "int64":
        try:
            return Column(pc.fill_null(values.cast(pa.int64()), 0).to_numpy(), missing, lengths_B)
        except pa.ArrowInvalid:
            is_bad_V: Mask = pc.fill_null(pc.greater(values, pa.scalar(ID_LIMITS[1], kind)), False).to_numpy()
            raise RowFault("an id beyond int64", _rows_of(is_bad_V, lengths_B)) from None
    # One Python string per distinct value: rows share it, at any length of the column.
    encoded = pc.fill_null(values.cast(pa.string()), "").combine_chunks().dictionary_encode()
    try:
        strings = encoded.dictionary.to_pylist()
    except UnicodeDecodeError:
        is_bad_V = np.isin(encoded.indices.to_numpy(), _not_text(encoded.dictionary))
        raise RowFault(_NOT_TEXT, _rows_of(is_bad_V, lengths_B)) from None
    column = Column(strings, missing, lengths_B, encoded.indices.to_numpy())
    return column if is_coded else column.decoded()


def _rows_of(is_bad_V: Mask, lengths_B: NDArray[np.int64] | None) -> Mask:
    """The rows of values, which are in lists of the given lengths if any."""
    if lengths_B is None:
        return is_bad_V
    is_bad_B = np.zeros(len(lengths_B), bool)
    is_bad_B[np.repeat(np.arange(len(lengths_B)), lengths_B)[is_bad_V]] = True
    return is_bad_B


def columns_from_arrow(schema: FeedSchema, table: pa.Table, *, is_coded: bool = False) -> dict[str, Column]:
    """The columns of every feature of a checked table."""
    dtypes = dtypes_of(schema)
    return {
        feature.name: column_from_arrow(
            feature, dtypes.get(feature.name), table.column(feature.name), is_coded=is_coded
        )
        for feature in schema.features
    }


def observed_of(task: Task, table: pa.Table) -> Mask:
    """Mask of the rows whose label of a task counts."""
    if task.mask is None:
        return np.ones(table.num_rows, bool)
    observed_B: Mask = floats(table.column(task.mask)) == 1
    return observed_B


def labels_of(task: Task, table: pa.Table) -> NDArray[np.float64]:
    """A task's labels in their own unit. 0 where they do not count."""
    return np.where(observed_of(task, table), learned(task).labels(table.column(task.label)), 0.0)
