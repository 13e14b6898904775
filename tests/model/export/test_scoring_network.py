"""The network as it scores equals the network as it is trained, for every fusion network, its columns in any order."""

import pytest
import torch
from torch import Tensor

from model.artifact.module_inputs import RequestSums
from model.export.scoring_network import ScoringNetwork, request_linears
from model.fusion.cross_stitch import CrossStitch
from model.fusion.slots import linears
from model.ranker import Tower
from model.tasks.chains import Chains
from tests.model.fusion.cases import CASES, Case

WIDTH = 11
REQUEST_WIDTH = 7
# float32, and sums taken in another order: some units in the last place of numbers of about 1.
TOLERANCE = 1e-5

Split = tuple[RequestSums, ScoringNetwork]


def split_of(
    case: Case, is_compiled: bool, dtype: torch.dtype = torch.float32, row_dtype: torch.dtype | None = None
) -> tuple[torch.nn.Module, list[Tower], Split]:
    """A trained network, its towers, and both halves of it as it scores, columns permuted within either side."""
    network = case.build(3, WIDTH).eval()
    assert isinstance(network.output_width, int)
    towers = [Tower(network.output_width, (3,), 1) for _ in range(case.tasks)]
    layers = [linears(list(tower.layers)) for tower in towers]
    frozen = network.frozen(case.tasks)  # type: ignore[operator]
    request, candidate = columns()
    chains = Chains([None, *range(case.tasks - 1)], [1] * case.tasks)
    return (
        network,
        towers,
        (
            RequestSums(request_linears(frozen, request)),
            ScoringNetwork(
                frozen, layers, chains, candidate, is_compiled=is_compiled, dtype=dtype, row_dtype=row_dtype
            ).eval(),
        ),
    )


def columns() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    request = torch.randperm(REQUEST_WIDTH, generator=generator)
    return request, REQUEST_WIDTH + torch.randperm(WIDTH - REQUEST_WIDTH, generator=generator)


def rows_of_one_request(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    request = torch.randn(1, REQUEST_WIDTH, generator=generator)
    candidates = torch.randn(count, WIDTH - REQUEST_WIDTH, generator=generator)
    return torch.cat([request.expand(count, -1), candidates], dim=1)


def logits_of(network: torch.nn.Module, towers: list[Tower], rows: Tensor) -> Tensor:
    """Each task is given the one before it: the logits of products of all probabilities so far."""
    fused = network(rows)
    logits = torch.cat([tower(fused[:, task]) for task, tower in enumerate(towers)], dim=1)
    return logits.double().sigmoid().cumprod(dim=1).logit().float()


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_network_scores_as_it_was_trained(name: str, is_compiled: bool) -> None:
    network, towers, (sums, scoring) = split_of(CASES[name], is_compiled)
    request, candidate = columns()
    for count in (1, 2, 9):
        rows = rows_of_one_request(count)
        with torch.no_grad():
            expected = logits_of(network, towers, rows)
            sums_1F = sums([rows[:1, request]])
            got = scoring(rows[:, candidate], sums_1F)
            torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
            sums_NF = scoring.candidate_sums(rows[:, candidate])
            # A second request must find them as they were.
            for _ in range(2):
                again = scoring.from_sums(sums_NF, sums_1F)
                torch.testing.assert_close(again, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_candidates_of_several_requests_score_as_each_requests_alone(name: str) -> None:
    _, _, (sums, scoring) = split_of(CASES[name], False)
    request, candidate = columns()
    counts = [1, 9, 2]
    rows = [rows_of_one_request(count) for count in counts]
    with torch.no_grad():
        sums_RF = sums([torch.cat([of_one[:1, request] for of_one in rows])])
        got = scoring.of_several(torch.cat(rows)[:, candidate], sums_RF, counts)
        alone = [scoring(of_one[:, candidate], sums([of_one[:1, request]])) for of_one in rows]
    torch.testing.assert_close(got, torch.cat(alone), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_experts_are_mixed_by_the_weights_of_the_trained_network(name: str) -> None:
    network, towers, (sums, scoring) = split_of(CASES[name], False)
    request, candidate = columns()
    for count in (1, 9):
        rows = rows_of_one_request(count)
        with torch.no_grad():
            logits_NO, levels = scoring.with_expert_weights(rows[:, candidate], sums([rows[:1, request]]))
            torch.testing.assert_close(logits_NO, logits_of(network, towers, rows), rtol=TOLERANCE, atol=TOLERANCE)
            expected = expert_weights(network, rows)
        assert [weights.shape for weights in levels] == [weights.shape for weights in expected]
        for weights_NGE, expected_NGE in zip(levels, expected, strict=True):
            torch.testing.assert_close(weights_NGE, expected_NGE, rtol=TOLERANCE, atol=TOLERANCE)


def expert_weights(network: torch.nn.Module, rows: Tensor) -> list[Tensor]:
    """Mixing weights of the trained network: gates of its own, a cross-stitch unit's matrix, or nothing."""
    if isinstance(network, CrossStitch):
        stitches = [stitch.weight for stitch in network.stitches]
        return [torch.as_tensor(weight).expand(len(rows), -1, -1) for weight in stitches]
    return list(network.expert_weights(rows)) if hasattr(network, "expert_weights") else []  # type: ignore[operator]


@pytest.mark.parametrize("name", ["adatt-sp", "ple-deep-unequal", "ml-mmoe", "cross-stitch", "routing", "aitm-chains"])
def test_bfloat16_changes_logits_by_its_rounding_alone(name: str) -> None:
    network, towers, (sums, scoring) = split_of(CASES[name], True, torch.bfloat16)
    request, candidate = columns()
    rows = rows_of_one_request(50)
    with torch.no_grad():
        expected = logits_of(network, towers, rows)
        got = scoring(rows[:, candidate], sums([rows[:1, request]]))
    assert got.dtype == torch.float32
    # 8 bits of mantissa, over a few layers.
    torch.testing.assert_close(got, expected, rtol=0.03, atol=0.03)
    assert not torch.equal(got, expected)


def test_weights_are_copies() -> None:
    network, towers, (sums, scoring) = split_of(CASES["adatt-sp"], False)
    request, candidate = columns()
    rows = rows_of_one_request(4)
    before = scoring(rows[:, candidate], sums([rows[:1, request]]))
    with torch.no_grad():
        for parameter in [*network.parameters(), *towers[0].parameters()]:
            parameter.add_(1.0)
    assert torch.equal(scoring(rows[:, candidate], sums([rows[:1, request]])), before)


# One of every shape that a level can have. Scripting takes a second each.
@pytest.mark.parametrize("name", ["adatt-deep-unequal", "ple-no-shared", "ml-mmoe", "cross-stitch", "routing", "aitm"])
def test_scripted_is_eager_to_the_bit(name: str) -> None:
    _, _, (sums, scoring) = split_of(CASES[name], False)
    request, candidate = columns()
    rows = rows_of_one_request(9)
    scripted = torch.jit.script(scoring)
    with torch.no_grad():
        sums_1F = sums([rows[:1, request]])
        assert torch.equal(scripted(rows[:, candidate], sums_1F), scoring(rows[:, candidate], sums_1F))
    # What is compiled later is a new network, filled from the scripted one.
    split_of(CASES[name], True)[2][1].load_state_dict(scripted.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_of_bfloat16_over_the_raw_row_nothing_else_is_rounded(name: str) -> None:
    """The rest is given, in float32, sums that are rounded by hand: of rounded columns and weights."""
    torch.manual_seed(3)
    _, _, (sums, plain) = split_of(CASES[name], True)
    torch.manual_seed(3)
    _, _, (_, mixed) = split_of(CASES[name], True, row_dtype=torch.bfloat16)
    mixed.load_state_dict(plain.state_dict())
    request, candidate = columns()
    rows = 30 * rows_of_one_request(40)  # so that what is rounded shows in logits of random weights
    with torch.no_grad():
        sums_1F = sums([rows[:1, request]])
        products = plain._over_raw_row(rows[:, candidate].bfloat16().float())
        by_hand = [(part.double() @ weight.bfloat16().double().t()).bfloat16().float() for part, weight in products]
        expected = plain.from_sums(torch.cat(by_hand, 1), sums_1F)
        got = mixed(rows[:, candidate], sums_1F)
        exact = plain(rows[:, candidate], sums_1F)
    # A sum between two bfloat16 goes to either side, by the order of its terms. That is one of many.
    assert (got - expected).abs().mean() < (got - exact).abs().mean() / 10
    behind = [weight for key, weight in mixed.named_parameters() if key.split(".")[0] in ("levels", "towers")]
    assert all(weight.dtype == torch.float32 for weight in behind)
