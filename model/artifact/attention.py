"""Attention over lists of the request as it is served: one request's lists, looked up once, and all its candidates.

In: both blocks, encoded, and the tables. Out: attended_NA, the candidates' columns of all lists side by side, by the
tables of each owner. model/embeddings/histories.py has the equation, and computes the same of a training batch. An
empty list gives zeros.

Shapes: N candidates, B requests, K single-id features, L items of a list, V items of all lists, W columns of a
table, A columns of all lists, F outputs over the raw row, R rows of all tables of a width, H of an
activation unit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.features.block import EncodedBlock, block_inputs
from model.features.distinct import Positions, by_list
from model.features.kinds.columns import Ids
from model.schema import FeedSchema, Table


def rows_of_ids(stacked_RW: Tensor, table: Table, start: int, ids: Ids) -> Tensor:
    """The row of each id as it travels, [..., W]: of a table with two hashes the sum of two."""
    half_rows = table.half_rows
    if half_rows is None:
        return stacked_RW[torch.from_numpy(ids + start)]
    first, second = np.divmod(ids, half_rows)
    return stacked_RW[torch.from_numpy(first + start)] + stacked_RW[torch.from_numpy(second + start + half_rows)]


class HistoryAttention:
    """The lists with attention of a feed. `owners` are, for each owner of tables, the first stacked row of each.
    `module` is an exported one, eager or scripted."""

    def __init__(
        self,
        schema: FeedSchema,
        owners: Sequence[Mapping[str, int]],
        stacked_RW: Mapping[int, Tensor],
        module: nn.Module,
    ) -> None:
        tables = {table.name: table for table in schema.tables}
        lists = [one.name for one in block_inputs(schema, "request").lists]
        ids = block_inputs(schema, "candidate").ids
        # Of each its place among the request's lists, and that of its query among the candidate's ids.
        self._lists = [(lists.index(one.name), ids.index(one.query), tables[one.table]) for one in schema.attentions]
        is_mlp = [one.kind == "mlp" for one in schema.attentions]
        units = iter(_Unit(one) for one in module.activation_units.children()) if any(is_mlp) else iter(())  # type: ignore[union-attr]
        # By owner the unit of each list, None where a softmax weighs it.
        self._units = [[next(units) if has_unit else None for has_unit in is_mlp] for _ in owners]
        self._owners = owners
        self._stacked_RW = stacked_RW
        self.width = sum(one.dim for one in schema.attentions)
        self._pair_weights = _pair_weights(module.answer.network, self.width)  # type: ignore[union-attr, arg-type]

    def of_candidates(
        self, requests: EncodedBlock, candidates: EncodedBlock, request_of_N: Positions | None = None
    ) -> list[Tensor]:
        """attended_NA by the tables of each owner. All candidates are of the one request, or each of `request_of_N`."""
        values, ends_LB = by_list(requests), requests.list_lengths_LB.cumsum(axis=1)
        by_owner = []
        for starts, units in zip(self._owners, self._units, strict=True):
            columns = []
            for (place, query, table), unit in zip(self._lists, units, strict=True):
                stacked_RW, start = self._stacked_RW[table.dim], starts[table.name]
                query_NW = rows_of_ids(stacked_RW, table, start, candidates.ids_BK[:, query])
                rows_VW = rows_of_ids(stacked_RW, table, start, values[place])
                if request_of_N is None:
                    columns.append(attended(query_NW, rows_VW, unit))
                    continue
                lists = rows_VW.tensor_split(torch.from_numpy(ends_LB[place, :-1]))
                columns.append(_of_several(query_NW, lists, request_of_N, unit))
            by_owner.append(columns[0] if len(columns) == 1 else torch.cat(columns, dim=1))
        return by_owner

    def added(
        self,
        sums_NF: Tensor,
        requests: EncodedBlock,
        candidates: EncodedBlock,
        request_of_N: Positions | None = None,
    ) -> Tensor:
        """sums_NF, of any floating type, and what attended columns add to each output over the raw row, in float32."""
        by_owner = self.of_candidates(requests, candidates, request_of_N)
        sums_NF = sums_NF.float()
        if len(by_owner) == 1:
            return torch.addmm(sums_NF, by_owner[0], self._pair_weights[0])
        pairs = zip(by_owner, self._pair_weights, strict=True)
        return sums_NF + torch.cat([attended_NA @ weight_AF for attended_NA, weight_AF in pairs], dim=1)


def _pair_weights(network: nn.Module, width: int) -> list[Tensor]:
    """weight_AF of each raw row: what its columns of lists with attention, the last ones, are multiplied by."""
    experts, gates = ([*part.children()] for part in (network.experts, network.row_gates))  # type: ignore[union-attr]
    # Gates read the one raw row. They stand behind its experts.
    parts = [[one] for one in experts] if len(experts) > 1 else [[*experts, *gates]]
    return [torch.cat([one.weight[:, -width:].float() for one in part]).t().contiguous() for part in parts]


class _Unit:
    """An activation unit (model/embeddings/histories.py) of one list and all candidates: what reads but one of both is
    multiplied once for it."""

    def __init__(self, unit: Any) -> None:
        query_HW, key_HW, difference_HW, self._product_HW = unit.first.weight.chunk(4, dim=1)
        self._query_HW, self._key_HW = query_HW + difference_HW, key_HW - difference_HW
        self._bias_H = unit.first.bias
        self._last_1H, self._last_bias = unit.last.weight, unit.last.bias

    def weights(self, query_NW: Tensor, keys_LW: Tensor) -> Tensor:
        """weights_NL."""
        count, hidden = len(query_NW), len(self._bias_H)
        of_query_NH1 = (query_NW @ self._query_HW.t() + self._bias_H).unsqueeze(2)
        of_key_HL = self._key_HW @ keys_LW.t()
        by_query = (query_NW.unsqueeze(1) * self._product_HW).reshape(count * hidden, -1)
        hidden_NHL = (by_query @ keys_LW.t()).view(count, hidden, -1).add_(of_query_NH1).add_(of_key_HL).relu_()
        weights_NL: Tensor = (self._last_1H @ hidden_NHL).squeeze(1) + self._last_bias
        return weights_NL


def attended(query_NW: Tensor, keys_LW: Tensor, unit: _Unit | None = None) -> Tensor:
    """attended_NW of one list and all its candidates."""
    if not len(keys_LW):
        return torch.zeros_like(query_NW)
    if unit is not None:
        return unit.weights(query_NW, keys_LW) @ keys_LW
    scores_NL = query_NW @ (keys_LW * keys_LW.shape[1] ** -0.5).t()
    return torch.softmax(scores_NL, dim=1) @ keys_LW


def _of_several(query_NW: Tensor, lists: Sequence[Tensor], request_of_N: Positions, unit: _Unit | None) -> Tensor:
    """attended_NW of the lists of several requests and the candidates of each."""
    order_N = torch.from_numpy(np.argsort(request_of_N, kind="stable"))
    counts = np.bincount(request_of_N, minlength=len(lists)).tolist()
    queries = torch.split(query_NW.index_select(0, order_N), counts)
    attended_NW = torch.empty_like(query_NW)
    attended_NW[order_N] = torch.cat([attended(*pair, unit) for pair in zip(queries, lists, strict=True)])
    return attended_NW
