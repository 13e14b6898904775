"""Inputs of a block: the order of its tensors and of the dense row, and the raw values of numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.features.block import block_inputs, inputs_of
from model.features.kinds.columns import Column
from model.features.kinds.inputs import ListInput, NumberInput
from model.ranker import row_width
from tests.model.feeds import everything


def test_inputs_stand_in_the_order_of_the_schema_each_among_its_own() -> None:
    ids, lists, numbers = block_inputs(everything(), "candidate")
    assert ids == ["video_id", "author", "last_tag"]
    assert lists == [ListInput("tags", 3, "sum")]
    assert numbers == [NumberInput("duration", "duration", ("quantile",), -1.0), NumberInput("price", "price", (), 0.0)]


def test_the_dense_row_has_ids_before_lists_before_numbers() -> None:
    schema = everything()
    dims = {name: table.dim for table in schema.tables for name in table.features}
    widths = list(block_inputs(schema, "candidate").widths(dims))
    assert widths == [("video_id", 8), ("author", 4), ("last_tag", 4), ("tags", 4), ("duration", 1), ("price", 1)]
    assert row_width(schema, "candidate") == 22
    assert len(inputs_of(schema.features).ids) == 6


@given(rows=st.lists(st.lists(st.floats(-9, 9), max_size=4), max_size=9), position=st.integers(0, 3))
def test_raw_values_of_one_place_in_a_list(rows: list[list[float]], position: int) -> None:
    flat = np.array([value for row in rows for value in row], np.float64)
    column = Column(flat, None, np.array([len(row) for row in rows], np.int64))
    raw = NumberInput("v.1", "v", (), -7.0, position).raw(column)
    assert raw.tolist() == [row[position] if len(row) > position else -7.0 for row in rows]
    assert column.num_missing == rows.count([])


def test_raw_values_of_a_number_are_its_own_or_the_one_for_missing() -> None:
    number = NumberInput("n", "n", (), 2.5)
    column = Column(np.array([1.0, 0.0, 3.0]), np.array([False, True, False]))
    assert number.raw(column).tolist() == [1.0, 2.5, 3.0]
    assert number.raw(column._replace(missing=None)).tolist() == [1.0, 0.0, 3.0]
    assert (column.num_missing, column._replace(missing=None).num_missing) == (1, 0)
