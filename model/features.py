"""Raw feature values -> ids, list ids and numbers: the ONE code path of training and serving.

In: columns (model.columns) made from JSON by `column_from_values` or from Arrow by training.data. Out: `Encoded`
blocks of int64 table rows and float32 numbers, the only inputs that a ranker sees.

Rules, the same everywhere: a missing id takes row 0 of its table (the OOV row), as does an id that a vocabulary does
not hold; hashed ids take rows 1..buckets; a missing list is empty; a missing number takes the schema's `missing`.

Shapes: B rows, K single-id features, L list features, V list values in all, D numbers.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.column_text import column_from_text
from model.columns import FAULTS_SHOWN, Column, ColumnError, ColumnErrors, ColumnFault, Ids, column_from_values
from model.fitted import RAW_LIMIT, FittedFeatures, NumberStep, TargetScale, transform_target
from model.lookups import OOV_ROW, Lookup, hash_integers, lookup_of
from model.schema import Block, Dtype, Feature, FeedSchema, IdFeature, IdListFeature, NumberFeature, Side

__all__ = [
    "Column",
    "ColumnError",
    "ColumnErrors",
    "ColumnFault",
    "Encoded",
    "EncodedBlock",
    "FeatureEncoder",
    "FittedFeatures",
    "NumberStep",
    "TargetScale",
    "column_from_values",
    "hash_integers",
    "transform_target",
]

# Beyond this a float32 network may overflow to infinity; no feature of a feed lives there.
NUMBER_LIMIT = 1e9


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


class FeatureEncoder:
    """Turns raw columns into model inputs, for one schema and what was fitted for it."""

    def __init__(self, schema: FeedSchema, fitted: FittedFeatures) -> None:
        self.schema = schema
        self.fitted = fitted
        self.rows_of_table: dict[str, int] = {}
        self._dtypes: dict[str, Dtype] = {}
        lookups: dict[str, Lookup] = {}
        for table in schema.tables:
            lookup = lookup_of(table, fitted)
            self.rows_of_table[table.name] = lookup.rows
            for name in table.features:
                lookups[name] = lookup
                self._dtypes[name] = table.dtype
        blocks: tuple[Block, Block] = ("request", "candidate")
        self._encoders = {block: _BlockEncoder(schema.block(block), lookups, fitted) for block in blocks}
        self._asked = {block: {feature.name: feature for feature in schema.asked(block)} for block in blocks}

    def dtype(self, feature: str) -> Dtype:
        """The dtype of an id or id_list feature's values."""
        return self._dtypes[feature]

    def columns(self, block: Block, values: Mapping[str, Sequence[object]], rows: int) -> dict[str, Column]:
        """The columns of a scoring request's block from JSON values, `rows` of each. Raises ColumnErrors with
        every unknown feature, ragged column and value of a wrong type, the first FAULTS_SHOWN columns of them."""
        asked = self._asked[block]
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

    def column_of_text(self, block: Block, name: str, text: bytes, rows: int) -> Column | None:
        """The column of a feature from its JSON text where that is plain numbers, `rows` of them; None where it is not,
        for `columns` to take or to refuse."""
        feature = self._asked[block].get(name)
        column = None if feature is None else column_from_text(feature, self._dtypes.get(name), text)
        return None if column is None or column.rows != rows else column

    def _unknown(self, name: str, asked: list[str]) -> str:
        sides = {feature.name: feature.side for feature in self.schema.features}
        if name in sides:
            return f"is a {sides[name]} feature and does not belong here"
        nearest = difflib.get_close_matches(name, asked, n=1, cutoff=0.5)
        return "unknown feature" + (f"; did you mean '{nearest[0]}'?" if nearest else "")

    def encode(self, block: Block, columns: Mapping[str, Column], rows: int, *, as_served: bool) -> Encoded:
        """Encodes one block of `rows` rows. An absent column is missing in every row; with `as_served`, training_only
        features take their serving value, whatever the columns say."""
        return self._encoders[block].encode(columns, rows, as_served=as_served)


class _BlockEncoder:
    """Encodes the features of one block, those that are computed alike in one go."""

    def __init__(self, features: Sequence[Feature], lookups: Mapping[str, Lookup], fitted: FittedFeatures) -> None:
        ids = [feature for feature in features if isinstance(feature, IdFeature)]
        numbers = [feature for feature in features if isinstance(feature, NumberFeature)]
        self._id_names = [feature.name for feature in ids]
        self._number_names = [feature.name for feature in numbers]
        hashed = [feature.name for feature in ids if lookups[feature.name].integer_buckets is not None]
        self._hashed = _HashedIntegers(hashed, self._id_names, lookups) if hashed else None
        self._looked_up = [(k, name, lookups[name]) for k, name in enumerate(self._id_names) if name not in hashed]
        self._lists = [(f, lookups[f.name]) for f in features if isinstance(f, IdListFeature)]
        by_transform: dict[tuple[str, ...], list[NumberFeature]] = {}
        for feature in numbers:
            by_transform.setdefault(feature.transform, []).append(feature)
        self._numbers = [_Numbers(group, self._number_names, fitted) for group in by_transform.values()]
        self._sides: dict[str, Side] = {feature.name: feature.side for feature in features}
        self._serving = {f.name: _serving_column(f) for f in features if f.side == "training_only"}

    def encode(self, columns: Mapping[str, Column], rows: int, *, as_served: bool) -> Encoded:
        fixed = self._serving if as_served else {}
        if fixed:
            served = {name: _repeated(column, rows) for name, column in fixed.items()}
            columns = {**columns, **served}
        ids_BK = np.zeros((rows, len(self._id_names)), np.int64)
        if self._hashed is not None:
            self._hashed.write(ids_BK, columns)
        for k, name, lookup in self._looked_up:
            if name in columns:
                ids_BK[:, k] = lookup(columns[name])
        numbers_BD = np.empty((rows, len(self._number_names)), np.float32)
        for group in self._numbers:
            group.write(numbers_BD, columns)
        lists = [_list_ids(feature, lookup, columns.get(feature.name), rows) for feature, lookup in self._lists]
        missing = {
            name: _missing(columns.get(name), rows)
            for name in (*self._id_names, *self._number_names)
            if name not in fixed
        }
        unknown = (ids_BK == OOV_ROW).sum(axis=0).tolist()
        oov = {name: unknown[k] - missing[name] for k, name in enumerate(self._id_names) if name not in fixed}
        for (feature, _), (values_V, lengths_B) in zip(self._lists, lists, strict=True):
            missing[feature.name] = int(np.count_nonzero(lengths_B == 0))
            oov[feature.name] = int(np.count_nonzero(values_V == OOV_ROW))
        block = EncodedBlock(
            ids_BK=ids_BK,
            list_values_V=np.concatenate([values_V for values_V, _ in lists]) if lists else np.zeros(0, np.int64),
            list_lengths_LB=np.stack([lengths_B for _, lengths_B in lists]) if lists else np.zeros((0, rows), np.int64),
            numbers_BD=numbers_BD,
        )
        return Encoded(block, missing, oov)


class _HashedIntegers:
    """The single-id features of a block that hash integers into buckets: one hash for G features at once."""

    def __init__(self, names: list[str], order: list[str], lookups: Mapping[str, Lookup]) -> None:
        self._names = names
        self._positions_G = np.array([order.index(name) for name in names])
        self._buckets_G1 = np.array([[lookups[name].integer_buckets] for name in names], np.uint64)

    def write(self, ids_BK: Ids, columns: Mapping[str, Column]) -> None:
        raw_GB = np.zeros((len(self._names), len(ids_BK)), np.int64)
        for g, name in enumerate(self._names):
            if name in columns:
                raw_GB[g] = columns[name].values
        ids_GB = (hash_integers(raw_GB) % self._buckets_G1).astype(np.int64) + 1
        for g, name in enumerate(self._names):
            if name not in columns:
                ids_GB[g] = OOV_ROW
            elif (is_missing_B := columns[name].missing) is not None:
                ids_GB[g, is_missing_B] = OOV_ROW
        ids_BK[:, self._positions_G] = ids_GB.T


class _Numbers:
    """The numbers of a block with the same chain of transforms: each transform once for G features."""

    def __init__(self, features: list[NumberFeature], order: list[str], fitted: FittedFeatures) -> None:
        self._names = [feature.name for feature in features]
        self._missing = [feature.missing for feature in features]
        self._positions_G = np.array([order.index(name) for name in self._names])
        chains = [_fitted_steps(feature, fitted) for feature in features]
        self._steps = [_Step(steps) for steps in zip(*chains, strict=True)]

    def write(self, numbers_BD: NDArray[np.float32], columns: Mapping[str, Column]) -> None:
        values_GB = np.empty((len(self._names), len(numbers_BD)))
        for g, (name, missing_value) in enumerate(zip(self._names, self._missing, strict=True)):
            column = columns.get(name)
            values_GB[g] = missing_value if column is None else column.values
            if column is not None and column.missing is not None:
                values_GB[g, column.missing] = missing_value
        values_GB = values_GB.clip(-RAW_LIMIT, RAW_LIMIT)
        for step in self._steps:
            values_GB = step.apply(values_GB)
        numbers_BD[:, self._positions_G] = values_GB.clip(-NUMBER_LIMIT, NUMBER_LIMIT).T


class _Step:
    """The same transform of G features, each with what was fitted for it."""

    def __init__(self, steps: Sequence[NumberStep]) -> None:
        self._steps = steps
        self._mean_G1 = np.array([[step.mean] for step in steps])
        self._scale_G1 = np.array([[step.scale] for step in steps])

    def apply(self, values_GB: NDArray[np.float64]) -> NDArray[np.float64]:
        transform = self._steps[0].transform
        if transform == "standardise":
            standardised_GB: NDArray[np.float64] = (values_GB - self._mean_G1) / self._scale_G1
            return standardised_GB
        if transform == "log1p":
            return self._steps[0].apply(values_GB)
        return np.stack([step.apply(values_B) for step, values_B in zip(self._steps, values_GB, strict=True)])


def _list_ids(feature: IdListFeature, lookup: Lookup, column: Column | None, rows: int) -> tuple[Ids, Ids]:
    if column is None:
        return np.zeros(0, np.int64), np.zeros(rows, np.int64)
    assert column.lengths_B is not None
    return keep_latest(lookup(column), column.lengths_B, feature.max_length)


def keep_latest(values_V: Ids, lengths_B: Ids, most: int) -> tuple[Ids, Ids]:
    """Keeps the last `most` values of each row of a flattened list column."""
    if not len(lengths_B) or int(lengths_B.max()) <= most:
        return values_V, lengths_B
    ends_B = np.cumsum(lengths_B)
    from_end_V = np.repeat(ends_B, lengths_B) - np.arange(len(values_V))
    return values_V[from_end_V <= most], np.minimum(lengths_B, most)


def _missing(column: Column | None, rows: int) -> int:
    if column is None:
        return rows
    return 0 if column.missing is None else int(np.count_nonzero(column.missing))


def _serving_column(feature: Feature) -> Column:
    assert not isinstance(feature, IdListFeature)
    assert feature.serving_value is not None
    if isinstance(feature.serving_value, str):
        return Column([feature.serving_value])
    if isinstance(feature, NumberFeature):
        return Column(np.array([feature.serving_value], np.float64))
    return Column(np.array([feature.serving_value], np.int64))


def _repeated(column: Column, rows: int) -> Column:
    if isinstance(column.values, list):
        return Column(column.values * rows)
    return Column(column.values.repeat(rows))


def _fitted_steps(feature: NumberFeature, fitted: FittedFeatures) -> tuple[NumberStep, ...]:
    steps = fitted.numbers.get(feature.name, ())
    if tuple(step.transform for step in steps) != feature.transform:
        raise ValueError(f"feature '{feature.name}': its fitted transforms are not the schema's {feature.transform}")
    return steps
