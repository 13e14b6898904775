"""Attention as it is served, against loops in float64 and the trained ranker: whole, in sums, of several requests."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from model.artifact.module_inputs import ModuleInputs
from model.artifact.table_files import StackedTables
from model.embeddings.embeddings import Embeddings
from model.embeddings.histories import activation_units
from model.export.scoring_module import ScoringModule
from model.features.block import BlockTensors
from model.features.distinct import stacked
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.ranker import Answers, Network, NetworkConfig, Ranker
from model.schema import FeedSchema
from tests.model.attention import attention_feed, random_block, repeated, rows_by_hand
from tests.model.test_ranker import reloaded

# Gates over the raw row, experts alone over it, and a raw row for each task.
NETWORKS = {
    "adatt": {"fusion": {"kind": "adatt", "levels": [8, [6, 5]]}, "tower": [4]},
    "shared_bottom": {"fusion": {"kind": "shared_bottom", "levels": [8]}, "tower": [4]},
    "own": {"fusion": {"kind": "no_sharing", "levels": [8], "own_embeddings": True}, "tower": [4]},
}
# With an MLP for one of the lists too.
FEEDS = [(network, mlp) for mlp in (False, True) for network in NETWORKS]
CANDIDATES = (1, 2, 7, 200)


class Served(NamedTuple):
    """A ranker, and the same as it serves."""

    schema: FeedSchema
    ranker: Ranker
    module: ScoringModule
    inputs: ModuleInputs


def served(network: str, *, mlp: bool = False) -> Served:
    """A ranker with rows large enough for scores to differ."""
    schema = attention_feed(mlp=mlp)
    encoder = FeatureEncoder(schema, FittedFeatures(numbers={"age": (), "price": ()}))
    config = NetworkConfig.from_mapping(NETWORKS[network], "test")
    torch.manual_seed(0)
    embeddings = Embeddings(schema, encoder, for_each_task=config.has_own_embeddings)
    for weight in embeddings.table_weights().values():
        weight.normal_(std=1.5)
    units = activation_units(schema, len(schema.tasks) if config.has_own_embeddings else 1)
    ranker = Ranker(embeddings, Network(config, embeddings.width, schema.output_counts, units=units)).eval()
    tables = StackedTables.of(embeddings.table_weights())
    module = ScoringModule(schema, encoder.fitted, ranker.network, tables.starts).eval()
    return Served(schema, ranker, module, ModuleInputs(schema, module, tables.stacked_RW))


@pytest.mark.parametrize(("network", "mlp"), FEEDS)
def test_what_is_served_answers_as_what_was_trained_and_as_loops(network: str, mlp: bool) -> None:
    schema, ranker, module, inputs = served(network, mlp=mlp)
    scripted, again = reloaded(module)
    answers = Answers(schema, FittedFeatures(numbers={}))
    own = network == "own"
    owners = [task.name for task in schema.tasks] if own else [None]
    tables = {name: weight.double() for name, weight in ranker.embeddings.table_weights().items()}
    for count in CANDIDATES:
        for seed in range(3):
            request = random_block(schema, "request", 1, seed)
            candidates = random_block(schema, "candidate", count, seed + 10)
            many = repeated(request, count)
            with torch.no_grad():
                expected = answers(ranker(BlockTensors.of(many), BlockTensors.of(candidates)))
                ranker.network.double()
                rows_BD = rows_by_hand(schema, (many, candidates), tables, owners, ranker.embeddings.units)
                by_loops = answers(ranker.network(rows_BD))
                ranker.network.float()
                both = (inputs.candidate_rows(candidates, request), inputs.request_sums(request))
                got = module(*both)
                torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
                # Probabilities after some float32 products of order 1.
                torch.testing.assert_close(got.double(), by_loops, atol=5e-6, rtol=5e-6)
                for _ in range(3):  # the executor optimises after its first runs
                    assert torch.equal(scripted(*both), got)
                    assert torch.equal(again(*both), got)


@pytest.mark.parametrize(("network", "mlp"), FEEDS)
def test_candidates_sums_are_of_no_request_and_what_a_list_adds_makes_the_answer_whole(network: str, mlp: bool) -> None:
    schema, _, module, inputs = served(network, mlp=mlp)
    candidates = random_block(schema, "candidate", 40, 1)
    with torch.no_grad():
        sums_NF = module.candidate_sums(inputs.candidate_rows(candidates))
        for seed in range(3):
            request = random_block(schema, "request", 1, seed)
            sums_1F = inputs.request_sums(request)
            whole = module(inputs.candidate_rows(candidates, request), sums_1F)
            in_parts = module.answer_sums(inputs.with_attention(sums_NF, candidates, request), sums_1F)
            torch.testing.assert_close(in_parts, whole, atol=1e-6, rtol=1e-6)
            # The list matters: else this test would pass without it.
            assert (module.answer_sums(sums_NF, sums_1F) - whole).abs().max() > 1e-3


@pytest.mark.parametrize(("network", "mlp"), FEEDS)
def test_several_requests_are_each_with_its_own_lists(network: str, mlp: bool) -> None:
    schema, _, module, inputs = served(network, mlp=mlp)
    requests = [random_block(schema, "request", 1, seed) for seed in range(4)]
    candidates = random_block(schema, "candidate", 30, 5)
    # One request has no candidate here, and those of others take turns.
    request_of_N = np.arange(30) % 3
    with torch.no_grad():
        rows_ND = inputs.candidate_rows(candidates, stacked(*requests), request_of_N)
        sums_NF = inputs.with_attention(
            module.candidate_sums(inputs.candidate_rows(candidates)), candidates, stacked(*requests), request_of_N
        )
        for number, request in enumerate(requests[:3]):
            alone_ND = inputs.candidate_rows(candidates, request)
            mine = np.flatnonzero(request_of_N == number)
            torch.testing.assert_close(rows_ND[mine], alone_ND[mine], atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(sums_NF[mine], module.candidate_sums(alone_ND)[mine], atol=1e-5, rtol=1e-5)


def test_an_empty_list_adds_nothing() -> None:
    schema, _, _, inputs = served("adatt")
    candidates = random_block(schema, "candidate", 5, 1)
    request = random_block(schema, "request", 1, 2)
    request = request._replace(list_values_V=np.zeros(0, np.int64), list_lengths_LB=np.zeros((3, 1), np.int64))
    with torch.no_grad():
        assert torch.equal(inputs.candidate_rows(candidates, request), inputs.candidate_rows(candidates))
