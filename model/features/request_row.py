"""The one row of a request's block, from JSON values to ids and numbers in a few calls for all features together.

In: one value per feature of user and context. Out: what model.features.encoder makes of the same values as columns of
one row, by the same checks, hashes, look-ups and transforms. None for values that do not fit their features: the
encoder names them one by one. A call costs as much as a hundred values, so one value a call would cost a hundred times.
So too integers are hashed by who has others to hash with them: a row is read, and encoded once it has its hashes.

Shapes: K single-id features, H of them hashed integers, L list features, V hashed integers in all, those of lists
behind the single ones, Q numbers, G numbers of a group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.features.block import Encoded, EncodedBlock, inputs_of
from model.features.fitted import FittedFeatures
from model.features.id_lookup import OOV_ROW, Lookup
from model.features.kinds import Feature
from model.features.kinds.columns import Column, Dtype, Ids, Unfit, flat_column
from model.features.number_transforms import number_groups

_NO_IDS = np.zeros(0, np.int64)


@dataclass(slots=True)
class ReadRow:
    """A row that fits its features and is encoded but for what is hashed: `integers_V`, of which `absent_V` marks
    nulls. `lengths` are those of the hashed lists."""

    of: "OneRow"
    integers_V: Ids
    absent_V: NDArray[np.bool_] | None
    lengths: list[int]
    ids_1K: Ids | None
    values: list[Ids]
    numbers_1Q: NDArray[np.float32]
    missing: dict[str, int]
    oov: dict[str, int]

    def encoded(self, words_V: NDArray[np.uint64]) -> Encoded:
        """The encoded row, by the hashes of its integers, which are written to."""
        of, values = self.of, self.values
        num_single = len(of.hashed)
        words_V[:num_single] %= of.buckets_H
        rows_V = words_V.view(np.int64)
        end = num_single
        for (number, buckets, most), length in zip(of.hashed_lists, self.lengths, strict=True):
            start, end = end, end + length
            words_V[start:end] %= buckets
            values[number] = rows_V[max(start, end - most) : end]
        rows_V += 1
        if self.absent_V is not None:
            self._take_nulls(rows_V, self.absent_V)
        ids_1K = self.ids_1K
        if ids_1K is None:
            ids_1K = rows_V[None, :num_single]
        else:
            ids_1K[0, of.hashed_at_H] = rows_V[:num_single]
        lengths_L1 = np.array([[len(value)] for value in values], np.int64).reshape(-1, 1)
        for name, value in zip(of.lists, values, strict=True):
            if not len(value):
                self.missing[name] = 1
        values_V = values[0] if len(values) == 1 else np.concatenate([_NO_IDS, *values])
        return Encoded(EncodedBlock(ids_1K, values_V, lengths_L1, self.numbers_1Q), self.missing, self.oov)

    def _take_nulls(self, rows_V: Ids, absent_V: NDArray[np.bool_]) -> None:
        rows_V[absent_V] = OOV_ROW
        for name, is_absent in zip(self.of.hashed, absent_V.tolist(), strict=False):
            if is_absent:
                self.missing[name] = 1
        for number, _, _ in self.of.hashed_lists:  # a bucket is never the OOV row
            value = self.values[number]
            if num_oov := len(value) - int(np.count_nonzero(value)):
                self.oov[self.of.lists[number]] = num_oov


class OneRow:
    """Reads a row of one block, as it is served: training_only features have their serving value."""

    def __init__(
        self,
        features: Sequence[Feature],
        lookups: Mapping[str, Lookup],
        dtypes: Mapping[str, Dtype],
        fitted: FittedFeatures,
    ) -> None:
        ids, lists, numbers = inputs_of(features)
        served = {feature.name: feature.serving_column() for feature in features if feature.side == "training_only"}
        self._asked = frozenset(feature.name for feature in features if feature.name not in served)
        ids_1K = np.zeros((1, len(ids)), np.int64)
        self._raw_Q = np.array([number.missing for number in numbers], np.float64)
        for k, name in enumerate(ids):
            if name in served:
                ids_1K[0, k] = lookups[name](served[name])[0]
        for d, number in enumerate(numbers):
            if number.feature in served:
                self._raw_Q[d] = number.raw(served[number.feature])[0]
        given = [(k, name) for k, name in enumerate(ids) if name in self._asked]
        hashed = [(k, name) for k, name in given if lookups[name].integer_buckets]
        self.hashed = [name for _, name in hashed]
        self.hashed_at_H = np.array([k for k, _ in hashed], np.int64)
        self.buckets_H = np.array([lookups[name].integer_buckets for name in self.hashed], np.uint64)
        # None where all ids are hashed, which then are the row.
        self._ids_1K = None if len(hashed) == len(ids) else ids_1K
        self._looked_up: list[tuple[Dtype, list[tuple[int, str, Lookup]]]] = []
        for dtype in ("int64", "string"):
            some = [(k, n, lookups[n]) for k, n in given if n not in self.hashed and dtypes[n] == dtype]
            if some:
                self._looked_up.append((dtype, some))
        self.lists = [one.name for one in lists]
        # Of each its place among the lists, its buckets as an array, with which numpy is quicker, and its limit.
        self.hashed_lists: list[tuple[int, NDArray[np.uint64], int]] = []
        self._other_lists: list[tuple[int, str, Dtype, Lookup, int]] = []
        for place, one in enumerate(lists):
            lookup = lookups[one.name]
            if lookup.integer_buckets:
                self.hashed_lists.append((place, np.array([lookup.integer_buckets], np.uint64), one.max_length))
            else:
                self._other_lists.append((place, one.name, dtypes[one.name], lookup, one.max_length))
        asked_numbers = [(d, number.feature) for d, number in enumerate(numbers) if number.feature in self._asked]
        self._numbers = [name for _, name in asked_numbers]
        self._numbers_at = np.array([d for d, _ in asked_numbers], np.int64)
        self._groups = number_groups(numbers, fitted)

    def read(self, values: Mapping[str, object]) -> ReadRow | None:
        """The row. None where a value does not fit its feature."""
        if not self._asked.issuperset(values):
            return None
        try:
            return self._row(values.get)
        except Unfit:
            return None

    def _row(self, get: Callable[[str], Any]) -> ReadRow:
        flat, lengths = list(map(get, self.hashed)), []
        for number, _, _ in self.hashed_lists:
            listed = _listed(get(self.lists[number]))
            flat += listed
            lengths.append(len(listed))
        integers_V, absent_V = flat_column("int64", flat) if flat else (_NO_IDS, None)
        assert isinstance(integers_V, np.ndarray)
        row = ReadRow(
            self,
            integers_V,  # type: ignore[arg-type]
            absent_V,
            lengths,
            self._ids_1K,
            [_NO_IDS] * len(self.lists),
            np.empty((1, len(self._raw_Q)), np.float32),
            {},
            {},
        )
        if self._ids_1K is not None:
            row.ids_1K = self._ids_1K.copy()
            self._look_up(get, row)
        for number, name, dtype, lookup, most in self._other_lists:
            if listed := _listed(get(name)):
                found = row.values[number] = lookup(Column(*flat_column(dtype, listed)))[-most:]
                if num_oov := len(found) - int(np.count_nonzero(found)):
                    row.oov[name] = num_oov
        if len(self._raw_Q):
            self._write_numbers(get, row)
        return row

    def _look_up(self, get: Callable[[str], Any], row: ReadRow) -> None:
        assert row.ids_1K is not None
        for dtype, features in self._looked_up:
            flat, absent = flat_column(dtype, [get(name) for _, name, _ in features])
            for number, (k, name, lookup) in enumerate(features):
                if absent is not None and absent[number]:
                    row.missing[name] = 1
                else:
                    row.ids_1K[0, k] = found = lookup.find(flat[number : number + 1])[0]
                    if found == OOV_ROW:
                        row.oov[name] = 1

    def _write_numbers(self, get: Callable[[str], Any], row: ReadRow) -> None:
        raw_Q = self._raw_Q
        if self._numbers:
            given, absent = flat_column(None, list(map(get, self._numbers)))
            if absent is None and len(given) == len(raw_Q):
                raw_Q = np.asarray(given)
            else:
                absent_Q = np.zeros(len(given), np.bool_) if absent is None else absent
                raw_Q = raw_Q.copy()
                raw_Q[self._numbers_at[~absent_Q]] = np.asarray(given)[~absent_Q]
                for name, is_absent in zip(self._numbers, absent_Q.tolist(), strict=True):
                    if is_absent:
                        row.missing[name] = 1
        for group in self._groups:
            if len(self._groups) == 1:
                row.numbers_1Q[0] = group.transformed(raw_Q[:, None])[:, 0]
            else:
                row.numbers_1Q[0, group.positions_G] = group.transformed(raw_Q[group.positions_G, None])[:, 0]


def _listed(value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Unfit
    return value
