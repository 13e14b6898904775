"""Counts of a part of a log, in bounded memory: what the data report (data_report.py) is made of.

A number's distribution is counted by the leading bits of its float64 (sign, exponent, three bits of mantissa), so that
counts of any two parts go together; an id's by the low bits of its hash.

Shapes: B rows, V values.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.features.fitted import FittedFeatures
from model.features.id_lookup import Lookup, hash_integers, hash_strings, lookup_of
from model.features.kinds import IdListFeature
from model.features.kinds.columns import Column
from model.schema import FeedSchema
from training.data.arrow import labels_of, observed_of

ID_BINS = 64
NUMBER_BINS = 10
_KEPT_BITS = 15

Counts = NDArray[np.int64]


def known_lookups(schema: FeedSchema, fitted: FittedFeatures | None) -> dict[str, Lookup]:
    """The look-up of each id and id_list feature that has a vocabulary; without what was fitted only those whose
    schema lists it."""
    return {
        name: lookup_of(table, fitted or FittedFeatures())
        for table in schema.tables
        if table.vocabulary is not None and (fitted is not None or table.vocabulary != "fitted")
        for name in table.features
    }


class FeatureTally:
    """Counts of one feature: missing rows (a list that is empty counts), unknown ids, lengths, distribution."""

    def __init__(self) -> None:
        self.missing = 0
        self.values = 0
        self.unknown = 0
        self.longest = 0
        self.cut = 0
        self.bins: dict[int, int] = {}

    def add(self, column: Column, lookup: Lookup | None, max_length: int | None) -> None:
        """Counts a column's rows; `max_length` is that of a list."""
        codes_V = column.codes_V
        values_in = len(column.values if codes_V is None else codes_V)
        is_given_V = np.ones(values_in, bool) if column.missing is None else ~column.missing
        given = int(is_given_V.sum())
        self.values += given
        if column.lengths_B is None:
            self.missing += values_in - given
        elif len(column.lengths_B):
            self.missing += int((column.lengths_B == 0).sum())
            self.longest = max(self.longest, int(column.lengths_B.max()))
            self.cut += int((column.lengths_B > (max_length or 0)).sum())
        if lookup is not None:
            self.unknown += int((lookup(column)[is_given_V] == 0).sum())
        bins_V = _bins(column)
        bins_V = (bins_V if codes_V is None else bins_V[codes_V])[is_given_V]
        for key, count in zip(*(part.tolist() for part in np.unique(bins_V, return_counts=True)), strict=True):
            self.bins[key] = self.bins.get(key, 0) + count


def _bins(column: Column) -> NDArray[np.int64]:
    values = column.values
    if isinstance(values, list):
        return (hash_strings(values) % np.uint64(ID_BINS)).astype(np.int64)
    if values.dtype == np.int64:
        return (hash_integers(values) % np.uint64(ID_BINS)).astype(np.int64)  # type: ignore[arg-type]
    words_V = (np.asarray(values, np.float64) + 0.0).view(np.int64) >> (64 - _KEPT_BITS)
    # Of negative numbers the larger word is the smaller number.
    return np.where(words_V < 0, -(2 ** (_KEPT_BITS - 1)) - words_V, words_V)


class Tally:
    """Counts of rows of a log: rows, labels by task, features."""

    def __init__(self, schema: FeedSchema) -> None:
        self.rows = 0
        self.observed = {task.name: 0 for task in schema.tasks}
        self.label_sum = {task.name: 0.0 for task in schema.tasks}
        self.label_least = {task.name: np.inf for task in schema.tasks}
        self.label_most = {task.name: -np.inf for task in schema.tasks}
        self.features = {feature.name: FeatureTally() for feature in schema.features}

    def add(
        self, schema: FeedSchema, table: pa.Table, columns: Mapping[str, Column], lookups: Mapping[str, Lookup]
    ) -> None:
        """Counts rows."""
        self.add_labels(schema, table)
        for feature in schema.features:
            most = feature.max_length if isinstance(feature, IdListFeature) else None
            self.features[feature.name].add(columns[feature.name], lookups.get(feature.name), most)

    def add_labels(self, schema: FeedSchema, table: pa.Table) -> None:
        """Counts rows, their labels alone."""
        self.rows += table.num_rows
        for task in schema.tasks:
            labels = labels_of(task, table)[observed_of(task, table)]
            if len(labels):
                self.observed[task.name] += len(labels)
                self.label_sum[task.name] += float(labels.sum())
                self.label_least[task.name] = min(self.label_least[task.name], float(labels.min()))
                self.label_most[task.name] = max(self.label_most[task.name], float(labels.max()))

    def merge(self, other: "Tally") -> None:
        """Takes another tally's counts."""
        self.rows += other.rows
        for name, observed in other.observed.items():
            self.observed[name] += observed
            self.label_sum[name] += other.label_sum[name]
            self.label_least[name] = min(self.label_least[name], other.label_least[name])
            self.label_most[name] = max(self.label_most[name], other.label_most[name])
        for name, theirs in other.features.items():
            mine = self.features[name]
            for count in ("missing", "values", "unknown", "cut"):
                setattr(mine, count, getattr(mine, count) + getattr(theirs, count))
            mine.longest = max(mine.longest, theirs.longest)
            for key, number in theirs.bins.items():
                mine.bins[key] = mine.bins.get(key, 0) + number


def drift(schema: FeedSchema, one: Tally, reference: Tally) -> dict[str, float]:
    """By feature the Jensen-Shannon divergence (bits, 0 to 1; Lin 1991) of two parts' values, missing ones being one
    of them: over tenths of the reference for a number, over hash bins for ids."""
    return {
        feature.name: _divergence(one.features[feature.name], reference.features[feature.name], not feature.has_ids)
        for feature in schema.features
    }


def by_chance(schema: FeedSchema, rows: int, reference_rows: int) -> dict[str, float]:
    """By feature the drift that is expected of two samples of so many rows of one law, to first order: the statistic
    of a chi-squared test has as many degrees of freedom as there are bins, less one."""
    scale = (1 / max(rows, 1) + 1 / max(reference_rows, 1)) / (8 * np.log(2))
    return {feature.name: (ID_BINS if feature.has_ids else NUMBER_BINS) * scale for feature in schema.features}


def _divergence(one: FeatureTally, reference: FeatureTally, is_number: bool) -> float:
    keys = np.array(sorted({*one.bins, *reference.bins}), np.int64)
    mine, theirs = (np.array([tally.bins.get(int(key), 0) for key in keys], float) for tally in (one, reference))
    if is_number and theirs.sum():
        tenth = np.minimum((np.cumsum(theirs) - theirs / 2) / theirs.sum() * NUMBER_BINS, NUMBER_BINS - 1).astype(int)
        mine, theirs = (np.bincount(tenth, counts, NUMBER_BINS) for counts in (mine, theirs))
    mine, theirs = np.append(mine, one.missing), np.append(theirs, reference.missing)
    if not mine.sum() or not theirs.sum():
        return 0.0
    p, q = mine / mine.sum(), theirs / theirs.sum()
    middle = (p + q) / 2
    return float(max(0.0, (_entropy_against(p, middle) + _entropy_against(q, middle)) / 2))


def _entropy_against(p: NDArray[np.float64], middle: NDArray[np.float64]) -> float:
    seen = p > 0
    return float(np.sum(p[seen] * np.log2(p[seen] / middle[seen])))
