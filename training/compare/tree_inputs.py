"""Inputs of boosted trees: one matrix of numbers per task and split.

In: the Arrow tables of the training split and of the requested split. Out: inputs_BF (float32, NaN where missing):
- a number as it is in the data, for trees need no transform
- an id with few distinct values as a category, missing where training never had it
- every id that is encoded as its mean label and the number of rows behind it, for the task at hand
- an id_list as its length, at most its max_length, without the ids in it
training_only features have their logged value, as they have for the networks of a comparison.

Shapes: B rows, F inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.features.block import inputs_of
from model.schema import FeedSchema
from model.strict_yaml import unknown_key
from model.tasks import Task
from training.columns import plain
from training.compare.target_encodings import Encoding, EncodingsConfig, from_all, from_earlier, out_of_fold
from training.config import DataConfig
from training.data.files import LogFiles
from training.data.kinds import in_log
from training.data.rows import labels_of, observed_of
from training.tasks import learned
from training.wording import counted

DEFAULT_FOLDS = 5

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Inputs:
    """inputs_BF with the names of its columns and which of them are categories."""

    inputs_BF: NDArray[np.float32]
    names: list[str]
    categories: list[str]


@dataclass(frozen=True, slots=True)
class Targets:
    """A task's labels on the scale that is learned, and the rows' weights, 0 where the label does not count, both
    [B]. `encoded` are the numbers that encodings are means of, by the mean's name."""

    labels_B: Floats
    weights_B: Floats
    encoded: Mapping[str, Floats]


def check_encodings(encodings: EncodingsConfig, schema: FeedSchema) -> None:
    """Raise ValueError for a feature that is no id of the schema, and for a column that is a label."""
    ids = inputs_of(schema.features).ids
    for name in encodings.features if encodings.features != "all" else ():
        if name not in ids:
            raise ValueError("encodings.features: " + unknown_key(name, ids, "id feature"))
    labels = {column for task in schema.tasks for column in (task.label, task.mask)}
    for name in encodings.columns:
        if name in labels:
            raise ValueError(f"encodings.columns: '{name}' is a label or mask column (it would leak)")
        if name in [feature.name for feature in schema.features]:
            raise ValueError(f"encodings.columns: '{name}' is a feature of the schema; name it in encodings.features")


def extra_columns(encodings: EncodingsConfig | None, data: DataConfig) -> tuple[str, ...]:
    """The columns that encodings read beside the schema's. Raises ValueError for one that the data does not have."""
    if encodings is None:
        return ()
    named = {"columns": encodings.columns, "order": () if encodings.order is None else (encodings.order,)}
    files = LogFiles(data.path)
    first = files.files[0]
    with files.opened(first) as parquet:
        known = [*parquet.schema_arrow.names, *first.partition]
    for key, names in named.items():
        for name in names:
            if name not in known:
                raise ValueError(f"{files.shown(first)}: encodings.{key}: {unknown_key(name, known, 'column')}")
    return tuple(dict.fromkeys(name for names in named.values() for name in names))


def targets_of(task: Task, table: pa.Table, weight: str | None) -> Targets:
    """A task's labels and weights. `weight` names the column of row weights."""
    kind = learned(task)
    labels_B = task.transformed(labels_of(task, table))
    weights_B = observed_of(task, table).astype(np.float64)
    if weight is not None:
        weights_B *= table.column(weight).cast(pa.float64(), safe=False).to_numpy()
    return Targets(labels_B, weights_B, kind.encoded_labels(labels_B))


class TreeInputs:
    """The inputs of a feed's trees, as the training split defines them."""

    def __init__(
        self, schema: FeedSchema, encodings: EncodingsConfig | None, max_categories: int, train: pa.Table, seed: int
    ) -> None:
        self._schema = schema
        self._encodings = encodings
        self._train = train
        ids = inputs_of(schema.features).ids
        encoded: Sequence[str] = ()
        if encodings is not None:
            encoded = [*(ids if encodings.features == "all" else encodings.features), *encodings.columns]
        self._values = {name: _distinct(name, train) for name in dict.fromkeys([*ids, *encoded])}
        self._codes = {name: _codes(name, self._values[name], train) for name in encoded}
        self._categories = [name for name in ids if len(self._values[name]) <= max_categories]
        self._groups_B = self._folds_or_order(seed)

    def _folds_or_order(self, seed: int) -> Codes:
        if self._encodings is None or self._encodings.order is None:
            folds = (self._encodings.folds if self._encodings is not None else None) or DEFAULT_FOLDS
            return np.random.default_rng(seed).permutation(self._train.num_rows) % folds
        name = self._encodings.order
        column = plain(self._train.column(name))
        if pa.types.is_nested(column.type):
            raise ValueError(f"encodings.order: column '{name}' of type {column.type} has no order")
        if column.null_count:
            raise ValueError(
                f"encodings.order: column '{name}' holds {counted(column.null_count, 'null')}; a row needs a place"
            )
        return np.unique(column.to_numpy(), return_inverse=True)[1].astype(np.int64)

    def common(self, table: pa.Table) -> Inputs:
        """The inputs that all tasks share."""
        columns: dict[str, Floats] = {}
        for feature in self._schema.features:
            columns |= in_log(feature).tree_inputs(table.column(feature.name))
            if feature.name in self._categories:
                codes_B = _codes(feature.name, self._values[feature.name], table)
                columns[feature.name] = np.where(codes_B < 0, np.nan, codes_B)
        return Inputs(_matrix(columns, table.num_rows), list(columns), self._categories)

    def with_encodings(self, common: Inputs, task: Targets, table: pa.Table | None) -> Inputs:
        """`common` with the encodings for one task. `task` is of the training split, and no table means its rows."""
        columns: dict[str, Floats] = {}
        for name in self._codes:
            for mean, labels_B in task.encoded.items():
                columns[f"{name}.{mean}"], rows_B = self._encode(name, labels_B, task.weights_B, table)
            columns[f"{name}.rows"] = rows_B
        encoded_BF = _matrix(columns, len(common.inputs_BF))
        both_BF = np.concatenate([common.inputs_BF, encoded_BF], axis=1)
        return Inputs(both_BF, [*common.names, *columns], common.categories)

    def _encode(self, name: str, labels_B: Floats, weights_B: Floats, table: pa.Table | None) -> Encoding:
        assert self._encodings is not None, "there are codes"
        smoothing, known = self._encodings.smoothing, (self._codes[name], labels_B, weights_B)
        if table is not None:
            return from_all(*known, _codes(name, self._values[name], table), smoothing)
        by_groups = out_of_fold if self._encodings.order is None else from_earlier
        return by_groups(*known, self._groups_B, smoothing)


def _distinct(name: str, table: pa.Table) -> pa.Array:
    column = table.column(name)
    try:
        # A null is an id like any other.
        return pc.unique(plain(column))
    except pa.ArrowNotImplementedError:
        raise ValueError(f"encodings.columns: column '{name}' of type {column.type} holds no ids") from None


def _codes(name: str, values: pa.Array, table: pa.Table) -> Codes:
    """The place of each row's id among `values`. -1 where it is none of them."""
    column = plain(table.column(name))
    places = pc.index_in(column.cast(values.type), value_set=values)
    codes_B: Codes = pc.fill_null(places, -1).to_numpy().astype(np.int64)
    return codes_B


def _matrix(columns: dict[str, Floats], rows: int) -> NDArray[np.float32]:
    matrix_BF = np.empty((rows, len(columns)), np.float32)
    for place, values_B in enumerate(columns.values()):
        matrix_BF[:, place] = values_B
    return matrix_BF
