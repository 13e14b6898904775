"""Embeddings as they score: one block's ids and numbers -> its columns of the dense row, on plain torch tables.

All tables of one width are one matrix, with any readers: the single ids of a block that have it are looked up at
once, and a shared table is stored once. So the columns have another order than in training, which `columns` says.

Shapes: B rows, R rows of all tables of a width, W their columns, K single-id features, L list features, V list values,
D columns of all embeddings of a block, Q numbers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.artifact.table_files import StackedTables
from model.embeddings.embeddings import halves, table_name
from model.features.block import block_inputs
from model.fusion.experts import side_by_side
from model.schema import Block, FeedSchema

# TorchScript reads these modules: lists are filled by loops.
# ruff: noqa: PERF401


class BlockRows(nn.Module):
    """One block. `owner` is the task whose own tables are read, or None for those that all tasks share."""

    columns: list[int]

    def __init__(self, schema: FeedSchema, block: Block, tables: StackedTables, owner: str | None = None) -> None:
        super().__init__()
        ids, lists, numbers = block_inputs(schema, block)
        table_of = {name: table for table in schema.tables for name in table.features}
        start_of = {name: tables.starts[table_name(table.name, owner)] for name, table in table_of.items()}
        widths = [table_of[name].dim for name in ids]
        half_rows = [table_of[name].half_rows for name in ids]
        ends = torch.tensor([0, *widths]).cumsum(0).tolist()
        groups: list[nn.Module] = []
        # Place of each column in training's order: ids, lists and numbers as the schema names them.
        self.columns = []
        kinds = [(width, rows is not None) for width, rows in zip(widths, half_rows, strict=True)]
        for width, has_halves in dict.fromkeys(kinds):
            positions = [k for k, kind in enumerate(kinds) if kind == (width, has_halves)]
            starts = [start_of[ids[k]] for k in positions]
            stacked_RW, is_all = tables.stacked_RW[width], len(positions) == len(ids)
            if has_halves:
                groups.append(_IdPairs(stacked_RW, positions, starts, [half_rows[k] or 0 for k in positions]))
            else:
                groups.append(_Ids(stacked_RW, positions, starts, is_all=is_all))
            self.columns += [column for k in positions for column in range(ends[k], ends[k] + width)]
        self.single = nn.ModuleList(groups)
        self.pooled = nn.ModuleList([
            _List(tables.stacked_RW[table.dim], start_of[feature.name], feature.pooling)
            if table.half_rows is None
            else _ListOfPairs(tables.stacked_RW[table.dim], start_of[feature.name], feature.pooling, table.half_rows)
            for feature in lists
            for table in [table_of[feature.name]]
        ])  # fmt: skip
        rest = sum(table_of[feature.name].dim for feature in lists) + len(numbers)
        self.columns += range(ends[-1], ends[-1] + rest)
        self.has_numbers: bool = len(numbers) > 0

    def forward(self, ids_BK: Tensor, values_V: Tensor, lengths_LB: Tensor, numbers_BQ: Tensor) -> Tensor:
        """The block's columns of the dense row, in the order of `columns`."""
        parts: list[Tensor] = []
        for ids in self.single:
            parts.append(ids(ids_BK))
        start = 0
        for row, bag in enumerate(self.pooled):
            lengths_B = lengths_LB[row]
            end = start + int(lengths_B.sum())
            parts.append(bag(values_V[start:end], lengths_B))
            start = end
        if self.has_numbers or len(parts) == 0:
            parts.append(numbers_BQ)
        return side_by_side(parts)


class _Ids(nn.Module):
    """The single ids of a block whose tables have one width."""

    positions_K: Tensor
    starts_K: Tensor

    def __init__(self, stacked_RW: nn.Parameter, positions: list[int], starts: list[int], *, is_all: bool) -> None:
        super().__init__()
        self.stacked_RW = stacked_RW
        self.is_all: bool = is_all
        self.register_buffer("positions_K", torch.tensor(positions, dtype=torch.int64))
        self.register_buffer("starts_K", torch.tensor(starts, dtype=torch.int64))

    def forward(self, ids_BK: Tensor) -> Tensor:
        """Columns of the ids, feature by feature."""
        if not self.is_all:
            ids_BK = ids_BK.index_select(1, self.positions_K)
        return functional.embedding(ids_BK + self.starts_K, self.stacked_RW).flatten(1)


class _IdPairs(nn.Module):
    """The single ids of a block whose tables have one width and two halves: the sum of a row of each."""

    positions_K: Tensor
    half_rows_K: Tensor

    def __init__(self, stacked_RW: nn.Parameter, positions: list[int], starts: list[int], half_rows: list[int]) -> None:
        super().__init__()
        seconds = [start + rows for start, rows in zip(starts, half_rows, strict=True)]
        self.first = _Ids(stacked_RW, positions, starts, is_all=True)
        self.second = _Ids(stacked_RW, positions, seconds, is_all=True)
        self.register_buffer("positions_K", torch.tensor(positions, dtype=torch.int64))
        self.register_buffer("half_rows_K", torch.tensor(half_rows, dtype=torch.int64))

    def forward(self, ids_BK: Tensor) -> Tensor:
        """Columns of the ids, feature by feature."""
        first_BK, second_BK = halves(ids_BK.index_select(1, self.positions_K), self.half_rows_K)
        columns_BD: Tensor = self.first(first_BK) + self.second(second_BK)
        return columns_BD


class _List(nn.Module):
    def __init__(self, stacked_RW: nn.Parameter, start: int, pooling: str) -> None:
        super().__init__()
        self.stacked_RW = stacked_RW
        self.start: int = start
        self.pooling: str = pooling

    def forward(self, values_V: Tensor, lengths_B: Tensor) -> Tensor:
        """The feature's columns."""
        offsets_B = torch.cumsum(lengths_B, dim=0) - lengths_B
        return functional.embedding_bag(values_V + self.start, self.stacked_RW, offsets_B, mode=self.pooling)


class _ListOfPairs(nn.Module):
    half_rows: Tensor

    def __init__(self, stacked_RW: nn.Parameter, start: int, pooling: str, half_rows: int) -> None:
        super().__init__()
        self.first = _List(stacked_RW, start, pooling)
        self.second = _List(stacked_RW, start + half_rows, pooling)
        self.register_buffer("half_rows", torch.tensor(half_rows))

    def forward(self, values_V: Tensor, lengths_B: Tensor) -> Tensor:
        """The feature's columns."""
        first_V, second_V = halves(values_V, self.half_rows)
        columns_BD: Tensor = self.first(first_V, lengths_B) + self.second(second_V, lengths_B)
        return columns_BD
