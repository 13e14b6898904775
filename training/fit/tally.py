"""Counts of a log part by part, in bounded memory: what the data report (report.py) is made of.

A number's distribution is counted by the leading bits of its float64 (sign, exponent, three bits of mantissa), so that
counts of any two parts go together. An id's by the low bits of its hash.

Shapes: B rows, V values, P parts, K bins, T tasks, O outputs, C counts of a chain.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.features.fitted import FittedFeatures
from model.features.id_counts import IntegerCounts
from model.features.id_lookup import Lookup, hash_integers, hash_strings, lookup_of
from model.features.kinds.columns import Column
from model.schema import FeedSchema
from model.tasks.task import BaseTask
from training.data.arrow import labels_of, observed_of
from training.tasks import learned

ID_BINS = 64
NUMBER_BINS = 10
_KEPT_BITS = 15
_MIDDLE = 2 ** (_KEPT_BITS - 1)

Counts = NDArray[np.int64]


def known_lookups(schema: FeedSchema, fitted: FittedFeatures | None) -> dict[str, Lookup]:
    """The look-up of each id and id_list feature that has a vocabulary. Without what was fitted only those whose
    schema lists it."""
    return {
        name: lookup_of(table, fitted or FittedFeatures())
        for table in schema.tables
        if table.vocabulary is not None and (fitted is not None or table.vocabulary != "fitted")
        for name in table.features
    }


class FeatureCounts(NamedTuple):
    """Counts of a feature in some parts: missing rows (an empty list counts), known and unknown ids, lengths of lists,
    and the distribution. Its bins K are those of all parts."""

    missing: int
    values: int
    unknown: int
    longest: int
    cut: int
    bins_K: Counts


class ChainCounts(NamedTuple):
    """Counts of a task that is given another, in rows where both labels count.

    They are its positives, those of them without the other, and all rows without the other."""

    positives: int
    without_given: int
    rows_without_given: int


class LabelCounts(NamedTuple):
    """Labels of a task in some parts, of the rows where they count. `totals` are sums of the labels, or by class of its
    rows. `chain` is of a task that is given another."""

    observed: int
    totals: tuple[float, ...]
    least: float
    most: float
    chain: ChainCounts | None = None


class PartCounts(NamedTuple):
    """Counts of some parts of a log, labels by task and features by name."""

    rows: int
    labels: dict[str, LabelCounts]
    features: dict[str, FeatureCounts]


class FeatureTally:
    """Counts of one feature by part."""

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._missing_P, self._values_P, self._unknown_P, self._longest_P, self._cut_P = np.zeros((5, parts), np.int64)
        self._bins = IntegerCounts()

    def add(self, column: Column, lookup: Lookup | None, is_cut_B: NDArray[np.bool_] | None, parts_B: Counts) -> None:
        """Count a column's rows, each in its part. `is_cut_B` marks those of which values are left out."""
        codes_V, lengths_B = column.codes_V, column.lengths_B
        values_in = len(column.values if codes_V is None else codes_V)
        is_given_V = np.ones(values_in, bool) if column.missing is None else ~column.missing
        parts_V = parts_B
        if lengths_B is None:
            self._missing_P += self._by_part(parts_B[~is_given_V])
        else:
            parts_V = np.repeat(parts_B, lengths_B)
            self._missing_P += self._by_part(parts_B[lengths_B == 0])
            np.maximum.at(self._longest_P, parts_B, lengths_B)
        if is_cut_B is not None:
            self._cut_P += self._by_part(parts_B[is_cut_B])
        parts_V = parts_V[is_given_V]
        self._values_P += self._by_part(parts_V)
        if lookup is not None:
            self._unknown_P += self._by_part(parts_V[lookup(column)[is_given_V] == 0])
        bins_V = _bins(column)
        bins_V = (bins_V if codes_V is None else bins_V[codes_V])[is_given_V]
        self._bins.add((parts_V << _KEPT_BITS) + bins_V + _MIDDLE)

    def _by_part(self, parts_V: Counts) -> Counts:
        return np.bincount(parts_V, minlength=self._parts)

    def counts(self, groups: Sequence[Sequence[int]]) -> list[FeatureCounts]:
        """Counts of each group of parts."""
        keys, counts = self._bins.entries()
        bins_K, place = np.unique(keys & (2**_KEPT_BITS - 1), return_inverse=True)
        bins_PK = np.zeros((self._parts, len(bins_K)), np.int64)
        bins_PK[keys >> _KEPT_BITS, place] = counts
        return [
            FeatureCounts(
                missing=int(self._missing_P[group].sum()),
                values=int(self._values_P[group].sum()),
                unknown=int(self._unknown_P[group].sum()),
                longest=int(self._longest_P[group].max()),
                cut=int(self._cut_P[group].sum()),
                bins_K=bins_PK[group].sum(axis=0),
            )
            for group in map(list, groups)
        ]


def _bins(column: Column) -> NDArray[np.int64]:
    values = column.values
    if isinstance(values, list):
        return (hash_strings(values) % np.uint64(ID_BINS)).astype(np.int64)
    if values.dtype == np.int64:
        return (hash_integers(values) % np.uint64(ID_BINS)).astype(np.int64)  # type: ignore[arg-type]
    words_V = (np.asarray(values, np.float64) + 0.0).view(np.int64) >> (64 - _KEPT_BITS)
    # Of negative numbers the larger word is the smaller number.
    return np.where(words_V < 0, -_MIDDLE - words_V, words_V)


class LabelTally:
    """Counts of the labels of every task by part."""

    def __init__(self, schema: FeedSchema, parts: int = 1) -> None:
        self._tasks = schema.tasks
        self._parts = parts
        shape = (len(schema.tasks), parts)
        self._observed_TP, self._totals_OP = np.zeros(shape, np.int64), np.zeros((len(schema.outputs), parts))
        self._columns = schema.output_slices
        self._least_TP, self._most_TP = np.full(shape, np.inf), np.full(shape, -np.inf)
        self._given = schema.given
        self._chains_TCP = np.zeros((len(schema.tasks), 3, parts), np.int64)

    def add(self, table: pa.Table, parts_B: Counts) -> None:
        """Count rows, each in its part."""
        for place, task in enumerate(self._tasks):
            is_observed_B = observed_of(task, table)
            labels_B, parts = labels_of(task, table)[is_observed_B], parts_B[is_observed_B]
            self._observed_TP[place] += np.bincount(parts, minlength=self._parts)
            for totals_P, of_output_B in zip(
                self._totals_OP[self._columns[task.name]], learned(task).encoded_labels(labels_B).values(), strict=True
            ):
                totals_P += np.bincount(parts, of_output_B, self._parts)
            np.minimum.at(self._least_TP[place], parts, labels_B)
            np.maximum.at(self._most_TP[place], parts, labels_B)
            if (given := self._given[place]) is not None:
                self._add_chain(place, self._tasks[given], table, parts_B)

    def _add_chain(self, place: int, given: BaseTask, table: pa.Table, parts_B: Counts) -> None:
        task = self._tasks[place]
        both_B = observed_of(task, table) & observed_of(given, table)
        is_positive_B = both_B & (labels_of(task, table) > 0)
        is_without_B = both_B & (labels_of(given, table) == 0)
        for counts_P, rows_B in zip(
            self._chains_TCP[place], (is_positive_B, is_positive_B & is_without_B, is_without_B), strict=True
        ):
            counts_P += np.bincount(parts_B[rows_B], minlength=self._parts)

    def counts(self, group: Sequence[int]) -> dict[str, LabelCounts]:
        """Counts of a group of parts by task."""
        parts = list(group)
        return {
            task.name: LabelCounts(
                observed=int(self._observed_TP[place, parts].sum()),
                totals=tuple(self._totals_OP[self._columns[task.name]][:, parts].sum(axis=1).tolist()),
                least=float(self._least_TP[place, parts].min()),
                most=float(self._most_TP[place, parts].max()),
                chain=None if self._given[place] is None else self._chain(place, parts),
            )
            for place, task in enumerate(self._tasks)
        }

    def _chain(self, place: int, parts: list[int]) -> ChainCounts:
        return ChainCounts(*self._chains_TCP[place][:, parts].sum(axis=1).tolist())


class Tally:
    """Counts of rows of a log by part: rows, labels by task, features. Parts have numbers below `parts`."""

    def __init__(self, schema: FeedSchema, lookups: Mapping[str, Lookup], parts: int) -> None:
        self._schema = schema
        self._lookups = lookups
        self._rows_P = np.zeros(parts, np.int64)
        self._labels = LabelTally(schema, parts)
        self._features = {feature.name: FeatureTally(parts) for feature in schema.features}

    def add(self, table: pa.Table, columns: Mapping[str, Column], parts_B: Counts) -> None:
        """Count rows with their features' columns, each in its part."""
        self._rows_P += np.bincount(parts_B, minlength=len(self._rows_P))
        self._labels.add(table, parts_B)
        for feature in self._schema.features:
            column, lookup = columns[feature.name], self._lookups.get(feature.name)
            self._features[feature.name].add(column, lookup, feature.cut_rows(column), parts_B)

    def counts(self, groups: Sequence[Sequence[int]]) -> list[PartCounts]:
        """Counts of each group of parts."""
        of_features = zip(*(tally.counts(groups) for tally in self._features.values()), strict=True)
        return [
            PartCounts(
                int(self._rows_P[list(group)].sum()),
                self._labels.counts(group),
                dict(zip(self._features, features, strict=True)),
            )
            for group, features in zip(groups, of_features, strict=True)
        ]


def drift(schema: FeedSchema, one: PartCounts, reference: PartCounts) -> dict[str, float]:
    """By feature the Jensen-Shannon divergence (bits, 0 to 1. Lin 1991) of two parts' values, missing ones being one
    of them: over tenths of the reference for a number, over hash bins for ids."""
    return {
        feature.name: divergence(
            one.features[feature.name], reference.features[feature.name], is_number=not feature.has_ids
        )
        for feature in schema.features
    }


def by_chance(schema: FeedSchema, rows: int, reference_rows: int) -> dict[str, float]:
    """Drift by feature that is expected of two samples of so many rows of one law, to first order. The statistic of a
    chi-squared test has as many degrees of freedom as there are bins, less one."""
    scale = (1 / max(rows, 1) + 1 / max(reference_rows, 1)) / (8 * np.log(2))
    return {feature.name: (ID_BINS if feature.has_ids else NUMBER_BINS) * scale for feature in schema.features}


def divergence(one: FeatureCounts, reference: FeatureCounts, *, is_number: bool) -> float:
    """Jensen-Shannon divergence of a feature's values in two parts of one tally."""
    mine, theirs = one.bins_K.astype(float), reference.bins_K.astype(float)
    if is_number:
        mine, theirs = bins_on_tenths(one, reference)
    mine, theirs = np.append(mine, one.missing), np.append(theirs, reference.missing)
    if not mine.sum() or not theirs.sum():
        return 0.0
    p, q = mine / mine.sum(), theirs / theirs.sum()
    middle = (p + q) / 2
    return float(max(0.0, (_entropy_against(p, middle) + _entropy_against(q, middle)) / 2))


def bins_on_tenths(one: FeatureCounts, reference: FeatureCounts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts of a number's values in two parts of one tally, over tenths of the reference. [NUMBER_BINS] each."""
    mine_K, theirs_K = one.bins_K.astype(float), reference.bins_K.astype(float)
    if not theirs_K.sum():
        return mine_K, theirs_K
    middle_K = (np.cumsum(theirs_K) - theirs_K / 2) / theirs_K.sum()
    tenth_K = np.minimum(middle_K * NUMBER_BINS, NUMBER_BINS - 1).astype(int)
    of_one, of_reference = (
        np.bincount(tenth_K, bins_K, NUMBER_BINS).astype(np.float64) for bins_K in (mine_K, theirs_K)
    )
    return of_one, of_reference


def _entropy_against(p: NDArray[np.float64], middle: NDArray[np.float64]) -> float:
    seen = p > 0
    return float(np.sum(p[seen] * np.log2(p[seen] / middle[seen])))
