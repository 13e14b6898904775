"""Raw feature values -> ids, list ids and numbers: the ONE code path of training and serving.

In: columns (model.features.kinds.columns) made from JSON or, by training.data, from Arrow. Out: `Encoded` blocks of
int64 table rows and float32 numbers, the only inputs that a ranker sees.

The rules are the same everywhere. A missing id takes row 0 of its table (the OOV row), as does an id that is not in the
vocabulary. Hashed ids take rows 1..buckets. A missing list is empty. A missing number takes the schema's `missing`.

Shapes: B rows, K single-id features, L list features, V list values in all, Q numbers.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from model.features.block import BLOCKS, Encoded, EncodedBlock, inputs_of, some
from model.features.fitted import FittedFeatures, NumberStep
from model.features.id_lookup import OOV_ROW, Lookup, hash_integers, lookup_of, take_buckets
from model.features.kinds import Feature
from model.features.kinds.columns import (
    FAULTS_SHOWN,
    Column,
    ColumnError,
    ColumnErrors,
    ColumnFault,
    Dtype,
    Ids,
)
from model.features.kinds.inputs import ListInput
from model.features.number_transforms import number_groups
from model.features.request_row import OneRow, ReadRow
from model.schema import Block, FeedSchema
from model.strict_yaml import did_you_mean

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
    "ReadRow",
    "encoded_row",
    "hash_integers",
]

# So many values are hashed at once.
_TOGETHER = 100_000
_NO_IDS = np.zeros(0, np.int64)
_INT64 = np.dtype(np.int64)
Hashes = NDArray[np.uint64]


class FeatureEncoder:
    """Raw columns -> model inputs, for one schema and what was fitted for it."""

    def __init__(self, schema: FeedSchema, fitted: FittedFeatures, *, in_training: bool = False) -> None:
        """`in_training` ids of tables with slots are left without rows (`unplaced` has the tables' names) unless their
        vocabulary is fitted. Raises ValueError for what is absent from `fitted`."""
        self.schema = schema
        self.fitted = fitted
        self.rows_of_table: dict[str, int] = {}
        self.unplaced: set[str] = set()
        self._dtypes: dict[str, Dtype] = {}
        # Features whose ids are integers, which JSON may have as strings too.
        self.integers: frozenset[str]
        lookups: dict[str, Lookup] = {}
        for table in schema.tables:
            lookup = lookup_of(table, fitted, in_training=in_training)
            self.rows_of_table[table.name] = lookup.rows
            if lookup.is_unplaced:
                self.unplaced.add(table.name)
            for name in table.features:
                lookups[name] = lookup
                self._dtypes[name] = table.dtype
        self.integers = frozenset(name for name, dtype in self._dtypes.items() if dtype == "int64")
        self._encoders = {block: _BlockEncoder(schema.block(block), lookups, fitted) for block in BLOCKS}
        self._asked = {block: {feature.name: feature for feature in schema.requested(block)} for block in BLOCKS}
        # By candidate feature, the dtype of its ids and whether they are in lists. Asking a pydantic model for its
        # class costs more than looking at a column.
        self._plain = {
            name: (self._dtypes.get(name), feature.is_list)
            for name, feature in self._asked["candidate"].items()
            if feature.has_fast_path
        }
        request = schema.block("request")
        self._one_row = (
            OneRow(request, lookups, self._dtypes, fitted) if all(f.has_fast_path for f in request) else None
        )

    def dtype(self, feature: str) -> Dtype | None:
        """The dtype of a feature's ids, None for numbers."""
        return self._dtypes.get(feature)

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
                    columns[name] = feature.column(column, self._dtypes.get(name))
                except ColumnError as error:
                    errors.append(error)
        if errors:
            raise ColumnErrors(errors)
        return columns

    def request_columns(self, values: Mapping[str, object]) -> dict[str, Column]:
        """The columns of a request's block, from one JSON value per feature. Raises ColumnErrors."""
        return self.columns("request", {name: [value] for name, value in values.items()}, 1)

    def read_request(self, values: Mapping[str, object]) -> ReadRow | Encoded:
        """The request's block as it is served, from one JSON value per feature, where it can be with what is left to
        hash. Raises ColumnErrors."""
        row = None if self._one_row is None else self._one_row.read(values)
        return self.encode("request", self.request_columns(values), 1, as_served=True) if row is None else row

    def encode_request(self, values: Mapping[str, object]) -> Encoded:
        """The request's block as it is served, from one JSON value per feature. Raises ColumnErrors."""
        return encoded_row(self.read_request(values))

    def encode_both(
        self, request: ReadRow | Encoded, candidates: Mapping[str, Column], rows: int
    ) -> tuple[Encoded, Encoded]:
        """Both blocks of a request, as they are served, what is to be hashed in one go."""
        encoder = self._encoders["candidate"]
        if isinstance(request, Encoded):
            return request, encoder.encode(candidates, rows, as_served=True)
        encoded, words_V = encoder.encode_beside(candidates, rows, request.integers_V, as_served=True)
        return request.encoded(words_V), encoded

    def plain_columns(self, given: Mapping[str, object], rows: int) -> dict[str, Column]:
        """Number columns of the candidates, without a null, that are what `columns` makes of their values. The others
        are for `columns` to take or to refuse."""
        columns: dict[str, Column] = {}
        for name, column in given.items():
            if name not in self._plain or not isinstance(column, Column):
                continue
            dtype, is_list = self._plain[name]
            values, lengths_B = column.values, column.lengths_B
            if len(values if lengths_B is None else lengths_B) != rows or is_list != (lengths_B is not None):
                continue
            assert isinstance(values, np.ndarray)
            if dtype is None:
                columns[name] = Column(values.astype(np.float64, copy=False))
            elif dtype == "int64" and values.dtype == _INT64:
                columns[name] = column
        return columns

    def _unknown(self, name: str, asked: list[str]) -> str:
        sides = {feature.name: feature.side for feature in self.schema.features}
        if name in sides:
            return f"is a {sides[name]} feature and does not belong here"
        return "; ".join(filter(None, ["unknown feature", did_you_mean(name, asked, "")]))

    def encode(self, block: Block, columns: Mapping[str, Column], rows: int, *, as_served: bool) -> Encoded:
        """Encode one block of `rows` rows. An absent column is missing in every row. With `as_served`, training_only
        features take their serving value, also where columns have others."""
        return self._encoders[block].encode(columns, rows, as_served=as_served)


def encoded_row(request: ReadRow | Encoded) -> Encoded:
    """The block of a request that was read."""
    return request if isinstance(request, Encoded) else request.encoded(hash_integers(request.integers_V))


class _BlockEncoder:
    """Encodes the features of one block, those that are computed alike in one go."""

    def __init__(self, features: Sequence[Feature], lookups: Mapping[str, Lookup], fitted: FittedFeatures) -> None:
        self._ids, self._lists, numbers = inputs_of(features)
        lookups = {name: lookups[name] for name in (*self._ids, *(feature.name for feature in self._lists))}
        hashed = {name: lookup.integer_buckets for name, lookup in lookups.items() if lookup.integer_buckets}
        self._looked_up = {name: lookup for name, lookup in lookups.items() if name not in hashed}
        self._hashed = _HashedIntegers(hashed, () if self._looked_up else self._ids)
        self._width = len(numbers)
        self._numbers = number_groups(numbers, fitted)
        self._serving = {f.name: f.serving_column() for f in features if f.side == "training_only"}
        names = [*self._ids, *dict.fromkeys(number.feature for number in numbers)]
        self._counted = {False: names, True: [name for name in names if name not in self._serving]}
        self._counted_lookups = {
            as_served: [name for name in counted if name in self._looked_up and name in self._ids]
            for as_served, counted in self._counted.items()
        }

    def encode(self, columns: Mapping[str, Column], rows: int, *, as_served: bool) -> Encoded:
        return self.encode_beside(columns, rows, _NO_IDS, as_served=as_served)[0]

    def encode_beside(
        self, columns: Mapping[str, Column], rows: int, integers: Ids, *, as_served: bool
    ) -> tuple[Encoded, Hashes]:
        """The encoded columns, and the hashes of integers that another block has beside them."""
        if as_served and self._serving:
            columns = {**columns, **{name: _repeated(column, rows) for name, column in self._serving.items()}}
        found, together_V, hashes = self._hashed.find(columns, integers)
        for name, lookup in self._looked_up.items():
            if name in columns:
                found[name] = lookup(columns[name])
        numbers_BQ = np.empty((rows, self._width), np.float32)
        for group in self._numbers:
            group.write(numbers_BQ, columns)
        missing: dict[str, int] = {}
        for name in self._counted[as_served]:
            column = columns.get(name)
            if column is None:
                missing[name] = rows
            elif column.missing is not None or column.lengths_B is not None:
                missing[name] = column.num_missing
        oov: dict[str, int] = {}
        # A bucket is never unknown, so what was hashed is not counted.
        for name in self._counted_lookups[as_served]:
            if name in found:
                oov[name] = rows - int(np.count_nonzero(found[name])) - missing.get(name, 0)
        values: list[Ids] = []
        lengths: list[Ids] = []
        for feature in self._lists:
            values_V, lengths_B = _list_ids(feature, found, columns, rows)
            missing[feature.name] = rows - int(np.count_nonzero(lengths_B))
            oov[feature.name] = len(values_V) - int(np.count_nonzero(values_V))
            values.append(values_V)
            lengths.append(lengths_B)
        block = EncodedBlock(
            ids_BK=self._side_by_side(found, together_V, rows),
            list_values_V=values[0] if len(values) == 1 else np.concatenate([_NO_IDS, *values]),
            list_lengths_LB=np.concatenate([_NO_IDS, *lengths]).reshape(len(lengths), rows),
            numbers_BQ=numbers_BQ,
        )
        return Encoded(block, some(missing), some(oov)), hashes

    def _side_by_side(self, found: Mapping[str, Ids], together_V: Ids | None, rows: int) -> Ids:
        """The single ids of the block. The OOV row where a column is absent. `together_V` begins with all of them where
        all are hashed and none is absent."""
        if not self._ids:
            return np.zeros((rows, 0), np.int64)
        num_ids = len(self._ids)
        if together_V is None or self._looked_up:
            given = [found.get(name) for name in self._ids]
            together_V = np.concatenate([np.zeros(rows, np.int64) if ids is None else ids for ids in given])
        return together_V[: num_ids * rows].reshape(num_ids, rows).T


class _HashedIntegers:
    """The features of a block that hash integers into buckets, single ids and lists: one hash for all of them. Those of
    `together` are wanted one by one only where one of the block has no column."""

    def __init__(self, buckets: Mapping[str, int], together: Collection[str]) -> None:
        self._together = frozenset(together)
        self._buckets = {name: np.uint64(number) for name, number in buckets.items()}
        self._are_equal = len(set(buckets.values())) == 1

    def find(self, columns: Mapping[str, Column], beside: Ids) -> tuple[dict[str, Ids], Ids | None, Hashes]:
        """Table rows of the values of each feature that has a column. They are one after another where they were found
        in one go and every feature has a column: those of `together` then stand there alone. And the hashes of integers
        `beside` them."""
        given = {name: columns[name] for name in self._buckets if name in columns}
        lengths = [len(column.values) for column in given.values()]
        # Where calls are few beside values, all at once would only take memory: a training log is one call.
        if sum(lengths) > _TOGETHER and len(given) > 1:
            found: dict[str, Ids] = {}
            for name in given:
                found |= self._hashed({name: given[name]}, [len(given[name].values)], _NO_IDS)[0]
            return found, None, hash_integers(beside)
        if not given:
            return {}, None, hash_integers(beside)
        found, together_V, hashes = self._hashed(given, lengths, beside)
        return found, together_V if len(given) == len(self._buckets) else None, hashes

    def _hashed(
        self, given: Mapping[str, Column], lengths: list[int], beside: Ids
    ) -> tuple[dict[str, Ids], Ids, Hashes]:
        words_V = hash_integers(np.concatenate([*(column.values for column in given.values()), beside]))
        num_given = len(words_V) - len(beside)
        words_V, hashes = words_V[:num_given], words_V[num_given:]
        buckets = [self._buckets[name] for name in given]
        if self._are_equal:
            take_buckets(words_V, buckets[0])
        else:
            words_V %= np.array(buckets).repeat(lengths)
        ids_V = words_V.view(np.int64)
        ids_V += 1
        spared = self._together if len(given) == len(self._buckets) else ()
        found: dict[str, Ids] = {}
        end = 0
        for (name, column), length in zip(given.items(), lengths, strict=True):
            start, end = end, end + length
            if column.missing is not None:
                ids_V[start:end][column.missing] = OOV_ROW
            if name not in spared:
                found[name] = ids_V[start:end]
        return found, ids_V, hashes


def _list_ids(
    feature: ListInput, found: Mapping[str, Ids], columns: Mapping[str, Column], rows: int
) -> tuple[Ids, Ids]:
    if feature.name not in columns:
        return _NO_IDS, np.zeros(rows, np.int64)
    lengths_B = columns[feature.name].lengths_B
    assert lengths_B is not None
    return _keep_latest(found[feature.name], lengths_B, feature.max_length)


def _keep_latest(values_V: Ids, lengths_B: Ids, most: int) -> tuple[Ids, Ids]:
    """Keep the last `most` values of each row of a flattened list column."""
    if not len(lengths_B) or np.maximum.reduce(lengths_B) <= most:
        return values_V, lengths_B
    ends_B = np.cumsum(lengths_B)
    from_end_V = np.repeat(ends_B, lengths_B) - np.arange(len(values_V))
    return values_V[from_end_V <= most], np.minimum(lengths_B, most)


def _repeated(column: Column, rows: int) -> Column:
    if isinstance(column.values, list):
        return Column(column.values * rows)
    return Column(column.values.repeat(rows))
