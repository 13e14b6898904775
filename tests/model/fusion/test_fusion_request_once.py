"""Rows that share their request columns, multiplied once: every network answers as if multiplied each time."""

import copy

import pytest
import torch

from model.fusion.row_linear import RowLinear, share_request
from tests.model.fusion.cases import CASES, Case

WIDTH = 11
REQUEST_WIDTH = 7
# A learned route is looked up among all modules at once, over whole rows: right, and not yet split.
SPLIT = [name for name, case in CASES.items() if case.kind != "learned_routing"]


def _rows_of_one_request(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    request = torch.randn(1, REQUEST_WIDTH, generator=generator, dtype=torch.float64)
    candidates = torch.randn(count, WIDTH - REQUEST_WIDTH, generator=generator, dtype=torch.float64)
    return torch.cat([request.expand(count, -1), candidates], dim=1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_shared_request_changes_no_answer(name: str, count: int) -> None:
    case: Case = CASES[name]
    network = case.build(3, WIDTH).double().eval()
    shared = copy.deepcopy(network)
    share_request(shared, REQUEST_WIDTH)
    rows = _rows_of_one_request(count)
    # float64: two sums in place of one, so a few units in the last place.
    torch.testing.assert_close(shared(rows), network(rows), rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.jit.script(shared)(rows), shared(rows))


@pytest.mark.parametrize("name", SPLIT)
def test_request_columns_of_later_rows_are_never_read(name: str) -> None:
    network = CASES[name].build(3, WIDTH).double().eval()
    share_request(network, REQUEST_WIDTH)
    rows = _rows_of_one_request(4)
    spoiled = rows.clone()
    spoiled[1:, :REQUEST_WIDTH] = torch.nan
    assert torch.equal(network(spoiled), network(rows))


def test_only_layers_over_the_raw_row_are_marked() -> None:
    layer = RowLinear(WIDTH, 4)
    assert layer.request_width == 0
    share_request(torch.nn.Sequential(layer, torch.nn.Linear(4, 2)), REQUEST_WIDTH)
    assert layer.request_width == REQUEST_WIDTH
