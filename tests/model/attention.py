"""A feed whose lists are weighed by each candidate, random batches of it, and its rows by loops in float64.

Shapes: B rows, D columns of the dense row, W columns of a table.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.embeddings.embeddings import table_name
from model.features.block import EncodedBlock, block_inputs
from model.schema import Block, FeedSchema
from tests.model.feeds import schema_of

# Lists of a table with one hash and of one with two, before, between and behind others. One names its query.
FEED = """
name: f
features:
  - {name: history, side: user, kind: id_list, table: item, max_length: 5, pooling: attention}
  - {name: user, side: user, kind: id, buckets: 20, dim: 4}
  - {name: seen, side: context, kind: id_list, table: item, max_length: 4, pooling: mean}
  - {name: pairs, side: context, kind: id_list, table: pair, max_length: 3, pooling: attention, query: pair}
  - {name: age, side: user, kind: number}
  - {name: other, side: candidate, kind: id, table: pair}
  - {name: item, side: candidate, kind: id, buckets: 30, dim: 8}
  - {name: pair, side: candidate, kind: id, buckets: 10, hashes: 2, dim: 4}
  - {name: alike, side: candidate, kind: id_list, table: item, max_length: 3, pooling: sum}
  - {name: price, side: candidate, kind: number}
tasks:
  - {name: click, kind: binary, label: clicked}
  - {name: like, kind: binary, label: liked}
"""
# By list with attention the candidate's id that it is compared with.
QUERIES = {"history": "item", "pairs": "pair"}


def attention_feed(*, mlp: bool = False) -> FeedSchema:
    """The schema above. With `mlp` an MLP weighs one of the lists."""
    return schema_of(FEED.replace("query: pair}", "query: pair, attention: mlp}") if mlp else FEED)


def random_block(schema: FeedSchema, block: Block, rows: int, seed: int) -> EncodedBlock:
    """Random ids and numbers, and lists of any length, none in some rows."""
    random = np.random.default_rng(seed)
    ids, lists, numbers = block_inputs(schema, block)
    tables = {name: table for table in schema.tables for name in table.features}
    travelling = {name: ((table.buckets or 0) + 1) ** table.hashes for name, table in tables.items()}
    lengths_LB = np.stack([random.integers(0, one.max_length + 1, rows) for one in lists])
    sizes = lengths_LB.sum(axis=1).tolist()
    values = [random.integers(0, travelling[one.name], size) for one, size in zip(lists, sizes, strict=True)]
    return EncodedBlock(
        np.stack([random.integers(0, travelling[name], rows) for name in ids], axis=1),
        np.concatenate(values),
        lengths_LB,
        random.normal(size=(rows, len(numbers))).astype(np.float32),
    )


def repeated(block: EncodedBlock, times: int) -> EncodedBlock:
    """The one row of a block that many times over."""
    sizes = np.split(block.list_values_V, np.cumsum(block.list_lengths_LB[:, 0])[:-1])
    return EncodedBlock(
        block.ids_BK.repeat(times, 0),
        np.concatenate([np.tile(values, times) for values in sizes]),
        block.list_lengths_LB.repeat(times, 1),
        block.numbers_BQ.repeat(times, 0),
    )


def weight_by_hand(unit: Any, query_W: Tensor, key_W: Tensor) -> Tensor:
    """Weight of one item: DIN's pairs through two layers."""
    pair = torch.cat([query_W, key_W, query_W - key_W, query_W * key_W])
    hidden = (unit.first.weight * pair).sum(1) + unit.first.bias
    weight: Tensor = (unit.last.weight[0] * hidden.clamp(min=0)).sum() + unit.last.bias[0]
    return weight


def rows_by_hand(
    schema: FeedSchema,
    blocks: Sequence[EncodedBlock],
    tables: Mapping[str, Tensor],
    owners: Sequence[str | None] = (None,),
    units: Mapping[tuple[str, str | None], nn.Module] | None = None,
) -> Tensor:
    """rows_BD of two blocks of B rows, id by id, from tables and activation units in float64."""
    table_of = {name: table for table in schema.tables for name in table.features}

    def row_of(feature: str, value: int, owner: str | None) -> Tensor:
        table = table_of[feature]
        weight = tables[table_name(table.name, owner)]
        if table.hashes == 1:
            return weight[value]
        half = (table.buckets or 0) + 1
        return weight[value // half] + weight[half + value % half]

    rows = []
    for row in range(len(blocks[0].ids_BK)):
        parts: list[Tensor] = []
        for owner in owners:
            single: dict[str, Tensor] = {}
            of_list: dict[str, list[Tensor]] = {}
            for name, block in zip(("request", "candidate"), blocks, strict=True):
                ids, lists, _ = block_inputs(schema, name)  # type: ignore[arg-type]
                single |= {one: row_of(one, int(block.ids_BK[row, place]), owner) for place, one in enumerate(ids)}
                starts = np.concatenate([[0], np.cumsum(block.list_lengths_LB)])
                for place, one in enumerate(lists):
                    cell = place * block.list_lengths_LB.shape[1] + row
                    values = block.list_values_V[starts[cell] : starts[cell + 1]].tolist()
                    of_list[one.name] = [row_of(one.name, value, owner) for value in values]
                parts += [single[one] for one in ids]
                for one in lists:
                    zeros = torch.zeros(table_of[one.name].dim, dtype=torch.float64)
                    if one.pooling != "attention":
                        total = sum(of_list[one.name], zeros)
                        parts.append(total / max(len(of_list[one.name]), 1) if one.pooling == "mean" else total)
                parts.append(torch.from_numpy(block.numbers_BQ[row].astype(np.float64)))
            for name, query in QUERIES.items():
                zeros = torch.zeros(table_of[name].dim, dtype=torch.float64)
                if units and (name, owner) in units:
                    weights = [weight_by_hand(units[name, owner], single[query], key) for key in of_list[name]]
                    parts.append(sum((w * key for w, key in zip(weights, of_list[name], strict=True)), zeros))
                    continue
                powers = [torch.exp((single[query] * key).sum() / math.sqrt(len(key))) for key in of_list[name]]
                weighed = [power * key for power, key in zip(powers, of_list[name], strict=True)]
                parts.append(sum(weighed, zeros) / sum(powers) if weighed else zeros)
        rows.append(torch.cat(parts))
    return torch.stack(rows)
