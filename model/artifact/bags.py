"""Encoded blocks as an exported module reads them: bags of rows of its stacked tables.

In: an `EncodedBlock`. Out: the tensors that model/export/embedding_rows.py looks up. A bag is the rows that are summed
for one feature: the row of a single id, those of a list, two for every id of a table with two hashes. All bags that
read tables of one width are one look-up. numpy prepares them: torch takes several times as long for small arrays.

Shapes: B rows of a block, K single-id features and L list features of a group, V their list values, Q numbers, I rows
of tables that are looked up, P bags: K of each row of the block, then B of each list.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.features.block import BLOCKS, EncodedBlock, block_inputs
from model.features.distinct import by_list
from model.features.kinds.columns import Ids
from model.schema import Block, FeedSchema, Table

# Remembered of one row: which bags there are depends on the lengths of its lists alone, of which many are full.
_LAYOUTS = 256


class Group(NamedTuple):
    """The features of a block whose tables have one width, and one hash or two. `ids` and `lists` are their places
    among all features of their kind."""

    width: int
    has_halves: bool
    ids: list[int]
    lists: list[int]
    has_means: bool


def groups_of(schema: FeedSchema, block: Block) -> list[Group]:
    """The groups of a block."""
    ids, lists, _ = block_inputs(schema, block)
    table_of = tables_by_feature(schema)
    id_kinds = [_kind(table_of[name]) for name in ids]
    list_kinds = [_kind(table_of[feature.name]) for feature in lists]
    groups = []
    for kind in dict.fromkeys((*id_kinds, *list_kinds)):
        of_group = [place for place, other in enumerate(list_kinds) if other == kind]
        has_means = any(lists[place].pooling == "mean" for place in of_group)
        groups.append(Group(*kind, [k for k, other in enumerate(id_kinds) if other == kind], of_group, has_means))
    return groups


def tables_by_feature(schema: FeedSchema) -> dict[str, Table]:
    """The table that each feature with ids reads."""
    return {name: table for table in schema.tables for name in table.features}


class ModuleInputs:
    """The inputs of an exported module. `table_starts` are, for each owner of tables, the first stacked row of each
    table of the schema."""

    def __init__(self, schema: FeedSchema, table_starts: Sequence[Sequence[int]]) -> None:
        names = [table.name for table in schema.tables]
        starts = [dict(zip(names, of_owner, strict=True)) for of_owner in table_starts]
        self._groups = {
            block: [_GroupBags(schema, block, group, starts) for group in groups_of(schema, block)] for block in BLOCKS
        }

    def of(self, block: Block, encoded: EncodedBlock) -> list[Tensor]:
        """numbers_BQ, then group by group rows_I of each owner's tables, offsets and, with means, divisors_P1 of the
        lists. Numbers are not copied."""
        tensors = [torch.from_numpy(encoded.numbers_BQ)]
        for group in self._groups[block]:
            tensors += group.tensors(encoded)
        return tensors


class _GroupBags:
    """The bags of one group."""

    def __init__(self, schema: FeedSchema, block: Block, group: Group, starts: Sequence[Mapping[str, int]]) -> None:
        ids, lists, _ = block_inputs(schema, block)
        table_of = tables_by_feature(schema)
        id_tables = [table_of[ids[place]] for place in group.ids]
        list_tables = [table_of[lists[place].name] for place in group.lists]
        # None where the group has all of them.
        self._ids = None if len(group.ids) == len(ids) else group.ids
        self._lists = None if len(group.lists) == len(lists) else group.lists
        self._num_lists = len(group.lists)
        self._rows_of_id = 2 if group.has_halves else 1
        self._has_means = group.has_means
        self._summed = [number for number, place in enumerate(group.lists) if lists[place].pooling == "sum"]
        self._owners = [
            (_Rows.of(id_tables, of_owner), [_Rows.of([table], of_owner) for table in list_tables])
            for of_owner in starts
        ]
        self._of_one_row = lru_cache(_LAYOUTS)(self._of_lengths)

    def tensors(self, block: EncodedBlock) -> list[Tensor]:
        """rows_I of each owner's tables, offsets_P1 of the bags and the last one's end, and divisors_P1."""
        ids_BK = block.ids_BK if self._ids is None else block.ids_BK[:, self._ids]
        lengths_LB, values = block.list_lengths_LB, [block.list_values_V]
        if len(lengths_LB) != 1:
            values = by_list(block)
        if self._lists is not None:
            lengths_LB, values = lengths_LB[self._lists], [values[place] for place in self._lists]
        many = self._rows_of_id * (ids_BK.size + sum(map(len, values)))
        tensors = []
        for of_ids, of_lists in self._owners:
            rows_I = np.empty(many, np.int64)
            end = self._rows_of_id * ids_BK.size
            of_ids.write(ids_BK, rows_I[:end])
            for values_V, of_list in zip(values, of_lists, strict=True):
                start, end = end, end + self._rows_of_id * len(values_V)
                of_list.write(values_V, rows_I[start:end])
            tensors.append(torch.from_numpy(rows_I))
        if len(ids_BK) == 1:
            return [*tensors, *self._of_one_row(ids_BK.size, lengths_LB.tobytes())]
        return [*tensors, *self._layout(ids_BK.size, lengths_LB)]

    def _of_lengths(self, num_ids: int, lengths: bytes) -> list[Tensor]:
        return self._layout(num_ids, np.frombuffer(lengths, np.int64).reshape(-1, 1))

    def _layout(self, num_ids: int, lengths_LB: Ids) -> list[Tensor]:
        """offsets_P1 and, with means, divisors_P1."""
        offsets_P1 = np.arange(num_ids + lengths_LB.size + 1)
        if self._num_lists:
            np.add.accumulate(lengths_LB.reshape(-1), out=offsets_P1[num_ids + 1 :])
            offsets_P1[num_ids + 1 :] += num_ids
        if self._rows_of_id > 1:
            offsets_P1 *= self._rows_of_id
        layout = [torch.from_numpy(offsets_P1)]
        if self._has_means:
            divisors_LB = np.maximum(lengths_LB, 1).astype(np.float32)
            if self._summed:
                divisors_LB[self._summed] = 1
            layout.append(torch.from_numpy(divisors_LB.reshape(-1, 1)))
        return layout


class _Rows(NamedTuple):
    """Stacked rows of ids by their features' tables: the first row of each table, and the rows of its halves."""

    starts_K: Ids
    half_rows_K: Ids | None

    @classmethod
    def of(cls, tables: Sequence[Table], starts: Mapping[str, int]) -> "_Rows":
        halves = [table.half_rows for table in tables if table.half_rows is not None]
        starts_K = np.array([starts[table.name] for table in tables], np.int64)
        return cls(starts_K, np.array(halves, np.int64) if halves else None)

    def write(self, ids: Ids, rows_I: Ids) -> None:
        """Writes the rows of `ids` [..., K], two for each with two hashes."""
        if self.half_rows_K is None:
            np.add(ids, self.starts_K, out=rows_I.reshape(ids.shape))
        else:
            pairs = rows_I.reshape(*ids.shape, 2)
            first, second = np.divmod(ids, self.half_rows_K)
            np.add(first, self.starts_K, out=pairs[..., 0])
            np.add(second, self.starts_K + self.half_rows_K, out=pairs[..., 1])


def _kind(table: Table) -> tuple[int, bool]:
    return table.dim, table.half_rows is not None
