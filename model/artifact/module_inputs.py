"""Encoded blocks as an exported module reads them: rows of the candidates, and the request's share of its products.

In: `EncodedBlock`s, the tables of the artifact, and the module's weights of the request. Out: `rows_ND`, a candidate's
columns of the dense row, those of lists with attention last, and `sums_BF`, what a request's columns add to every
Linear that reads the raw row. Columns stand in another order than in training, which `columns_of` says. The module has
its weights in that order.

None of it is TorchScript: to call that takes longer than a request's look-ups.

Shapes: N candidates, B rows of a block, K single-id features, L list features, V list values, Q numbers, R rows of
all tables of a width, W columns of a table, D columns of the dense row, F outputs over the raw row, A columns of
lists with attention.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model.artifact.attention import HistoryAttention
from model.artifact.bags import BagLists, Bags, Floats
from model.artifact.id_vectors import IdVectors
from model.features.block import BLOCKS, EncodedBlock, block_inputs
from model.features.distinct import Positions, by_list
from model.schema import Block, FeedSchema, Table

# A request is one row, whose lists have many lengths. Candidates' lists are equally long where all are full.
_LAYOUTS: dict[Block, int] = {"request": 256, "candidate": 16}


class Group(NamedTuple):
    """The features of a block whose tables have one width, and one hash or two. `ids` and `lists` are their places
    among all features of their kind."""

    width: int
    has_halves: bool
    ids: list[int]
    lists: list[int]


def groups_of(schema: FeedSchema, block: Block) -> list[Group]:
    """The groups of a block."""
    ids, lists, _ = block_inputs(schema, block)
    table_of = _tables_by_feature(schema)
    id_kinds = [_kind(table_of[name]) for name in ids]
    # Lists with attention are in no row of a block.
    list_kinds = [None if one.pooling == "attention" else _kind(table_of[one.name]) for one in lists]
    groups = []
    for kind in dict.fromkeys(kind for kind in (*id_kinds, *list_kinds) if kind is not None):
        of_group = [place for place, other in enumerate(list_kinds) if other == kind]
        groups.append(Group(*kind, [k for k, other in enumerate(id_kinds) if other == kind], of_group))
    return groups


def columns_of(schema: FeedSchema, block: Block) -> list[int]:
    """The place that each column of a block's rows has in training, where ids, lists and numbers stand as the schema
    names them."""
    inputs = block_inputs(schema, block)
    table_of = _tables_by_feature(schema)
    names = [*inputs.ids, *(one.name for one in inputs.lists)]
    embedded = [*inputs.ids, *inputs.pooled_lists]
    ends = np.cumsum([0, *(table_of[name].dim for name in embedded)]).tolist()
    columns_of_name = dict(zip(embedded, map(range, ends, ends[1:]), strict=True))
    columns: list[int] = []
    for group in groups_of(schema, block):
        for place in (*group.ids, *(len(inputs.ids) + place for place in group.lists)):
            columns += columns_of_name[names[place]]
    return [*columns, *range(ends[-1], ends[-1] + len(inputs.numbers))]


class ModuleInputs:
    """The inputs of an exported module, eager or scripted. `stacked_RW` are the tables by width."""

    def __init__(self, schema: FeedSchema, module: nn.Module, stacked_RW: Mapping[int, Tensor]) -> None:
        names = [table.name for table in schema.tables]
        table_starts: list[list[int]] = module.table_starts  # type: ignore[assignment]
        owners = [dict(zip(names, starts, strict=True)) for starts in table_starts]
        self.stacked_RW = stacked_RW
        self.id_vectors = IdVectors(schema, owners, stacked_RW)
        self._attention = HistoryAttention(schema, owners, stacked_RW, module) if schema.attentions else None
        self._rows = {block: _BlockRows(schema, block, owners, stacked_RW) for block in BLOCKS}
        # As they are multiplied: input by input.
        self._sums = RequestSums(module.sums)  # type: ignore[arg-type]

    def request_sums(self, block: EncodedBlock) -> Tensor:
        """sums_BF of a request block."""
        return self._sums([torch.from_numpy(rows_BD) for rows_BD in self._rows["request"].by_owner(block)])

    def candidate_rows(
        self, block: EncodedBlock, requests: EncodedBlock | None = None, request_of_N: Positions | None = None
    ) -> Tensor:
        """rows_ND of a candidate block: its columns of the dense row, those of each owner's tables side by side.

        Those of lists with attention are 0 without `requests`: the one of all candidates, or each of `request_of_N`."""
        rows = self._rows["candidate"].by_owner(block)
        if self._attention is not None:
            attention, none_NA = self._attention, torch.zeros(len(block.ids_BK), self._attention.width)
            of_pairs = (
                [none_NA] * len(rows) if requests is None else attention.of_candidates(requests, block, request_of_N)
            )
            pairs = zip(map(torch.from_numpy, rows), of_pairs, strict=True)
            return torch.cat([part for pair in pairs for part in pair], dim=1)
        return torch.from_numpy(rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1))

    def with_attention(
        self, sums_NF: Tensor, block: EncodedBlock, requests: EncodedBlock, request_of_N: Positions | None = None
    ) -> Tensor:
        """sums_NF of candidates that are known without a request, and what lists with attention add to them."""
        return sums_NF if self._attention is None else self._attention.added(sums_NF, requests, block, request_of_N)


class RequestSums:
    """Request columns -> what they add to each output over the raw row, biases included. `linears` are those of an
    exported module, eager or scripted, one for each raw row."""

    def __init__(self, linears: nn.Module) -> None:
        # A Linear of a scripted module is one by its members alone.
        each: Iterable[Any] = linears.children()
        self._products: list[tuple[Tensor, Tensor]] = [(linear.weight.t(), linear.bias) for linear in each]

    def __call__(self, rows: Sequence[Tensor]) -> Tensor:
        """sums_BF of each raw row's request columns, [B, D]."""
        pairs = zip(rows, self._products, strict=True)
        sums = [torch.addmm(bias_F, rows_BD, weight_DF) for rows_BD, (weight_DF, bias_F) in pairs]
        return sums[0] if len(sums) == 1 else torch.cat(sums, dim=1)


class _BlockRows:
    """The look-ups of one block."""

    def __init__(
        self, schema: FeedSchema, block: Block, owners: Sequence[Mapping[str, int]], stacked_RW: Mapping[int, Tensor]
    ) -> None:
        ids, lists, numbers = block_inputs(schema, block)
        table_of = _tables_by_feature(schema)
        self._groups: list[tuple[Bags, list[int] | None, list[int] | None]] = []
        for group in groups_of(schema, block):
            bags = Bags(
                stacked_RW[group.width],
                [table_of[ids[place]] for place in group.ids],
                [BagLists(table_of[lists[place].name], lists[place].pooling == "mean") for place in group.lists],
                owners,
                _LAYOUTS[block],
            )
            # None where the group has all of them.
            of_ids = None if len(group.ids) == len(ids) else group.ids
            self._groups.append((bags, of_ids, None if len(group.lists) == len(lists) else group.lists))
        self._has_numbers = len(numbers) > 0
        self._owners = range(len(owners))

    def by_owner(self, block: EncodedBlock) -> list[Floats]:
        """rows_BD by the tables of each owner."""
        values = by_list(block)
        groups = [
            bags.by_owner(
                block.ids_BK if ids is None else block.ids_BK[:, ids],
                block.list_lengths_LB if lists is None else block.list_lengths_LB[lists],
                values if lists is None else [values[place] for place in lists],
            )
            for bags, ids, lists in self._groups
        ]
        if len(groups) == 1 and not self._has_numbers:
            return groups[0]
        return [np.concatenate([*(group[n] for group in groups), block.numbers_BQ], axis=1) for n in self._owners]


def _tables_by_feature(schema: FeedSchema) -> dict[str, Table]:
    return {name: table for table in schema.tables for name in table.features}


def _kind(table: Table) -> tuple[int, bool]:
    return table.dim, table.half_rows is not None
