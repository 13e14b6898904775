"""No sharing with embeddings of each task's own: nothing serves two tasks, and what is exported answers alike."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.artifact.module_inputs import ModuleInputs
from model.artifact.table_files import StackedTables
from model.embeddings.embeddings import Embeddings, FusedOptimizer
from model.export.scoring_module import ScoringModule
from model.features.block import BlockTensors
from model.features.encoder import FeatureEncoder
from model.fusion.no_sharing import NoSharing
from model.ranker import Answers, Network, NetworkConfig, Ranker
from model.schema import FeedSchema
from tests.model.feeds import encoder_of, everything, random_rows
from tests.model.test_ranker import reloaded, request_and_candidates

OWN = {"fusion": {"kind": "no_sharing", "levels": [[8, 6], 5], "own_embeddings": True}, "tower": [4]}
FUSED: list[FusedOptimizer | None] = [None, "rowwise_adagrad", "adagrad", "sgd"]
TASKS, WIDTH = 3, 7


def built(fused: FusedOptimizer | None) -> tuple[FeedSchema, FeatureEncoder, Ranker]:
    """A ranker on the feed with every kind of feature. Each task has tables of its own."""
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    torch.manual_seed(0)
    embeddings = Embeddings(schema, encoder, fused=fused, learning_rate=0.1, for_each_task=True)
    network = Network(NetworkConfig.from_mapping(OWN, "test"), embeddings.width, schema.output_counts)
    return schema, encoder, Ranker(embeddings, network).eval()


def network_of(seed: int = 0) -> NoSharing:
    torch.manual_seed(seed)
    return NoSharing(TASKS * WIDTH, [6, 4], TASKS, has_own_rows=True).double()


def test_each_task_is_an_mlp_on_its_own_part_of_the_row() -> None:
    network, rows = network_of(), torch.randn(5, TASKS * WIDTH, dtype=torch.float64)
    state = network.state_dict()
    for task in range(TASKS):
        hidden = rows[:, task * WIDTH : (task + 1) * WIDTH]
        hidden = (hidden @ state[f"experts.first.{task}.weight"].T + state[f"experts.first.{task}.bias"]).clamp(min=0)
        weight, bias = state["experts.deeper.0.weight_EDH"][task], state["experts.deeper.0.bias_E1H"][task]
        torch.testing.assert_close(network(rows)[:, task], (hidden @ weight + bias).clamp(min=0))


def test_every_layer_has_a_name() -> None:
    network = network_of()
    slots = network.slots(["click", "like", "share"])
    assert slots["expert.like.0.weight"].shape == (6, WIDTH)
    assert sum(slot.numel() for slot in slots.values()) == sum(value.numel() for value in network.parameters())


def test_own_rows_that_are_equal_are_no_sharing_over_one() -> None:
    own, one = network_of(), NoSharing(WIDTH, [6, 4], TASKS).double()
    state = own.state_dict()
    for part in ("weight", "bias"):
        state[f"experts.first.0.{part}"] = torch.cat([state.pop(f"experts.first.{t}.{part}") for t in range(TASKS)])
    one.load_state_dict(state)
    rows = torch.randn(5, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(own(rows.repeat(1, TASKS)), one(rows))


@pytest.mark.parametrize("fused", FUSED)
def test_rows_are_those_of_each_tasks_own_tables(fused: FusedOptimizer | None) -> None:
    """Against the shared embeddings with one task's tables in them, which test_embeddings.py compares with loops."""
    schema, encoder, ranker = built(fused)
    own = ranker.embeddings.table_weights()
    _, repeated, candidates = request_and_candidates(encoder, 7, seed=1)
    rows = ranker.embeddings(BlockTensors.of(repeated), BlockTensors.of(candidates))
    assert rows.shape[1] == ranker.embeddings.width
    one = Embeddings(schema, encoder)
    names = {table.name for table in schema.tables}
    assert set(own) == {f"{name}@{task.name}" for name in names for task in schema.tasks}
    for task, part in zip(schema.tasks, rows.chunk(len(schema.tasks), dim=1), strict=True):
        for name, weight in one.table_weights().items():
            weight.copy_(own[f"{name}@{task.name}"])
        # TorchRec's fused kernels sum lists in an order of their own.
        torch.testing.assert_close(
            part, one(BlockTensors.of(repeated), BlockTensors.of(candidates)), atol=1e-6, rtol=1e-6
        )


def test_a_tasks_loss_reaches_no_table_and_no_layer_of_another() -> None:
    schema, encoder, ranker = built(None)
    _, repeated, candidates = request_and_candidates(encoder, 40, seed=1)
    for position, task in enumerate(schema.tasks):
        ranker.zero_grad()
        ranker(BlockTensors.of(repeated), BlockTensors.of(candidates))[:, position].square().sum().backward()
        for name, parameter in ranker.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if "embedding_bags" in name:
                assert bool(gradient.any()) == (f"@{task.name}." in name), name
            elif "towers" in name:
                assert bool(gradient.any()) == (f"towers.{position}." in name), name
            elif "first" in name:
                assert bool(gradient.any()) == (f"first.{position}." in name), name
            else:  # stacked: [T, ...]
                assert [bool(part.any()) for part in gradient] == [t == position for t in range(len(schema.tasks))]


@pytest.mark.parametrize("fused", FUSED[1:])
def test_a_fused_step_of_one_task_moves_its_tables_alone(fused: FusedOptimizer) -> None:
    schema, encoder, ranker = built(fused)
    before = {name: weight.clone() for name, weight in ranker.embeddings.table_weights().items()}
    _, repeated, candidates = request_and_candidates(encoder, 40, seed=1)
    ranker(BlockTensors.of(repeated), BlockTensors.of(candidates))[:, 1].sum().backward()
    for name, weight in ranker.embeddings.table_weights().items():
        assert torch.equal(weight, before[name]) != name.endswith(f"@{schema.tasks[1].name}"), name


@pytest.mark.parametrize("fused", FUSED)
def test_what_is_exported_answers_as_what_was_trained(fused: FusedOptimizer | None) -> None:
    schema, encoder, ranker = built(fused)
    stacked = StackedTables.of(ranker.embeddings.table_weights())
    module = ScoringModule(schema, encoder.fitted, ranker.network, stacked.starts).eval()
    inputs = ModuleInputs(schema, module, stacked.stacked_RW)
    scripted, again = reloaded(module)
    for count in (1, 2, 50):
        one, repeated, candidates = request_and_candidates(encoder, count, seed=count)
        with torch.no_grad():
            logits_BO: Tensor = ranker(BlockTensors.of(repeated), BlockTensors.of(candidates))
            both = (inputs.candidate_rows(candidates), inputs.request_sums(one))
            got = module(*both)
            # TorchRec sums a list in its own order: some units in the last place, of quantities too.
            torch.testing.assert_close(got, Answers(schema, encoder.fitted)(logits_BO), atol=1e-6, rtol=1e-6)
            for _ in range(3):  # the executor optimises after its first runs
                assert torch.equal(scripted(*both), got)
                assert torch.equal(again(*both), got)


def test_census_with_own_embeddings_has_the_published_size() -> None:
    """The authors' single-task networks at the Census sizes: 131 columns, 510 rows of 4 in the tables of each task."""
    config = NetworkConfig.from_mapping(
        {"fusion": {"kind": "no_sharing", "levels": [128, 64], "own_embeddings": True}, "tower": [32]}, "test"
    )
    network = Network(config, 3 * 131, (1, 1, 1))
    assert sum(parameter.numel() for parameter in network.parameters()) + 3 * 510 * 4 == 87_915
