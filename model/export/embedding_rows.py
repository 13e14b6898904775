"""Embeddings as they score: one block's bags and numbers -> its columns of the dense row, on plain torch tables.

All tables of one width are one matrix. All bags of a block that read it are looked up at once, and a shared table is
stored once. model/artifact/bags.py makes the bags. The columns have another order than in training, which `columns`
says.

Shapes: B rows, R rows of all tables of a width, W their columns, P bags, Q numbers.
"""

import torch
from torch import Tensor, nn

from model.artifact.bags import Group, groups_of, tables_by_feature
from model.artifact.table_files import StackedTables
from model.features.block import block_inputs
from model.fusion.experts import side_by_side
from model.schema import Block, FeedSchema

# TorchScript reads these modules: lists are filled by loops.
# ruff: noqa: PERF401


class BlockRows(nn.Module):
    """One block, read from the tables of owner number `owner` of `num_owners`."""

    columns: list[int]

    def __init__(self, schema: FeedSchema, block: Block, tables: StackedTables, owner: int, num_owners: int) -> None:
        super().__init__()
        ids, lists, numbers = block_inputs(schema, block)
        table_of = tables_by_feature(schema)
        widths = [table_of[name].dim for name in (*ids, *(one.name for one in lists))]
        ends = torch.tensor([0, *widths]).cumsum(0).tolist()
        groups: list[nn.Module] = []
        # Places of the columns in training's order: ids, lists and numbers as the schema names them.
        self.columns = []
        position = 1
        for group in groups_of(schema, block):
            offsets_at = position + num_owners
            groups.append(_Bags(tables.stacked_RW[group.width], group, position + owner, offsets_at))
            position = offsets_at + (2 if group.has_means else 1)
            for place in (*group.ids, *(len(ids) + place for place in group.lists)):
                self.columns += range(ends[place], ends[place + 1])
        self.groups = nn.ModuleList(groups)
        self.columns += range(ends[-1], ends[-1] + len(numbers))
        self.has_numbers: bool = len(numbers) > 0

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """The block's columns of the dense row, in the order of `columns`."""
        numbers_BQ = inputs[0]
        parts: list[Tensor] = []
        for group in self.groups:
            parts += group(inputs, numbers_BQ.shape[0])
        if self.has_numbers or len(parts) == 0:
            parts.append(numbers_BQ)
        return side_by_side(parts)


class _Bags(nn.Module):
    """The bags of a block that read tables of one width."""

    def __init__(self, stacked_RW: nn.Parameter, group: Group, rows_at: int, offsets_at: int) -> None:
        super().__init__()
        self.stacked_RW = stacked_RW
        self.num_ids: int = len(group.ids)
        self.num_lists: int = len(group.lists)
        self.has_means: bool = group.has_means
        # Places among the inputs.
        self.rows_at: int = rows_at
        self.offsets_at: int = offsets_at

    def forward(self, inputs: list[Tensor], rows: int) -> list[Tensor]:
        """Their columns, of all single ids and then of each list."""
        # mode 0 is a sum: a mean's kernel takes twice as long.
        bags_PW = torch.embedding_bag(
            self.stacked_RW, inputs[self.rows_at], inputs[self.offsets_at], False, 0, False, None, True
        )[0]
        first_list = rows * self.num_ids
        if self.has_means:
            bags_PW[first_list:].div_(inputs[self.offsets_at + 1])
        if rows == 1:
            return [bags_PW.view(1, -1)]
        parts: list[Tensor] = []
        if self.num_ids > 0:
            parts.append(bags_PW[:first_list].view(rows, -1))
        for number in range(self.num_lists):
            parts.append(bags_PW.narrow(0, first_list + number * rows, rows))
        return parts
