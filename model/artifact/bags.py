"""Look-ups in tables of one width: bags of their rows, summed or averaged into the rows of a block.

A bag is what is summed for one feature in one row: the row of a single id, those of a list, two for every id of a table
with two hashes. torch looks all bags up at once. numpy does what is before and after it: for small arrays torch takes
several times as long. It also looks up the bags of a single row, in the same order of additions.

Shapes: B rows of a block, K single-id features, L list features, S = K + L places of a row, V values of a list feature,
M ids of a row, J rows of tables that are looked up, P bags, R rows of all tables, W their columns.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.features.kinds.columns import Ids
from model.schema import Table

Floats = NDArray[np.float32]

# More rows than a request has are laid out again each time.
_REMEMBERED_ROWS = 4096


class BagLists(NamedTuple):
    """A list feature: its table, and whether the mean of its rows is taken or their sum."""

    table: Table
    is_mean: bool


class Bags:
    """Features that read `stacked_RW`. `owners` are, for each owner of tables, the first row of each table by its name.

    So many layouts of rows whose lists are equally long are `remembered`. Layouts of the same lengths are parts of one
    for each doubling of the rows."""

    def __init__(
        self,
        stacked_RW: Tensor,
        ids: Sequence[Table],
        lists: Sequence[BagLists],
        owners: Sequence[Mapping[str, int]],
        remembered: int,
    ) -> None:
        self._stacked_RW = stacked_RW
        self._rows_RW: Floats = stacked_RW.numpy()  # the same memory
        self._width = stacked_RW.shape[1]
        # Nothing in it leads back here: a table is let go with its last reader, not at some later collection.
        self._of = _Features(ids, lists, owners)
        doubled = lru_cache(remembered)(self._of.layout)
        self._layout = lru_cache(remembered)(partial(_layout_of, self._of, doubled))

    def by_owner(self, ids_BK: Ids, lengths_LB: Ids, values: Sequence[Ids]) -> list[Floats]:
        """The features' columns, [B, S * W], by the tables of each owner. `values` are those of each list feature."""
        lengths = _equal_lengths(lengths_LB)
        if lengths is None:
            return self._ragged(ids_BK, lengths_LB, values)
        return self._even(ids_BK, lengths, values)

    def _even(self, ids_BK: Ids, lengths: bytes, values: Sequence[Ids]) -> list[Floats]:
        """Rows whose lists are equally long: bags stand in the order of their places."""
        rows = len(ids_BK)
        layout = (self._layout if rows <= _REMEMBERED_ROWS else self._of.layout)(lengths, rows)
        ids = ids_BK.reshape(-1)
        if values:
            ids = np.concatenate([ids_BK, *(one_V.reshape(rows, -1) for one_V in values)], axis=1).reshape(-1)
        found = []
        for table_rows in layout.table_rows:
            rows_J = table_rows.of_ids(ids)
            if layout.is_full_row:
                rows_JW = self._rows_of(rows_J)
                if layout.weights_J is not None:
                    rows_JW *= layout.weights_J[:, None]
                bags_PW = np.add.reduceat(rows_JW, layout.offsets_P1[:-1], axis=0)
            else:
                bags_PW = self._look_up(rows_J, *layout.tensors)
            found.append(bags_PW.reshape(rows, self._of.places * self._width))
        return found

    def _ragged(self, ids_BK: Ids, lengths_LB: Ids, values: Sequence[Ids]) -> list[Floats]:
        """Rows with lists of any length: a bag for each place, empty where a list belongs, then those of each list."""
        of, rows = self._of, len(ids_BK)
        num_places = rows * of.places
        offsets_P1 = np.empty(num_places + lengths_LB.size + 1, np.int64)
        starts_B, place_S = np.arange(rows) * of.num_ids, np.minimum(np.arange(of.places), of.num_ids)
        np.add(starts_B[:, None], place_S, out=offsets_P1[:num_places].reshape(rows, of.places))
        offsets_P1[num_places] = ids_BK.size
        np.add.accumulate(lengths_LB.reshape(-1), out=offsets_P1[num_places + 1 :])
        offsets_P1[num_places + 1 :] += ids_BK.size
        offsets_P1 *= of.rows_of_id
        divisors_LB = of.divisors(lengths_LB)
        found = []
        for of_ids, of_lists in zip(of.ids, of.lists, strict=True):
            in_lists = [of_list.of_ids(one_V[:, None]) for of_list, one_V in zip(of_lists, values, strict=True)]
            rows_J = np.concatenate([of_ids.of_ids(ids_BK), *in_lists])
            bags_PW = self._look_up(rows_J, torch.from_numpy(offsets_P1))
            places_BSW = bags_PW[:num_places].reshape(rows, of.places, self._width)
            pooled_LBW = bags_PW[num_places:].reshape(*lengths_LB.shape, self._width)
            lists_LBW = places_BSW[:, of.num_ids :].transpose(1, 0, 2)
            if divisors_LB is None:
                lists_LBW[:] = pooled_LBW
            else:
                np.divide(pooled_LBW, divisors_LB[:, :, None], out=lists_LBW)
            found.append(places_BSW.reshape(rows, of.places * self._width))
        return found

    def _rows_of(self, rows_J: Ids) -> Floats:
        """rows_JW. Raises RuntimeError where the table has no such row, as torch does."""
        try:
            return self._rows_RW.take(rows_J, 0)
        except IndexError:
            raise RuntimeError(f"a row is not in the valid range [0, {len(self._rows_RW)})") from None

    def _look_up(self, rows_J: Ids, offsets_P1: Tensor, weights_J: Tensor | None = None) -> Floats:
        """bags_PW. Raises RuntimeError where the table has no such row."""
        # mode 0 is a sum, whose weights cost nothing: a mean's kernel takes twice as long.
        bags_PW = torch.embedding_bag(
            self._stacked_RW, torch.from_numpy(rows_J), offsets_P1, False, 0, False, weights_J, True
        )[0]
        return bags_PW.numpy()


class _Features:
    """The features of one width without their tables. `ids` and `lists` make rows of tables of them, by owner."""

    def __init__(self, ids: Sequence[Table], lists: Sequence[BagLists], owners: Sequence[Mapping[str, int]]) -> None:
        self.num_ids, self.places = len(ids), len(ids) + len(lists)
        # The tables have one hash all, or two.
        self.rows_of_id = 1 if (*ids, *(one.table for one in lists))[0].half_rows is None else 2
        self.ids = [_TableRows.of_tables(ids, starts) for starts in owners]
        self.lists = [[_TableRows.of_tables([one.table], starts) for one in lists] for starts in owners]
        self._is_sum_L = np.array([not one.is_mean for one in lists], np.bool_)

    def layout(self, lengths: bytes, rows: int) -> "_Layout":
        """The layout of so many rows, or of fewer, whose lists have these lengths."""
        lengths_L = np.frombuffer(lengths, np.int64)
        in_row_S = self.rows_of_id * np.concatenate([np.ones(self.num_ids, np.int64), lengths_L])
        table_rows = []
        for of_ids, of_lists in zip(self.ids, self.lists, strict=True):
            in_row = [one.tiled(length) for one, length in zip(of_lists, lengths_L.tolist(), strict=True)]
            table_rows.append(_TableRows.joined([of_ids, *in_row]).tiled(rows))
        divisors_L1, weights_J = self.divisors(lengths_L[:, None]), None
        if divisors_L1 is not None:
            weights_S = np.concatenate([np.ones(self.num_ids, np.float32), 1 / divisors_L1[:, 0]])
            weights_J = np.tile(weights_S.repeat(in_row_S), rows)
        offsets_P1 = np.append(0, np.tile(in_row_S, rows).cumsum())
        return _Layout.of(offsets_P1, table_rows, weights_J, rows)

    def divisors(self, lengths_LB: Ids) -> Floats | None:
        """By what sums of lists are divided, [L, B]. None where no mean is taken."""
        if self._is_sum_L.all():
            return None
        divisors_LB = np.maximum(lengths_LB, 1).astype(np.float32)
        divisors_LB[self._is_sum_L] = 1
        return divisors_LB


class _TableRows(NamedTuple):
    """Stacked rows of ids by their tables: the first row of each table, and the rows of its halves."""

    starts_M: Ids
    half_rows_M: Ids | None

    @classmethod
    def of_tables(cls, tables: Sequence[Table], starts: Mapping[str, int]) -> "_TableRows":
        halves = [table.half_rows for table in tables if table.half_rows is not None]
        starts_M = np.array([starts[table.name] for table in tables], np.int64)
        return cls(starts_M, np.array(halves, np.int64) if halves else None)

    @classmethod
    def joined(cls, parts: "Sequence[_TableRows]") -> "_TableRows":
        halves = [part.half_rows_M for part in parts if part.half_rows_M is not None]
        return cls(np.concatenate([part.starts_M for part in parts]), np.concatenate(halves) if halves else None)

    def tiled(self, times: int) -> "_TableRows":
        """The same for ids that many times over."""
        half_rows_M = self.half_rows_M
        return _TableRows(np.tile(self.starts_M, times), None if half_rows_M is None else np.tile(half_rows_M, times))

    def first(self, ids: int) -> "_TableRows":
        """The same for the first ids."""
        return _TableRows(self.starts_M[:ids], None if self.half_rows_M is None else self.half_rows_M[:ids])

    def of_ids(self, ids: Ids) -> Ids:
        """rows_J of `ids`, [..., M], two for each with two hashes."""
        starts_M, half_rows_M = self
        if half_rows_M is None:
            return (ids + starts_M).reshape(-1)
        first, second = np.divmod(ids, half_rows_M)
        return np.stack([first + starts_M, second + starts_M + half_rows_M], axis=-1).reshape(-1)


class _Layout(NamedTuple):
    """Bags of rows whose lists are equally long, and what makes rows of tables of their ids, by owner. `weights_J` are
    of the rows in sums that are means, None where there is no mean. `tensors` are both, in the same memory. Bags of
    a single row none of which is empty are a full row."""

    offsets_P1: Ids
    table_rows: list[_TableRows]
    weights_J: Floats | None
    tensors: tuple[Tensor, Tensor | None]
    is_full_row: bool

    @classmethod
    def of(cls, offsets_P1: Ids, table_rows: list[_TableRows], weights_J: Floats | None, rows: int) -> "_Layout":
        weights = None if weights_J is None else torch.from_numpy(weights_J)
        is_full_row = rows == 1 and bool(np.diff(offsets_P1).all())
        return cls(offsets_P1, table_rows, weights_J, (torch.from_numpy(offsets_P1), weights), is_full_row)

    def cut(self, rows: int, of: _Features) -> "_Layout":
        """The same of the first rows, in the same memory."""
        offsets_P1 = self.offsets_P1[: rows * of.places + 1]
        end = int(offsets_P1[-1])
        table_rows = [one.first(end // of.rows_of_id) for one in self.table_rows]
        return _Layout.of(offsets_P1, table_rows, None if self.weights_J is None else self.weights_J[:end], rows)


def _layout_of(of: _Features, doubled: Callable[[bytes, int], _Layout], lengths: bytes, rows: int) -> _Layout:
    """The layout of so many rows: a part of one of twice as many at the most."""
    return doubled(lengths, 1 << (rows - 1).bit_length()).cut(rows, of)


def _equal_lengths(lengths_LB: Ids) -> bytes | None:
    """The length that each list has in all rows, as bytes of int64. None where one has several."""
    lengths, rows = lengths_LB.tobytes(), lengths_LB.shape[1]
    if rows < 2:
        return lengths if rows else None
    # Bytes are compared many times as fast as numbers. Those of a single list need no gathering.
    if len(lengths_LB) == 1:
        return lengths[:8] if lengths == lengths[:8] * rows else None
    of_row = b"".join([lengths[at : at + 8] for at in range(0, len(lengths), 8 * rows)])
    repeated = b"".join([of_row[at : at + 8] * rows for at in range(0, len(of_row), 8)])
    return of_row if lengths == repeated else None
