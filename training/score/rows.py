"""Rows of a log -> requests and their candidates, as a scorer takes them, and the rows that break a rule.

In: an Arrow table. Out: `ScoredRows`. With a group column, the rows that have one value of it are the candidates of one
request, whose user and context features must be the same in all of them. Without one, each row is a request of its own.

Shapes: B rows of the table, N of them that are good, R requests, V list values.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.features.kinds import Feature
from model.features.kinds.columns import Column, Dtype, Ids
from model.schema import FeedSchema
from training.columns import plain
from training.data.bad_rows import Mask, RowFault
from training.data.kinds.columns import column_from_arrow, dtypes_of
from training.data.usual_types import usual_table


class BadRow(NamedTuple):
    """The first row, in the table, that breaks a rule in a column, and how many do."""

    row: int
    column: str
    rule: str
    rows: int


class Candidates(NamedTuple):
    """N good rows, `rows_N` of the table: the columns of R requests and of N candidates, and whose each one is."""

    rows_N: Ids
    requests: dict[str, Column]
    num_requests: int
    columns: dict[str, Column]
    request_of_N: Ids


class RowReader:
    """Reads the rows of one schema's log."""

    def __init__(self, schema: FeedSchema, group_by: str | None) -> None:
        self._request, self._candidate = schema.requested("request"), schema.requested("candidate")
        self._dtypes = dtypes_of(schema)
        self._group_by = group_by
        names = [*(feature.name for feature in (*self._request, *self._candidate)), group_by]
        self._names = list(dict.fromkeys(name for name in names if name is not None))

    def read(self, table: pa.Table) -> tuple[Candidates | None, list[BadRow]]:
        """The good rows, None where there is none, and what is wrong with the others. Raises ValueError naming a
        column that is no good at all."""
        table, odd = usual_table(table.select(self._names))
        faults = list(odd.items())
        rows_N = np.arange(table.num_rows)
        bad: list[BadRow] = []
        while True:
            is_bad_N = np.zeros(len(rows_N), bool)
            for column, fault in faults:
                is_new_N = fault.is_bad_B & ~is_bad_N
                if is_new_N.any():
                    bad.append(BadRow(int(rows_N[is_new_N.argmax()]), column, fault.rule, int(is_new_N.sum())))
                is_bad_N |= is_new_N
            rows_N = rows_N[~is_bad_N]
            if not len(rows_N):
                return None, bad
            candidates, faults = self._read(table if not bad else table.take(rows_N), rows_N)
            if candidates is not None:
                return candidates, bad

    def _read(self, part: pa.Table, rows_N: Ids) -> tuple[Candidates | None, list[tuple[str, RowFault]]]:
        columns, faults = self._columns(self._candidate, part)
        if self._group_by is None:
            requests, more = self._columns(self._request, part)
            faults += more
            count, request_of_N = part.num_rows, np.arange(part.num_rows)
        else:
            first_R, request_of_N, fault = _groups(part.column(self._group_by))
            count = len(first_R)
            if fault is not None:
                return None, [*faults, (self._group_by, fault)]
            requests, more = self._columns(self._request, part.take(first_R))
            if more:
                faults += self._columns(self._request, part)[1]
            elif not faults:
                first_of_N = pa.array(first_R[request_of_N])
                for feature in self._request:
                    faults += _differing(feature.name, part.column(feature.name), first_of_N)
        if faults:
            return None, faults
        return Candidates(rows_N, requests, count, columns, request_of_N), []

    def _columns(
        self, features: Sequence[Feature], table: pa.Table
    ) -> tuple[dict[str, Column], list[tuple[str, RowFault]]]:
        columns: dict[str, Column] = {}
        faults: list[tuple[str, RowFault]] = []
        for feature in features:
            dtype: Dtype | None = self._dtypes.get(feature.name)
            try:
                columns[feature.name] = column_from_arrow(feature, dtype, table.column(feature.name))
            except RowFault as fault:
                faults.append((feature.name, fault))
            except ValueError as error:
                raise ValueError(f"column '{feature.name}': {error}") from None
        return columns, faults


def _groups(column: pa.ChunkedArray) -> tuple[Ids, Ids, RowFault | None]:
    """The first row of every request, and the request of every row, by the order in which they come first."""
    column = plain(column)
    if column.null_count:
        is_null_N: Mask = column.is_null().to_numpy()
        return np.zeros(0, np.int64), np.zeros(0, np.int64), RowFault("null; a row needs its request", is_null_N)
    try:
        codes_N = column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    except pa.ArrowNotImplementedError:
        raise ValueError(f"--group-by: a column of type {column.type} does not name requests") from None
    # Codes are given in the order of first appearance.
    return np.unique(codes_N, return_index=True)[1], codes_N, None


def _differing(name: str, column: pa.ChunkedArray, first_of_N: pa.Array) -> list[tuple[str, RowFault]]:
    """Rows whose value is not that of the first row of their request."""
    values = plain(column).combine_chunks()
    firsts = values.take(first_of_N)
    if pa.types.is_nested(values.type):
        lengths_N, first_lengths_N = (pc.fill_null(pc.list_value_length(one), 0).to_numpy() for one in (values, firsts))
        differs_N = lengths_N != first_lengths_N
        is_same_length = pa.array(~differs_N)
        lists_V, first_lists_V = (plain(pc.list_flatten(one.filter(is_same_length))) for one in (values, firsts))
        row_of_V = np.repeat(np.flatnonzero(~differs_N), lengths_N[~differs_N])
        differs_N[row_of_V[_unequal(lists_V, first_lists_V)]] = True
    else:
        differs_N = _unequal(values, firsts)
    if not differs_N.any():
        return []
    return [(name, RowFault("differs within its request, whose user and context features are one", differs_N))]


def _unequal(values: pa.Array, others: pa.Array) -> Mask:
    if pa.types.is_null(values.type):
        return np.zeros(len(values), bool)
    unequal = pc.fill_null(pc.not_equal(values, others), False).to_numpy(zero_copy_only=False)
    is_null, is_other_null = (one.is_null().to_numpy(zero_copy_only=False) for one in (values, others))
    mask: Mask = unequal | (is_null != is_other_null)
    return mask
