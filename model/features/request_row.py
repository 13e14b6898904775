"""The one row of a request's block, from JSON values to ids and numbers in a few calls for all features together.

In: one value per feature of user and context. Out: what model.features.encoder makes of the same values as columns of
one row, by the same checks, hashes, look-ups and transforms. None for values that do not fit their features: the
encoder names them one by one. A call costs as much as a hundred values, so one value a call would cost a hundred times.

Shapes: K single-id features, H of them hashed integers, L list features, V list values in all, Q numbers, G numbers of
a group.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from model.features.block import Encoded, EncodedBlock, inputs_of
from model.features.fitted import FittedFeatures
from model.features.id_lookup import OOV_ROW, Lookup, hash_integers
from model.features.kinds import Feature
from model.features.kinds.columns import Column, Dtype, Ids, Unfit, flat_column
from model.features.number_transforms import number_groups


class OneRow:
    """Encodes a row of one block, as it is served: training_only features have their serving value."""

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
        self._ids_1K = np.zeros((1, len(ids)), np.int64)
        self._raw_Q = np.array([number.missing for number in numbers], np.float64)
        for k, name in enumerate(ids):
            if name in served:
                self._ids_1K[0, k] = lookups[name](served[name])[0]
        for d, number in enumerate(numbers):
            if number.feature in served:
                self._raw_Q[d] = number.raw(served[number.feature])[0]
        given = [(k, name) for k, name in enumerate(ids) if name in self._asked]
        hashed = [(k, name) for k, name in given if lookups[name].integer_buckets]
        self._hashed = [name for _, name in hashed]
        self._hashed_at_H = np.array([k for k, _ in hashed], np.int64)
        self._buckets_H = np.array([lookups[name].integer_buckets for name in self._hashed], np.uint64)
        self._looked_up: list[tuple[Dtype, list[tuple[int, str, Lookup]]]] = []
        for dtype in ("int64", "string"):
            some = [(k, n, lookups[n]) for k, n in given if n not in self._hashed and dtypes[n] == dtype]
            if some:
                self._looked_up.append((dtype, some))
        self._lists = [(one.name, dtypes[one.name], lookups[one.name], one.max_length) for one in lists]
        self._buckets_L = [np.uint64(lookup.integer_buckets or 0) for _, _, lookup, _ in self._lists]
        asked_numbers = [(d, number.feature) for d, number in enumerate(numbers) if number.feature in self._asked]
        self._numbers = [name for _, name in asked_numbers]
        self._numbers_at = np.array([d for d, _ in asked_numbers], np.int64)
        self._groups = number_groups(numbers, fitted)
        may_be_unknown = [*(name for _, name in given), *(one.name for one in lists)]
        self._none_missing = dict.fromkeys([*may_be_unknown, *self._numbers], 0)
        self._none_oov = dict.fromkeys(may_be_unknown, 0)

    def encode(self, values: Mapping[str, object]) -> Encoded | None:
        """The encoded row. None where a value does not fit its feature, or is absent."""
        if not self._asked.issuperset(values):
            return None
        try:
            return self._encoded(values.get)
        except Unfit:
            return None

    def _encoded(self, get: Callable[[str], Any]) -> Encoded:
        missing, oov = self._none_missing.copy(), self._none_oov.copy()
        lists = [_listed(get(name)) for name, *_ in self._lists]
        ids_1K, values, lengths = self._hash(get, lists, missing)
        for dtype, features in self._looked_up:
            flat, absent = flat_column(dtype, [get(name) for _, name, _ in features])
            for row, (k, name, lookup) in enumerate(features):
                if absent is not None and absent[row]:
                    missing[name] = 1
                else:
                    ids_1K[0, k] = found = lookup.find(flat[row : row + 1])[0]
                    oov[name] = int(found == OOV_ROW)
        for number, (name, dtype, lookup, most) in enumerate(self._lists):
            if not lookup.integer_buckets and lists[number]:
                flat, absent = flat_column(dtype, lists[number])
                values[number] = lookup(Column(flat, absent))[-most:]
                lengths[number] = [len(values[number])]
            missing[name] = int(lengths[number] == [0])
            oov[name] = lengths[number][0] - int(np.count_nonzero(values[number]))
        block = EncodedBlock(
            ids_1K,
            values[0] if len(values) == 1 else np.concatenate([_NO_IDS, *values]),
            np.array(lengths, np.int64).reshape(len(lengths), 1),
            self._numbers_1Q(get, missing),
        )
        return Encoded(block, missing, oov)

    def _hash(
        self, get: Callable[[str], Any], lists: list[list[Any]], missing: dict[str, int]
    ) -> tuple[Ids, list[Ids], list[list[int]]]:
        """ids_1K with the hashed single ids, and the hashed lists' values and lengths. Others are left out."""
        values, lengths = [_NO_IDS] * len(lists), [[0]] * len(lists)
        flat = list(map(get, self._hashed))
        for buckets, given in zip(self._buckets_L, lists, strict=True):
            if buckets:
                flat += given
        if not flat:
            return self._ids_1K.copy(), values, lengths
        given_V, absent_V = flat_column("int64", flat)
        assert isinstance(given_V, np.ndarray)
        words_V = hash_integers(given_V)  # type: ignore[arg-type]
        end = len(self._hashed)
        words_V[:end] %= self._buckets_H
        rows_V = words_V.view(np.int64)
        slices = []
        for number, (buckets, given) in enumerate(zip(self._buckets_L, lists, strict=True)):
            if buckets and given:
                slices.append((number, end, end + len(given)))
                words_V[end : end + len(given)] %= buckets
                end += len(given)
        rows_V += 1
        if absent_V is not None:
            rows_V[absent_V] = OOV_ROW
            for name, is_absent in zip(self._hashed, absent_V.tolist(), strict=False):
                missing[name] = int(is_absent)
        ids_1K = rows_V[None, : len(self._hashed)]
        if ids_1K.shape != self._ids_1K.shape:
            ids_1K = self._ids_1K.copy()
            ids_1K[0, self._hashed_at_H] = rows_V[: len(self._hashed)]
        for number, start, end in slices:
            values[number] = rows_V[max(start, end - self._lists[number][3]) : end]
            lengths[number] = [len(values[number])]
        return ids_1K, values, lengths

    def _numbers_1Q(self, get: Callable[[str], Any], missing: dict[str, int]) -> np.ndarray[Any, np.dtype[np.float32]]:
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
                    missing[name] = int(is_absent)
        if len(self._groups) == 1:
            return self._groups[0].transformed(raw_Q[:, None]).astype(np.float32).reshape(1, -1)
        numbers_1Q = np.empty((1, len(raw_Q)), np.float32)
        for group in self._groups:
            numbers_1Q[0, group.positions_G] = group.transformed(raw_Q[group.positions_G, None])[:, 0]
        return numbers_1Q


_NO_IDS = np.zeros(0, np.int64)


def _listed(value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Unfit
    return value
