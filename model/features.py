"""Raw feature values -> ids, list ids and numbers: the ONE code path of training and serving.

In: columns (model.columns) made from JSON by `column_from_values` or from Arrow by training.data. Out: `Encoded`
blocks of int64 table rows and float32 numbers, the only inputs that a ranker sees.

Rules, the same everywhere: a missing id takes row 0 of its table (the OOV row), as does an id that a vocabulary does
not hold; hashed ids take rows 1..buckets; a missing list is empty; a missing number takes the schema's `missing`.
Strings hash by XXH3 of their UTF-8 bytes, integers by SplitMix64's finaliser: stable across machines and versions.

Shapes: B rows, K single-id features, L list features, V list values in all, D numbers.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, NamedTuple, Self

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field, StrictInt, StrictStr

from model.columns import FAULTS_SHOWN, Column, ColumnError, ColumnErrors, ColumnFault, Ids, Values, column_from_values
from model.schema import (
    Block,
    Dtype,
    Feature,
    FeedSchema,
    IdFeature,
    IdListFeature,
    NumberFeature,
    NumberTransform,
    RegressionTask,
    Table,
)
from model.strict_yaml import StrictModel

__all__ = [
    "Column",
    "ColumnError",
    "ColumnErrors",
    "ColumnFault",
    "Encoded",
    "EncodedBlock",
    "FeatureEncoder",
    "FittedFeatures",
    "column_from_values",
]

OOV_ROW = 0
# Beyond this a float32 network may overflow to infinity; no feature of a feed lives there.
NUMBER_LIMIT = 1e9
# Raw values are cut here, so that no transform overflows float64.
RAW_LIMIT = 1e100
QUANTILE_KNOTS = 101


class EncodedBlock(NamedTuple):
    """One block (request or candidate) of model inputs: `ids_BK`, list ids feature by feature, `numbers_BD`."""

    ids_BK: Ids
    list_values_V: Ids
    list_lengths_LB: Ids
    numbers_BD: NDArray[np.float32]


class Encoded(NamedTuple):
    """An encoded block, and per feature how many rows were missing (an empty list counts as missing) and how many ids
    were unknown to a vocabulary."""

    block: EncodedBlock
    missing: dict[str, int]
    oov: dict[str, int]


class NumberStep(StrictModel):
    """One fitted transform: `standardise` keeps mean and scale, `quantile` its knots (raw values at even ranks)."""

    transform: NumberTransform
    mean: float = 0.0
    scale: float = 1.0
    knots: tuple[float, ...] = ()

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transforms raw values, any shape."""
        if self.transform == "log1p":
            return np.sign(values) * np.log1p(np.abs(values))
        if self.transform == "standardise":
            return (values - self.mean) / self.scale
        # Average of the ranks from both sides: a value that fills many knots gets their middle, not one end.
        knots = np.asarray(self.knots)
        last = max(len(knots) - 1, 1)
        ranks = np.interp(values, *_collapse(knots, last))
        return ranks * 2.0 - 1.0


class TargetScale(StrictModel):
    """Mean and scale of a regression label after its transform, on the training split."""

    mean: float
    scale: float


class FittedFeatures(StrictModel):
    """What the training split taught the features: vocabularies by table, number transforms, label scales."""

    vocabularies: dict[str, tuple[StrictInt, ...] | tuple[StrictStr, ...]] = Field(default_factory=dict)
    numbers: dict[str, tuple[NumberStep, ...]] = Field(default_factory=dict)
    targets: dict[str, TargetScale] = Field(default_factory=dict)

    @classmethod
    def fit(cls, schema: FeedSchema, columns: Mapping[str, Column], targets: Mapping[str, NDArray[np.float64]]) -> Self:
        """Fits on the training split's columns and on the transformed labels of its regression tasks."""
        return cls(
            vocabularies={
                table.name: _fit_vocabulary(table, columns) for table in schema.tables if table.vocabulary == "fitted"
            },
            numbers={
                feature.name: _fit_number(feature, columns[feature.name])
                for feature in schema.features
                if isinstance(feature, NumberFeature)
            },
            targets={
                task.name: _fit_target(targets[task.name]) for task in schema.tasks if isinstance(task, RegressionTask)
            },
        )


class FeatureEncoder:
    """Turns raw columns into model inputs, for one schema and what was fitted for it."""

    def __init__(self, schema: FeedSchema, fitted: FittedFeatures) -> None:
        self.schema = schema
        self.fitted = fitted
        self.rows_of_table: dict[str, int] = {}
        self._dtypes: dict[str, Dtype] = {}
        self._lookups: dict[str, _Lookup] = {}
        for table in schema.tables:
            lookup = _lookup(table, fitted)
            self.rows_of_table[table.name] = lookup.rows
            for name in table.features:
                self._lookups[name] = lookup
                self._dtypes[name] = table.dtype
        self._steps = {
            feature.name: _fitted_steps(feature, fitted)
            for feature in schema.features
            if isinstance(feature, NumberFeature)
        }
        self._fixed = {f.name: _fixed_column(f) for f in schema.features if f.side == "training_only"}

    def dtype(self, feature: str) -> Dtype:
        """The dtype of an id or id_list feature's values."""
        return self._dtypes[feature]

    def columns(self, block: Block, values: Mapping[str, Sequence[object]], rows: int) -> dict[str, Column]:
        """The columns of a scoring request's block from JSON values, `rows` of each. Raises ColumnErrors with
        every unknown feature, ragged column and value of a wrong type, the first FAULTS_SHOWN columns of them."""
        asked = {feature.name: feature for feature in self.schema.asked(block)}
        columns: dict[str, Column] = {}
        errors: list[ColumnError] = []
        for name, column in values.items():
            if len(errors) == FAULTS_SHOWN:
                break  # naming the nearest feature for each of a hostile million would take minutes
            feature = asked.get(name)
            if feature is None:
                errors.append(ColumnError(name, [ColumnFault(None, self._unknown(name, list(asked)))]))
            elif len(column) != rows:
                fault = ColumnFault(None, f"ragged: {len(column)} values for {rows} candidates")
                errors.append(ColumnError(name, [fault]))
            else:
                try:
                    columns[name] = column_from_values(feature, self._dtypes.get(name), column)
                except ColumnError as error:
                    errors.append(error)
        if errors:
            raise ColumnErrors(errors)
        return columns

    def _unknown(self, name: str, asked: list[str]) -> str:
        sides = {feature.name: feature.side for feature in self.schema.features}
        if name in sides:
            return f"is a {sides[name]} feature and does not belong here"
        nearest = difflib.get_close_matches(name, asked, n=1, cutoff=0.5)
        return "unknown feature" + (f"; did you mean '{nearest[0]}'?" if nearest else "")

    def encode(self, block: Block, columns: Mapping[str, Column], rows: int, *, as_served: bool) -> Encoded:
        """Encodes one block of `rows` rows. An absent column is missing in every row; with `as_served`, training_only
        features take their serving value, whatever the columns say."""
        ids: list[Ids] = []
        list_values: list[Ids] = []
        list_lengths: list[Ids] = []
        numbers: list[NDArray[np.float64]] = []
        missing: dict[str, int] = {}
        oov: dict[str, int] = {}
        for feature in self.schema.block(block):
            fixed = as_served and feature.side == "training_only"
            column = self._fixed[feature.name] if fixed else columns.get(feature.name)
            is_counted = not fixed
            if isinstance(feature, NumberFeature):
                numbers.append(self._encode_number(feature, column, rows))
                absent = rows if column is None else _count(column.missing)
            elif isinstance(feature, IdFeature):
                ids_B = np.zeros(rows, np.int64) if column is None else self._lookups[feature.name](column)
                ids.append(np.broadcast_to(ids_B, (rows,)))
                absent = rows if column is None else _count(column.missing)
                if is_counted:
                    oov[feature.name] = int(np.count_nonzero(ids_B == OOV_ROW)) - absent
            else:
                values_V, lengths_B = self._encode_list(feature, column, rows)
                list_values.append(values_V)
                list_lengths.append(lengths_B)
                absent = int(np.count_nonzero(lengths_B == 0))
                oov[feature.name] = int(np.count_nonzero(values_V == OOV_ROW))
            if is_counted:
                missing[feature.name] = absent
        encoded = EncodedBlock(
            ids_BK=np.stack(ids, axis=1) if ids else np.zeros((rows, 0), np.int64),
            list_values_V=np.concatenate(list_values) if list_values else np.zeros(0, np.int64),
            list_lengths_LB=np.stack(list_lengths) if list_lengths else np.zeros((0, rows), np.int64),
            numbers_BD=_stack_numbers(numbers, rows),
        )
        return Encoded(encoded, missing, oov)

    def _encode_number(self, feature: NumberFeature, column: Column | None, rows: int) -> NDArray[np.float64]:
        if column is None:
            values = np.full(rows, feature.missing).clip(-RAW_LIMIT, RAW_LIMIT)
        else:
            values = np.broadcast_to(_numbers(column, feature.missing), (rows,))
        for step in self._steps[feature.name]:
            values = step.apply(values)
        return values

    def _encode_list(self, feature: IdListFeature, column: Column | None, rows: int) -> tuple[Ids, Ids]:
        if column is None:
            return np.zeros(0, np.int64), np.zeros(rows, np.int64)
        assert column.lengths_B is not None
        ids_V = self._lookups[feature.name](column)
        return keep_latest(ids_V, column.lengths_B, feature.max_length)


def keep_latest(values_V: Ids, lengths_B: Ids, most: int) -> tuple[Ids, Ids]:
    """Keeps the last `most` values of each row of a flattened list column."""
    if not len(lengths_B) or int(lengths_B.max()) <= most:
        return values_V, lengths_B
    ends_B = np.cumsum(lengths_B)
    from_end_V = np.repeat(ends_B, lengths_B) - np.arange(len(values_V))
    return values_V[from_end_V <= most], np.minimum(lengths_B, most)


def hash_strings(values: Sequence[str]) -> NDArray[np.uint64]:
    """XXH3-64 of each string's UTF-8 bytes."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, map(str.encode, values)), np.uint64, len(values))


def hash_integers(values: Ids) -> NDArray[np.uint64]:
    """SplitMix64's finaliser over the two's-complement bits: a bijection of 64-bit words that spreads low bits."""
    word = values.view(np.uint64) if values.flags.c_contiguous else np.ascontiguousarray(values).view(np.uint64)
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class _Lookup:
    """Raw values -> table rows, for one table."""

    rows: int
    find: Callable[[Values], Ids]

    def __call__(self, column: Column) -> Ids:
        ids = self.find(column.values)
        if column.missing is not None:
            ids[column.missing] = OOV_ROW
        return ids


def _lookup(table: Table, fitted: FittedFeatures) -> _Lookup:
    if table.buckets is not None:
        buckets = table.buckets
        return _Lookup(buckets + 1, lambda values: _bucket_rows(values, buckets))
    entries = fitted.vocabularies.get(table.name, ()) if table.vocabulary == "fitted" else table.vocabulary
    if not entries:
        raise ValueError(f"table '{table.name}': its fitted vocabulary is absent from the fitted features")
    if table.dtype == "string":
        row_of = {entry: row for row, entry in enumerate(entries, start=1)}
        return _Lookup(
            len(row_of) + 1,
            lambda values: np.fromiter(map(row_of.get, values, repeat(OOV_ROW)), np.int64, len(values)),
        )
    order = np.argsort(np.asarray(entries, np.int64), kind="stable")
    sorted_entries = np.asarray(entries, np.int64)[order]
    return _Lookup(len(entries) + 1, lambda values: _vocabulary_rows(values, sorted_entries, order + 1))


def _bucket_rows(values: Values, buckets: int) -> Ids:
    hashed = hash_strings(values) if isinstance(values, list) else hash_integers(values)  # type: ignore[arg-type]
    return (hashed % np.uint64(buckets)).astype(np.int64) + 1


def _vocabulary_rows(values: Values, sorted_entries: Ids, rows: Ids) -> Ids:
    found = np.minimum(np.searchsorted(sorted_entries, values), len(sorted_entries) - 1)
    return np.where(sorted_entries[found] == values, rows[found], OOV_ROW)


def _numbers(column: Column, missing_value: float) -> NDArray[np.float64]:
    values = np.asarray(column.values, np.float64)
    if column.missing is not None:
        values = np.where(column.missing, missing_value, values)
    return values.clip(-RAW_LIMIT, RAW_LIMIT)


def _stack_numbers(numbers: list[NDArray[np.float64]], rows: int) -> NDArray[np.float32]:
    if not numbers:
        return np.zeros((rows, 0), np.float32)
    stacked = np.empty((rows, len(numbers)), np.float32)
    for position, values in enumerate(numbers):
        stacked[:, position] = np.clip(values, -NUMBER_LIMIT, NUMBER_LIMIT)
    return stacked


def _count(missing: NDArray[np.bool_] | None) -> int:
    return 0 if missing is None else int(np.count_nonzero(missing))


def _fixed_column(feature: Feature) -> Column:
    assert not isinstance(feature, IdListFeature)
    assert feature.serving_value is not None
    if isinstance(feature.serving_value, str):
        return Column([feature.serving_value])
    if isinstance(feature, NumberFeature):
        return Column(np.array([feature.serving_value], np.float64))
    return Column(np.array([feature.serving_value], np.int64))


def _fit_vocabulary(table: Table, columns: Mapping[str, Column]) -> tuple[int, ...] | tuple[str, ...]:
    counts: dict[int | str, int] = {}
    for name in table.features:
        column = columns[name]
        kept = np.asarray(column.values, dtype=object if isinstance(column.values, list) else None)
        if column.missing is not None:
            kept = kept[~column.missing]
        for value, count in zip(*(part.tolist() for part in np.unique(kept, return_counts=True)), strict=True):
            counts[value] = counts.get(value, 0) + count
    entries = sorted(value for value, count in counts.items() if count >= table.min_count)
    if not entries:
        raise ValueError(f"table '{table.name}': no value is seen {table.min_count} times in the training split")
    return tuple(entries)  # type: ignore[return-value]


def _fitted_steps(feature: NumberFeature, fitted: FittedFeatures) -> tuple[NumberStep, ...]:
    steps = fitted.numbers.get(feature.name, ())
    if tuple(step.transform for step in steps) != feature.transform:
        raise ValueError(f"feature '{feature.name}': its fitted transforms are not the schema's {feature.transform}")
    return steps


def _fit_number(feature: NumberFeature, column: Column) -> tuple[NumberStep, ...]:
    values = _numbers(column, feature.missing)
    steps = []
    for transform in feature.transform:
        step = _fit_step(transform, values)
        values = step.apply(values)
        steps.append(step)
    return tuple(steps)


def _fit_step(transform: NumberTransform, values: NDArray[np.float64]) -> NumberStep:
    if transform == "standardise":
        scale = float(values.std())
        # A constant column has no spread to divide by: it becomes 0 in training and stays finite in serving.
        return NumberStep(transform=transform, mean=float(values.mean()), scale=scale if scale > 1e-12 else 1.0)
    if transform == "quantile":
        knots = np.quantile(values, np.linspace(0, 1, QUANTILE_KNOTS), method="inverted_cdf")
        return NumberStep(transform=transform, knots=tuple(knots.tolist()))
    return NumberStep(transform=transform)


def _collapse(knots: NDArray[np.float64], last: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distinct knots with the middle of the ranks (0..1) that each of them covers."""
    distinct, first = np.unique(knots, return_index=True)
    end = np.append(first[1:], len(knots)) - 1
    return distinct, (first + end) / (2.0 * last)


def _fit_target(values: NDArray[np.float64]) -> TargetScale:
    if not len(values):
        raise ValueError("a regression task has no labelled row in the training split")
    scale = float(values.std())
    return TargetScale(mean=float(values.mean()), scale=scale if scale > 1e-12 else 1.0)


TaskTransform = Literal["none", "log1p"]


def transform_target(values: NDArray[np.float64], transform: TaskTransform) -> NDArray[np.float64]:
    """A regression label (>= 0, its own unit) on the scale where it is learned, before standardising."""
    return np.log1p(values) if transform == "log1p" else values
