"""Vectors of candidates by their ids, against rows of the tables by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model.artifact.catalogue_join import NamedCandidates
from model.features.encoder import Encoded
from tests.model.artifact.test_module_inputs import FEED, OWNERS, inputs_of, random_block
from tests.model.feeds import schema_of


def test_a_vector_is_the_ids_row_in_the_tables_of_every_owner() -> None:
    inputs, tables = inputs_of(schema_of(FEED))
    ids_N = np.array([7, 0, 30, 7])
    for feature in ("item", "like_it"):
        vector_ND = inputs.id_vectors.of_ids(feature, ids_N)
        for row, number in enumerate(ids_N):
            by_hand = np.concatenate([tables[f"item@{owner}"][number] for owner in OWNERS])
            assert vector_ND[row].tolist() == (by_hand if number else np.zeros(16)).tolist()


def test_a_pair_of_rows_is_summed() -> None:
    inputs, tables = inputs_of(schema_of(FEED))
    first, second = 3, 10
    vector_ND = inputs.id_vectors.of_ids("pair", np.array([first * 11 + second, 0]))
    by_hand = np.concatenate(
        [tables[f"pair@{owner}"][first] + tables[f"pair@{owner}"][11 + second] for owner in OWNERS]
    )
    assert vector_ND[0].tolist() == by_hand.tolist()
    assert not vector_ND[1].any()


def test_the_tables_are_not_written_to() -> None:
    inputs, tables = inputs_of(schema_of(FEED))
    before = {name: table.copy() for name, table in tables.items()}
    inputs.id_vectors.of_ids("item", np.zeros(3, np.int64))
    inputs.id_vectors.of_ids("item", np.array([0, 1]))[:] = 5
    assert all((inputs.stacked_RW[table.shape[1]].numpy() != 5).all() for table in tables.values())
    assert all((tables[name] == before[name]).all() for name in tables)


@pytest.mark.parametrize("encoded_rows", [[], [1, 3], [0, 1, 2, 3, 4]])
def test_ids_of_a_catalogue_are_those_of_its_items_unless_the_request_says_more(encoded_rows: list[int]) -> None:
    schema = schema_of(FEED)
    inputs, _ = inputs_of(schema)
    items, block = random_block(schema, 9, 1, None), random_block(schema, len(encoded_rows), 2, None)
    catalogue: Any = SimpleNamespace(ids=lambda rows_N, place: items.ids_BK[np.maximum(rows_N, 0), place])
    rows_N, is_encoded_N = np.array([4, -1, 8, 0, 4]), np.zeros(5, np.bool_)
    is_encoded_N[encoded_rows] = True
    named = NamedCandidates(catalogue, rows_N, is_encoded_N, block if encoded_rows else None, {}, {}, {}, ())
    if not encoded_rows:
        named = named._replace(rows_N=np.array([4, 5, 8, 0, 4]))
    for place, feature in enumerate(("item", "pair", "kind", "like_it")):
        by_hand = [
            block.ids_BK[encoded_rows.index(row), place]
            if row in encoded_rows
            else items.ids_BK[named.rows_N[row], place]
            for row in range(5)
        ]
        found = inputs.id_vectors.of_candidates(feature, named)
        assert (found == inputs.id_vectors.of_ids(feature, np.array(by_hand))).all()
    alone = Encoded(items, {}, {})
    found = inputs.id_vectors.of_candidates("kind", alone)
    assert (found == inputs.id_vectors.of_ids("kind", items.ids_BK[:, 2])).all()
