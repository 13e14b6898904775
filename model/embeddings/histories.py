"""Attention over lists of the request while it is trained: a list's items, weighed by the candidate beside them.

In: a batch, whose every row has its own lists and its own candidate. Out: attended_BW, one for each list, or for each
list and task where tasks have tables of their own. With q the candidate's embedding and k those of the list's items,

    attended = softmax(q . k / sqrt(W)) k    (scaled dot product: Vaswani et al. 2017, equation 1, arXiv 1706.03762)

or, with `attention: mlp`, an MLP of q, k, q - k and q * k gives each item's weight, without a softmax (the activation
unit of Zhou et al. 2018, section 4.3, arXiv 1706.06978, with ReLU). An empty list gives zeros.
model/artifact/attention.py computes the same of one request and all its candidates.

Tables pool what they read. So each place of a list is a feature of its own there, of one id or none (`place_keys`),
where a table's optimizer runs inside backward: its update then has the gradients of all places at once. Other tables
are parameters, whose rows are looked up item by item.

Shapes: B rows, L items of a list, V items of all lists of a feature, W columns of a table.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.features.block import BlockTensors, block_inputs
from model.schema import Attention, FeedSchema

# As in figure 2 of the paper.
UNIT_WIDTH = 36


class ListTensors(NamedTuple):
    """A list of a batch: ids of all rows, and how many of them each row has."""

    values_V: Tensor
    lengths_B: Tensor

    def is_item_BL(self, length: int) -> Tensor:
        """Mask of the places that have an item, of lists padded to `length`."""
        places_L = torch.arange(length, device=self.lengths_B.device)
        return places_L < self.lengths_B.unsqueeze(1)

    def longest(self) -> int:
        """Items of the longest list, at least 1."""
        return max(1, int(self.lengths_B.max())) if len(self.lengths_B) else 1

    def by_place(self, length: int) -> tuple[Tensor, Tensor]:
        """The ids place by place of the lists, oldest first, and lengths_LB: 1 where a row has an item there."""
        is_item_BL = self.is_item_BL(length)
        ids_BL = self.values_V.new_zeros(is_item_BL.shape).masked_scatter(is_item_BL, self.values_V)
        return ids_BL.t()[is_item_BL.t()], is_item_BL.t().to(self.lengths_B.dtype)

    def padded(self, rows_VW: Tensor) -> Tensor:
        """keys_BLW of the lists' rows, 0 behind the end of each list."""
        is_item_BL = self.is_item_BL(self.longest())
        keys_BLW = rows_VW.new_zeros(*is_item_BL.shape, rows_VW.shape[1])
        return keys_BLW.masked_scatter(is_item_BL.unsqueeze(2), rows_VW)


class Histories:
    """The lists with attention of a feed: their places among the lists of a request, and the keys that tables read them
    by. `by_place` are the tables that pool what they read."""

    def __init__(self, schema: FeedSchema, by_place: Collection[str]) -> None:
        self.attentions: tuple[Attention, ...] = schema.attentions
        names = [one.name for one in block_inputs(schema, "request").lists]
        self._lists = [names.index(one.name) for one in self.attentions]
        self.table_of = {one.name: one.table for one in self.attentions}
        self.place_keys: dict[str, list[str]] = {
            one.name: [f"{one.name}[{place}]" for place in range(one.max_length)]
            for one in self.attentions
            if one.table in by_place
        }

    def __len__(self) -> int:
        return len(self.attentions)

    def keys_of(self, table: str) -> list[str]:
        """The keys by which a table is read place by place."""
        return [key for name, keys in self.place_keys.items() if self.table_of[name] == table for key in keys]

    def split(self, request: BlockTensors) -> tuple[BlockTensors, dict[str, ListTensors]]:
        """The request's block without these lists, and the lists."""
        if not self.attentions:
            return request, {}
        counts = request.list_lengths_LB.sum(1).tolist()
        values = torch.split(request.list_values_V, counts)
        taken = {
            one.name: ListTensors(values[place], request.list_lengths_LB[place])
            for one, place in zip(self.attentions, self._lists, strict=True)
        }
        others = [place for place in range(len(counts)) if place not in self._lists]
        values_V = torch.cat([values[place] for place in others]) if others else request.list_values_V[:0]
        return request._replace(list_values_V=values_V, list_lengths_LB=request.list_lengths_LB[others]), taken


class ActivationUnit(nn.Module):
    """Weight of an item by its embedding and the candidate's. query_BW, keys_BLW -> weights_BL."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(4 * width, UNIT_WIDTH)
        self.last = nn.Linear(UNIT_WIDTH, 1)

    def forward(self, query_BW: Tensor, keys_BLW: Tensor) -> Tensor:
        """weights_BL."""
        query_BLW = query_BW.unsqueeze(1).expand_as(keys_BLW)
        pair = torch.cat([query_BLW, keys_BLW, query_BLW - keys_BLW, query_BLW * keys_BLW], dim=2)
        weights_BL: Tensor = self.last(torch.relu(self.first(pair))).squeeze(2)
        return weights_BL


def activation_units(schema: FeedSchema, num_owners: int) -> nn.ModuleList:
    """Units of the lists with `attention: mlp`: all of the first owner of tables, then those of the next."""
    widths = [one.dim for one in schema.attentions if one.kind == "mlp"]
    return nn.ModuleList([ActivationUnit(width) for _ in range(num_owners) for width in widths])


def attended(query_BW: Tensor, keys_BLW: Tensor, lengths_B: Tensor, unit: nn.Module | None = None) -> Tensor:
    """attended_BW of lists that are padded with zeros behind their lengths. `unit` weighs the items, if any."""
    if unit is not None:
        # Rows behind the end are zeros, whatever their weight.
        return torch.bmm(unit(query_BW, keys_BLW).unsqueeze(1), keys_BLW).squeeze(1)
    scores_BL = torch.bmm(keys_BLW, query_BW.unsqueeze(2)).squeeze(2) * query_BW.shape[1] ** -0.5
    places_L = torch.arange(keys_BLW.shape[1], device=keys_BLW.device)
    # Not minus infinity, of which an empty list's softmax would be NaN: its weights are even, over rows of zeros.
    scores_BL = scores_BL.masked_fill(places_L >= lengths_B.unsqueeze(1), torch.finfo(scores_BL.dtype).min)
    return torch.bmm(torch.softmax(scores_BL, dim=1).unsqueeze(1), keys_BLW).squeeze(1)


def looked_up(collections: Sequence[nn.Module], table: str, rows: Sequence[Tensor]) -> Tensor:
    """rows_VW of a table that is not sharded, each value's alone: the sum of those at `rows`, one or two of an id."""
    tables: list[Any] = [collection.embedding_bags for collection in collections]
    (bag,) = [bags[table] for bags in tables if table in bags]
    found: list[Tensor] = [functional.embedding(rows_V, bag.weight, sparse=bag.sparse) for rows_V in rows]
    return found[0] if len(found) == 1 else found[0] + found[1]
