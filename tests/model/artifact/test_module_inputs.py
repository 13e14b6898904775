"""Rows of blocks as an exported module reads them, against sums over rows of tables by hand."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from model.artifact.module_inputs import ModuleInputs, columns_of
from model.artifact.table_files import StackedTables
from model.features.block import EncodedBlock, block_inputs
from model.schema import FeedSchema, Table
from tests.model.feeds import schema_of

# Every sort of a feature with ids in every sort of a table: of one width and another, with one hash and with two.
FEED = """
name: f
features:
  - {name: user, side: user, kind: id, buckets: 20, dim: 4}
  - {name: age, side: user, kind: number}
  - {name: item, side: candidate, kind: id, buckets: 30, dim: 8}
  - {name: pair, side: candidate, kind: id, buckets: 10, hashes: 2, dim: 8}
  - {name: kind, side: candidate, kind: id, buckets: 5, dim: 4}
  - {name: like_it, side: candidate, kind: id, table: item}
  - {name: seen, side: candidate, kind: id_list, table: item, max_length: 5, pooling: mean}
  - {name: tags, side: candidate, kind: id_list, table: item, max_length: 5, pooling: sum}
  - {name: pairs, side: candidate, kind: id_list, table: pair, max_length: 5, pooling: mean}
  - {name: kinds, side: candidate, kind: id_list, table: kind, max_length: 5, pooling: sum}
  - {name: price, side: candidate, kind: number}
  - {name: age_of_it, side: candidate, kind: number}
tasks: [{name: click, kind: binary, label: clicked}]
"""
ALONE = """
name: f
features: [{name: item, side: candidate, kind: id, buckets: 30, dim: 8}]
tasks: [{name: click, kind: binary, label: clicked}]
"""
OWNERS = ("a", "b")


def rows_in(table: Table) -> int:
    """Rows of a table, or of one of its halves."""
    assert table.buckets is not None
    return table.buckets + 1


def inputs_of(schema: FeedSchema) -> tuple[ModuleInputs, dict[str, NDArray[np.float32]]]:
    """Inputs by random tables of two owners."""
    generator = torch.Generator().manual_seed(0)
    tables = {
        f"{table.name}@{owner}": torch.randn(
            (table.buckets or 0) * table.hashes + table.hashes, table.dim, generator=generator
        )
        for owner in OWNERS
        for table in schema.tables
    }
    stacked = StackedTables.of(tables)
    module: Any = nn.Module()
    module.table_starts = [[stacked.starts[f"{table.name}@{owner}"] for table in schema.tables] for owner in OWNERS]
    module.sums = nn.ModuleList()
    return ModuleInputs(schema, module, stacked.stacked_RW), {name: table.numpy() for name, table in tables.items()}


def random_block(schema: FeedSchema, rows: int, seed: int, lengths: tuple[int, ...] | None) -> EncodedBlock:
    """Random ids and numbers, and lists of these lengths in every row, or of any."""
    random = np.random.default_rng(seed)
    ids, lists, numbers = block_inputs(schema, "candidate")
    rows_of = {name: rows_in(table) ** table.hashes for table in schema.tables for name in table.features}
    lengths_LB = random.integers(0, 6, (len(lists), rows))
    if lengths is not None:
        lengths_LB = np.repeat(np.array(lengths, np.int64)[:, None], rows, axis=1)
    values = [
        random.integers(0, rows_of[one.name], int(of_list_B.sum()))
        for one, of_list_B in zip(lists, lengths_LB, strict=True)
    ]
    return EncodedBlock(
        np.stack([random.integers(0, rows_of[name], rows) for name in ids], axis=1),
        np.concatenate([np.zeros(0, np.int64), *values]),
        lengths_LB,
        random.normal(size=(rows, len(numbers))).astype(np.float32),
    )


def by_hand(schema: FeedSchema, block: EncodedBlock, tables: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """The columns of each owner side by side, in training's order, by loops."""
    ids, lists, _ = block_inputs(schema, "candidate")
    table_of = {name: table for table in schema.tables for name in table.features}

    def found(feature: str, values: NDArray[np.int64], owner: str) -> Iterator[NDArray[np.float64]]:
        table = table_of[feature]
        rows = tables[f"{table.name}@{owner}"].astype(np.float64)
        for value in values.tolist():
            if table.hashes == 2:
                half = rows_in(table)
                yield rows[value // half] + rows[half + value % half]
            else:
                yield rows[value]

    starts = np.concatenate([[0], np.cumsum(block.list_lengths_LB)])
    result = []
    for row in range(len(block.ids_BK)):
        parts: list[NDArray[np.float64]] = []
        for owner in OWNERS:
            parts += [sum(found(name, block.ids_BK[row, k : k + 1], owner)) for k, name in enumerate(ids)]  # type: ignore[misc]
            for number, one in enumerate(lists):
                cell = number * len(block.ids_BK) + row
                values = block.list_values_V[starts[cell] : starts[cell + 1]]
                total = sum(found(one.name, values, owner), np.zeros(table_of[one.name].dim))
                parts.append(total / max(len(values), 1) if one.pooling == "mean" else total)
            parts.append(block.numbers_BQ[row].astype(np.float64))
        result.append(np.concatenate(parts))
    return np.stack(result)


@pytest.mark.parametrize("feed", [FEED, ALONE])
def test_rows_are_those_of_the_tables_however_long_lists_are(feed: str) -> None:
    schema = schema_of(feed)
    inputs, tables = inputs_of(schema)
    columns = np.array(columns_of(schema, "candidate"))
    of_all = np.concatenate([columns + len(columns) * owner for owner in range(len(OWNERS))])
    assert sorted(columns.tolist()) == list(range(len(columns)))
    count = len(block_inputs(schema, "candidate").lists)
    # Layouts are remembered, by lengths and for more rows than were asked for: smaller and larger blocks take turns.
    for number, rows in enumerate((1, 5, 2, 8, 1, 3, 100, 9, 33)):
        for lengths in (None, (3, 0, 5, 1)[:count], (0,) * count, (5,) * count):
            block = random_block(schema, rows, number, lengths)
            found = inputs.candidate_rows(block).numpy()
            # Sums of up to 10 float32 numbers of order 1.
            np.testing.assert_allclose(found, by_hand(schema, block, tables)[:, of_all], atol=3e-6)


def test_more_rows_than_are_remembered() -> None:
    schema = schema_of(FEED)
    inputs, tables = inputs_of(schema)
    of_all = np.array(columns_of(schema, "candidate"))
    of_all = np.concatenate([of_all, of_all + len(of_all)])
    for lengths in (None, (1, 0, 1, 0)):
        block = random_block(schema, 4500, 1, lengths)
        found = inputs.candidate_rows(block).numpy()
        last = slice(-3, None)
        ends_LB = np.cumsum(block.list_lengths_LB.reshape(-1)).reshape(block.list_lengths_LB.shape)
        lengths_L3 = block.list_lengths_LB[:, last]
        spans = zip(ends_LB[:, last].flat, lengths_L3.flat, strict=True)
        values = [block.list_values_V[end - length : end] for end, length in spans]
        end_of_block = EncodedBlock(block.ids_BK[last], np.concatenate(values), lengths_L3, block.numbers_BQ[last])
        np.testing.assert_allclose(found[last], by_hand(schema, end_of_block, tables)[:, of_all], atol=3e-6)


def test_no_rows_are_no_rows() -> None:
    schema = schema_of(FEED)
    inputs, _ = inputs_of(schema)
    rows = inputs.candidate_rows(random_block(schema, 0, 1, None))
    assert rows.shape == (0, len(OWNERS) * len(columns_of(schema, "candidate")))


def test_a_row_beyond_the_table_is_refused() -> None:
    schema = schema_of(ALONE)
    inputs, _ = inputs_of(schema)
    block = random_block(schema, 2, 1, ())
    block.ids_BK[1, 0] = 10_000
    with pytest.raises(RuntimeError, match="not in the valid range"):
        inputs.candidate_rows(block)
