"""Cross layers against float64 loops, and the same network as it scores: by sums, for several requests, scripted."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artifact.module_inputs import RequestSums
from model.cross_layers import CrossConfig, CrossLayers
from model.export.scoring_network import ScoringNetwork, request_linears
from model.ranker import Network, NetworkConfig
from tests.model.fusion.cases import CASES
from tests.model.fusion.scripted import reloaded_where_equal

Floats = NDArray[np.float64]
# The parity that networks are held to: float32 against float64.
PARITY, GRADIENTS = 5e-6, 1e-4
# float32, and sums taken in another order.
TOLERANCE = 1e-5
WIDTH, REQUEST_WIDTH = 11, 7
CROSSES = [{"layers": 1}, {"layers": 3}, {"layers": 1, "rank": 3}, {"layers": 2, "rank": 4}]
all_crosses = pytest.mark.parametrize("cross", CROSSES, ids=str)


def layers_of(cross: dict[str, int], width: int = 6) -> CrossLayers:
    torch.manual_seed(0)
    return CrossConfig.from_mapping(cross, "test").build(width)


def by_loop(module: CrossLayers, rows: Floats) -> Floats:
    """x_(l+1)[i] = x_0[i] (sum_j W[i, j] x_l[j] + b[i]) + x_l[i], entry by entry."""
    state = {name: value.double().numpy() for name, value in module.state_dict().items()}
    crossed = rows.copy()
    for number in range(len(module.layers)):
        names = [name for name in state if name.startswith(f"layers.{number}.") and name.endswith("weight")]
        weight = state[names[0]] if len(names) == 1 else state[names[1]] @ state[names[0]]
        (bias,) = (state[name] for name in state if name.startswith(f"layers.{number}.") and name.endswith("bias"))
        before = crossed.copy()
        for row, i in itertools.product(range(len(rows)), range(rows.shape[1])):
            product = sum(weight[i, j] * before[row, j] for j in range(rows.shape[1]))
            crossed[row, i] = rows[row, i] * (product + bias[i]) + before[row, i]
    return crossed


@all_crosses
def test_rows_and_gradients_are_those_of_a_loop(cross: dict[str, int]) -> None:
    module = layers_of(cross)
    rows = np.random.default_rng(1).normal(size=(4, 6))
    weights = np.random.default_rng(2).normal(size=(4, 6))
    rows_BD = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    crossed_BD = module(rows_BD)
    np.testing.assert_allclose(crossed_BD.detach().numpy(), by_loop(module, rows), rtol=PARITY, atol=PARITY)
    (crossed_BD * torch.tensor(weights, dtype=torch.float32)).sum().backward()
    assert rows_BD.grad is not None
    for place in itertools.product(range(4), range(6)):
        ends = []
        for step in (1e-6, -1e-6):
            moved = rows.copy()
            moved[place] += step
            ends.append((by_loop(module, moved) * weights).sum())
        assert float(rows_BD.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=GRADIENTS)
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in module.parameters())


@all_crosses
def test_scripted_layers_answer_bit_for_bit(cross: dict[str, int]) -> None:
    rows = [torch.randn(count, 6, generator=torch.Generator().manual_seed(count)) for count in (1, 2, 33)]
    reloaded_where_equal(layers_of(cross).eval(), rows)


def test_a_low_rank_has_fewer_weights_and_is_below_the_width() -> None:
    counts = [sum(value.numel() for value in layers_of(cross, 64).parameters()) for cross in CROSSES]
    assert counts == [64 * 65, 3 * 64 * 65, 2 * 3 * 64 + 64, 2 * (2 * 4 * 64 + 64)]
    with pytest.raises(ValueError, match=r"network\.cross\.rank: 6 is not below the 6 columns of a row"):
        layers_of({"layers": 1, "rank": 6})


@pytest.mark.parametrize(
    ("cross", "told"),
    [({}, "layers"), ({"layers": 0}, "layers"), ({"layers": 9}, "layers"), ({"layers": 1, "rnk": 2}, "mean 'rank'")],
)
def test_sizes_that_cannot_be_are_refused(cross: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        NetworkConfig.from_mapping({"fusion": {"kind": "shared_bottom", "levels": [4]}, "cross": cross}, "test")


def test_rows_of_tasks_apart_are_refused() -> None:
    fusion = {"kind": "no_sharing", "levels": [4], "own_embeddings": True}
    with pytest.raises(ValueError, match=r"own_embeddings has one for each task"):
        NetworkConfig.from_mapping({"fusion": fusion, "cross": {"layers": 1}}, "test")


class Split:
    """A trained network and both halves of it as it scores, columns permuted within either side."""

    def __init__(self, cross: dict[str, int], name: str, *, is_compiled: bool = False, dtype: torch.dtype) -> None:
        case = CASES[name]
        torch.manual_seed(3)
        config = NetworkConfig.from_mapping({"fusion": dict(case.config), "cross": cross, "tower": [3]}, "test")
        self.network = Network(config, WIDTH, (1,) * case.tasks, case.given).eval()
        frozen, generator = self.network.frozen(case.tasks), torch.Generator().manual_seed(5)
        self.request = torch.randperm(REQUEST_WIDTH, generator=generator)
        self.candidate = REQUEST_WIDTH + torch.randperm(WIDTH - REQUEST_WIDTH, generator=generator)
        self.sums = RequestSums(request_linears(frozen, self.request))
        parts = frozen, self.network.tower_layers(), self.network.chains
        self.scoring = ScoringNetwork(*parts, self.candidate, is_compiled=is_compiled, dtype=dtype).eval()

    def rows(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        request = torch.randn(1, REQUEST_WIDTH, generator=generator)
        candidates = torch.randn(count, WIDTH - REQUEST_WIDTH, generator=generator)
        return torch.cat([request.expand(count, -1), candidates], dim=1)


# With gates over the row, gates over units, a fixed mix, none, and transfers.
FUSIONS = ["ml-mmoe", "adatt-sp", "cross-stitch", "shared-bottom-deep", "routing", "aitm-chains"]


@all_crosses
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("name", FUSIONS)
def test_a_crossed_network_scores_as_it_was_trained(cross: dict[str, int], name: str, is_compiled: bool) -> None:
    split = Split(cross, name, is_compiled=is_compiled, dtype=torch.float32)
    with torch.no_grad():
        for count in (1, 9):
            rows = split.rows(count)
            expected = split.network(rows)
            sums_1F = split.sums([rows[:1, split.request]])
            got = split.scoring(rows[:, split.candidate], sums_1F)
            torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
            # What a catalogue keeps of the candidates is of no request.
            sums_NF = split.scoring.candidate_sums(rows[:, split.candidate])
            for _ in range(2):
                again = split.scoring.from_sums(sums_NF, sums_1F)
                torch.testing.assert_close(again, expected, rtol=TOLERANCE, atol=TOLERANCE)
        if not is_compiled:
            several = [split.rows(count) for count in (1, 9, 2)]
            sums_RF = split.sums([torch.cat([rows[:1, split.request] for rows in several])])
            together = split.scoring.of_several(torch.cat(several)[:, split.candidate], sums_RF, [1, 9, 2])
            expected = torch.cat([split.network(rows) for rows in several])
            torch.testing.assert_close(together, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["ml-mmoe", "cross-stitch"])
def test_experts_are_mixed_by_the_weights_of_the_crossed_rows(name: str) -> None:
    split = Split({"layers": 2}, name, dtype=torch.float32)
    rows = split.rows(9)
    with torch.no_grad():
        sums_1F = split.sums([rows[:1, split.request]])
        logits_NO, levels = split.scoring.with_expert_weights(rows[:, split.candidate], sums_1F)
        torch.testing.assert_close(logits_NO, split.network(rows), rtol=TOLERANCE, atol=TOLERANCE)
        if name == "ml-mmoe":
            expected = split.network.fusion.expert_weights(split.network.crossed(rows))  # type: ignore[operator]
            for got, level in zip(levels, expected, strict=True):
                torch.testing.assert_close(got, level, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("cross", [{"layers": 2}, {"layers": 2, "rank": 4}], ids=str)
def test_scripted_is_eager_to_the_bit_and_bfloat16_rounds(cross: dict[str, int]) -> None:
    split = Split(cross, "ml-mmoe", dtype=torch.float32)
    rounded = Split(cross, "ml-mmoe", is_compiled=True, dtype=torch.bfloat16)
    rows = split.rows(9)
    with torch.no_grad():
        sums_1F, rows_ND = split.sums([rows[:1, split.request]]), rows[:, split.candidate]
        assert torch.equal(torch.jit.script(split.scoring)(rows_ND, sums_1F), split.scoring(rows_ND, sums_1F))
        got = rounded.scoring(rows_ND, sums_1F)
        # 8 bits of mantissa, over a few layers.
        torch.testing.assert_close(got, split.network(rows), rtol=0.05, atol=0.05)
        assert not torch.equal(got, split.network(rows))
