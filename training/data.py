"""Parquet -> model inputs: reads a folder, splits it by a column, checks it, encodes it by model.features.

In: any folder of *.parquet files with the schema's columns. Out: per split an Arrow table (`read_splits`), then
`Rows`, tensors that batches are gathered from. A split is held in memory. Every fault is a ValueError that names the
file, the column and, for a value, the row in that file.

Shapes: B rows, T tasks, L list features, V list values.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from model.columns import Column
from model.embeddings import BlockTensors
from model.features import Encoded, FeatureEncoder, FittedFeatures, transform_target
from model.schema import ID_LIMITS, BinaryTask, Feature, FeedSchema, IdListFeature, NumberFeature, RegressionTask, Task
from training.config import DataConfig, Range, Scalar, Selection, SplitName

_NUMBER_KINDS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
_LIST_KINDS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_STRING_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def read_splits(
    config: DataConfig, schema: FeedSchema, wanted: tuple[SplitName, ...], extra: tuple[str, ...] = ()
) -> dict[SplitName, pa.Table]:
    """The rows of each wanted split, in file and row order, with `extra` columns beside the schema's.

    Raises ValueError where a split has no row."""
    files = sorted(config.path.glob("*.parquet"))
    if not files:
        raise ValueError(f"{config.path}: no *.parquet file here")
    selections: dict[SplitName, Selection] = {
        split: selection for split in get_args(SplitName) if (selection := getattr(config.split, split)) is not None
    }
    for split in wanted:
        if split not in selections:
            raise ValueError(f"data.split.{split} is not given in the training file")
    optional = [name for name in (config.group_by, config.weight) if name is not None]
    names = list(dict.fromkeys([*schema.columns(), config.split.column, *optional, *extra]))
    parts: dict[SplitName, list[pa.Table]] = {split: [] for split in wanted}
    for file in files:
        table = _read(file, names)
        _check(table, file, schema)
        if config.weight is not None:
            _check_weights(table.column(config.weight), file, config.weight)
        column = _plain(table.column(config.split.column))
        masks = {
            split: _selected(column, selection, file, config.split.column) for split, selection in selections.items()
        }
        _refuse_overlap(masks, file, config.split.column)
        for split in wanted:
            parts[split].append(table.filter(masks[split]))
    try:
        splits = {split: pa.concat_tables(tables, promote_options="permissive") for split, tables in parts.items()}
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{config.path}: its files hold one column with types that do not mix ({reason})") from None
    for split, table in splits.items():
        if not table.num_rows:
            raise ValueError(
                f"{config.path}: no row is in split {split}: column '{config.split.column}' never matches "
                f"{selections[split]}"
            )
    return splits


def _read(file: Path, names: list[str]) -> pa.Table:
    try:
        parquet = pq.ParquetFile(file)
        absent = [name for name in names if name not in parquet.schema_arrow.names]
        if absent:
            raise ValueError(f"{file}: no column {', '.join(repr(name) for name in absent)}")
        twice = [name for name in names if parquet.schema_arrow.names.count(name) > 1]
        if twice:
            raise ValueError(f"{file}: more than one column {', '.join(repr(name) for name in twice)}")
        return parquet.read(columns=names)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _selected(column: pa.ChunkedArray, selection: Selection, file: Path, name: str) -> pa.ChunkedArray:
    try:
        if isinstance(selection, Range):
            keep = pc.is_valid(column)
            if selection.min is not None:
                keep = pc.and_(keep, pc.greater_equal(column, _bound(selection.min, column.type)))
            if selection.max is not None:
                keep = pc.and_(keep, pc.less_equal(column, _bound(selection.max, column.type)))
            return pc.fill_null(keep, False)
        values = selection if isinstance(selection, list) else [selection]
        return pc.is_in(column, value_set=pa.array(values).cast(column.type))
    except (pa.ArrowException, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{file}: split column '{name}' of type {column.type} does not compare with {selection} ({reason})"
        ) from None


def _bound(value: Scalar, kind: pa.DataType) -> pa.Scalar:
    # Dates and times are written as text, for example "2022-05-06".
    return pa.scalar(value).cast(kind) if pa.types.is_temporal(kind) else pa.scalar(value)


def _refuse_overlap(masks: Mapping[SplitName, pa.ChunkedArray], file: Path, column: str) -> None:
    for one, other in combinations(masks, 2):
        both = pc.and_(masks[one], masks[other])
        shared = pc.sum(both).as_py() or 0
        if shared:
            raise ValueError(
                f"{file}: column '{column}': {shared} rows are in split {one} and in split {other} (first: row "
                f"{pc.index(both, True).as_py()}); the splits of a row must not overlap"
            )


def _check(table: pa.Table, file: Path, schema: FeedSchema) -> None:
    for feature in schema.features:
        try:
            column_from_arrow(feature, _dtype(schema, feature), table.column(feature.name))
        except ValueError as error:
            raise ValueError(f"{file}: column '{feature.name}': {error}") from None
    for task in schema.tasks:
        column = task.label
        try:
            observed_B = np.ones(table.num_rows, bool)
            if task.mask is not None:
                column = task.mask
                observed_B = _binary(table.column(column), np.ones(table.num_rows, bool)) == 1
            column = task.label
            labels = table.column(column)
            _binary(labels, observed_B) if isinstance(task, BinaryTask) else _quantity(labels, observed_B)
        except ValueError as error:
            raise ValueError(f"{file}: column '{column}' (task {task.name}): {error}") from None


def _check_weights(weights: pa.ChunkedArray, file: Path, name: str) -> None:
    try:
        weights_B = _floats(weights)
        with np.errstate(invalid="ignore"):
            _refuse(weights_B, ~((weights_B >= 0) & (weights_B <= 1e9)), "must be a number from 0 to 1e9")
    except ValueError as error:
        raise ValueError(f"{file}: column '{name}' (row weights, data.weight): {error}") from None


def _dtype(schema: FeedSchema, feature: Feature) -> str | None:
    return next((table.dtype for table in schema.tables if feature.name in table.features), None)


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary column as the values that it stands for; a null in the dictionary becomes a null of the column."""
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _floats(values: pa.ChunkedArray) -> NDArray[np.float64]:
    """Numbers as float64, null as NaN."""
    kind = values.type
    if not any(is_kind(kind) for is_kind in _NUMBER_KINDS):
        raise ValueError(f"is {kind}, not a number")
    return cast(NDArray[np.float64], values.cast(pa.float64(), safe=False).to_numpy())


def _binary(values: pa.ChunkedArray, observed_B: NDArray[np.bool_]) -> NDArray[np.float64]:
    labels_B = _floats(values)
    _refuse(labels_B, observed_B & ~np.isin(labels_B, (0.0, 1.0)), "must be 0 or 1")
    return labels_B


def _quantity(values: pa.ChunkedArray, observed_B: NDArray[np.bool_]) -> NDArray[np.float64]:
    labels_B = _floats(values)
    with np.errstate(invalid="ignore"):
        _refuse(labels_B, observed_B & ~((labels_B >= 0) & np.isfinite(labels_B)), "must be a finite number >= 0")
    return labels_B


def _refuse(labels_B: NDArray[np.float64], is_bad_B: NDArray[np.bool_], rule: str) -> None:
    if is_bad_B.any():
        row = int(is_bad_B.argmax())
        shown = "null (mask it or drop the row)" if np.isnan(labels_B[row]) else f"{labels_B[row]:g}"
        raise ValueError(f"row {row}: {rule}, got {shown}; {int(is_bad_B.sum())} such rows")


def column_from_arrow(feature: Feature, dtype: str | None, values: pa.ChunkedArray) -> Column:
    """A `Column` from an Arrow column. Raises ValueError for a type that does not fit, and for NaN (write null)."""
    values = _plain(values)
    if isinstance(feature, NumberFeature):
        floats = _floats(values)
        missing = values.is_null().to_numpy() if values.null_count else None
        is_bad = ~np.isfinite(floats) if missing is None else ~np.isfinite(floats) & ~missing
        if is_bad.any():
            raise ValueError(f"row {int(is_bad.argmax())}: NaN or infinity; write null where a number is missing")
        return Column(np.where(missing, 0.0, floats) if missing is not None else floats, missing)
    if isinstance(feature, IdListFeature):
        if pa.types.is_null(values.type):
            values = values.cast(pa.list_(pa.null()))
        if not any(is_kind(values.type) for is_kind in _LIST_KINDS):
            raise ValueError(f"is {values.type}, an id_list needs a list column")
        lengths_B = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)
        flat = _ids(dtype, _plain(pc.list_flatten(values)), lengths_B)
        return Column(flat.values, flat.missing, lengths_B)
    return _ids(dtype, values)


def _ids(dtype: str | None, values: pa.ChunkedArray, lengths_B: NDArray[np.int64] | None = None) -> Column:
    kind = values.type
    missing = values.is_null().to_numpy() if values.null_count else None
    if pa.types.is_null(kind):
        empty: list[str] | NDArray[np.int64] = (
            [""] * len(values) if dtype == "string" else np.zeros(len(values), np.int64)
        )
        return Column(empty, missing)
    if dtype == "int64":
        if not pa.types.is_integer(kind):
            raise ValueError(f"is {values.type}, an id of dtype int64 needs an integer column")
        try:
            return Column(pc.fill_null(values.cast(pa.int64()), 0).to_numpy(), missing)
        except pa.ArrowInvalid:
            place = pc.index(pc.greater(values, pa.scalar(ID_LIMITS[1], kind)), True).as_py()
            row = place if lengths_B is None else int(np.searchsorted(np.cumsum(lengths_B), place, side="right"))
            raise ValueError(f"row {row}: an id beyond int64") from None
    if not any(is_kind(kind) for is_kind in _STRING_KINDS):
        raise ValueError(f"is {values.type}, an id of dtype string needs a string column")
    # One Python string per distinct value: rows share it, whatever the column's length.
    encoded = pc.fill_null(values.cast(pa.string()), "").combine_chunks().dictionary_encode()
    distinct = np.array([*encoded.dictionary.to_pylist(), ""], dtype=object)[:-1]
    return Column(cast(list[str], distinct[encoded.indices.to_numpy()].tolist()), missing)


def columns_from_arrow(schema: FeedSchema, table: pa.Table) -> dict[str, Column]:
    """The columns of every feature of a checked table."""
    return {
        feature.name: column_from_arrow(feature, _dtype(schema, feature), table.column(feature.name))
        for feature in schema.features
    }


def observed_of(task: Task, table: pa.Table) -> NDArray[np.bool_]:
    """Where a task's label counts."""
    if task.mask is None:
        return np.ones(table.num_rows, bool)
    observed_B: NDArray[np.bool_] = _floats(table.column(task.mask)) == 1
    return observed_B


def labels_of(task: Task, table: pa.Table) -> NDArray[np.float64]:
    """A task's labels in their own unit; 0 where they do not count."""
    return np.where(observed_of(task, table), _floats(table.column(task.label)), 0.0)


def fit_features(schema: FeedSchema, table: pa.Table, columns: Mapping[str, Column]) -> FittedFeatures:
    """Fits vocabularies, transforms and label scales on the training split."""
    targets = {
        task.name: transform_target(labels_of(task, table)[observed_of(task, table)], task.transform)
        for task in schema.tasks
        if isinstance(task, RegressionTask)
    }
    return FittedFeatures.fit(schema, columns, targets)


class Batch(NamedTuple):
    """Inputs, targets_BT on the scale they are learned on, observed_BT (1 where a label counts), row weights if any.

    `numbers_B` are the rows' numbers in their split, where a reader has such, for what is said to the user."""

    request: BlockTensors
    candidate: BlockTensors
    targets_BT: Tensor
    observed_BT: Tensor
    weights_B: Tensor | None = None
    numbers_B: Tensor | None = None


class Rows:
    """A split as tensors, from which batches are gathered by row number."""

    def __init__(
        self,
        request: Encoded,
        candidate: Encoded,
        targets_BT: Tensor,
        observed_BT: Tensor,
        weights_B: Tensor | None = None,
    ) -> None:
        self._request = _Block(request)
        self._candidate = _Block(candidate)
        self.targets_BT = targets_BT
        self.observed_BT = observed_BT
        self.weights_B = weights_B

    def __len__(self) -> int:
        return len(self.targets_BT)

    @classmethod
    def encode(
        cls,
        schema: FeedSchema,
        encoder: FeatureEncoder,
        table: pa.Table,
        columns: Mapping[str, Column],
        *,
        as_served: bool,
        weight: str | None = None,
    ) -> "Rows":
        """Encodes a split's columns (`columns_from_arrow`); `as_served` gives training_only
        features their serving value, `weight` names the column of row weights. Raises ValueError where all are 0."""
        rows = table.num_rows
        targets_BT = np.empty((rows, len(schema.tasks)), np.float32)
        observed_BT = np.empty((rows, len(schema.tasks)), np.float32)
        for position, task in enumerate(schema.tasks):
            labels_B = labels_of(task, table)
            if isinstance(task, RegressionTask):
                scale = encoder.fitted.targets[task.name]
                labels_B = (transform_target(labels_B, task.transform) - scale.mean) / scale.scale
            targets_BT[:, position] = labels_B
            observed_BT[:, position] = observed_of(task, table)
        weights_B = None if weight is None else torch.from_numpy(_floats(table.column(weight)).astype(np.float32))
        if weights_B is not None and not weights_B.any():
            raise ValueError(f"column '{weight}' (row weights, data.weight): all {rows} weights are 0")
        return cls(
            encoder.encode("request", columns, rows, as_served=as_served),
            encoder.encode("candidate", columns, rows, as_served=as_served),
            torch.from_numpy(targets_BT),
            torch.from_numpy(observed_BT),
            weights_B,
        )

    def fingerprint(self) -> str:
        """A hash over every row and label, in order: equal for the same split, encoded alike."""
        digest = xxhash.xxh3_128()
        weights = () if self.weights_B is None else (self.weights_B,)
        blocks = (*self._request.tensors(), *self._candidate.tensors())
        for tensor in (*blocks, self.targets_BT, self.observed_BT, *weights):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def take(self, rows_B: Tensor) -> Batch:
        """The batch of the given row numbers."""
        return Batch(
            self._request.take(rows_B),
            self._candidate.take(rows_B),
            self.targets_BT[rows_B],
            self.observed_BT[rows_B],
            None if self.weights_B is None else self.weights_B[rows_B],
            rows_B,
        )

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All rows in order."""
        for start in range(0, len(self), batch_size):
            yield self.take(torch.arange(start, min(start + batch_size, len(self))))


class _Block:
    """One encoded block with the offsets that a jagged gather needs."""

    def __init__(self, encoded: Encoded) -> None:
        block = encoded.block
        self.ids_BK = torch.from_numpy(block.ids_BK)
        self.numbers_BN = torch.from_numpy(block.numbers_BD)
        self.values_V = torch.from_numpy(block.list_values_V)
        self.lengths_LB = torch.from_numpy(block.list_lengths_LB)
        flat = self.lengths_LB.reshape(-1)
        self.starts_LB = (torch.cumsum(flat, 0) - flat).view(self.lengths_LB.shape)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.ids_BK, self.values_V, self.lengths_LB, self.numbers_BN)

    def take(self, rows_B: Tensor) -> BlockTensors:
        lengths_LB = self.lengths_LB[:, rows_B]
        flat = lengths_LB.reshape(-1)
        # Value v of a gathered list stands at its list's start plus its rank within the list.
        before = torch.cumsum(flat, 0) - flat
        positions = torch.repeat_interleave(self.starts_LB[:, rows_B].reshape(-1) - before, flat)
        positions += torch.arange(len(positions))
        return BlockTensors(self.ids_BK[rows_B], self.values_V[positions], lengths_LB, self.numbers_BN[rows_B])
