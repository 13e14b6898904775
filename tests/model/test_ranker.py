"""The trained ranker against the exported one: the same weights give the same answers, eager, scripted and reloaded."""

import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model.artifact.module_inputs import ModuleInputs
from model.artifact.table_files import StackedTables
from model.embeddings.embeddings import Embeddings, FusedOptimizer
from model.export.scoring_module import ScoringModule
from model.features.block import BlockTensors
from model.features.encoder import EncodedBlock, FeatureEncoder, FittedFeatures
from model.fusion.adatt import AdaTTConfig
from model.ranker import Answers, Network, NetworkConfig, Ranker, Tower
from model.schema import FeedSchema
from model.tasks.task import TargetScale
from tests.model.feeds import columns_of, encoder_of, everything, random_rows, schema_of

CONFIG = NetworkConfig(fusion=AdaTTConfig(kind="adatt", levels=(8, (6, 5))), tower=(4,))
BATCHES = (1, 2, 7, 512)


def request_and_candidates(encoder: FeatureEncoder, count: int, seed: int) -> tuple[EncodedBlock, ...]:
    """One user's block of one row, the same block `count` times over, and `count` candidates."""
    generator = np.random.default_rng(seed)
    schema = encoder.schema
    user = columns_of(schema, one := random_rows(generator, 1))
    repeated = columns_of(schema, {name: values * count for name, values in one.items()})
    candidates = columns_of(schema, random_rows(generator, count))
    names = {feature.name for feature in schema.block("request")}
    return (
        encoder.encode("request", {name: user[name] for name in names}, 1, as_served=True).block,
        encoder.encode("request", {name: repeated[name] for name in names}, count, as_served=True).block,
        encoder.encode(
            "candidate", {n: c for n, c in candidates.items() if n not in names}, count, as_served=True
        ).block,
    )


def build(
    schema: FeedSchema, encoder: FeatureEncoder, fused: FusedOptimizer | None
) -> tuple[Ranker, ScoringModule, ModuleInputs]:
    torch.manual_seed(0)
    embeddings = Embeddings(schema, encoder, fused=fused, learning_rate=0.1)
    ranker = Ranker(embeddings, Network(CONFIG, embeddings.width, schema.output_counts)).eval()
    stacked = StackedTables.of(embeddings.table_weights())
    module = ScoringModule(schema, encoder.fitted, ranker.network, stacked.starts).eval()
    return ranker, module, ModuleInputs(schema, module, stacked.stacked_RW)


def reloaded(module: ScoringModule) -> tuple[torch.jit.ScriptModule, torch.jit.ScriptModule]:
    scripted = torch.jit.script(module)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return scripted, torch.jit.load(file)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("fused", [None, "rowwise_adagrad", "adagrad", "sgd"])
def test_what_is_exported_answers_as_what_was_trained(fused: FusedOptimizer | None) -> None:
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    ranker, module, inputs = build(schema, encoder, fused)
    scripted, again = reloaded(module)
    answers = Answers(schema, encoder.fitted)
    for batch in BATCHES:
        one, repeated, candidates = request_and_candidates(encoder, batch, seed=batch)
        with torch.no_grad():
            expected = answers(ranker(BlockTensors.of(repeated), BlockTensors.of(candidates)))
            both = (inputs.candidate_rows(candidates), inputs.request_sums(one))
            got = module(*both)
            # TorchRec sums a list in its own order: some units in the last place, of quantities too.
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
            for _ in range(3):  # the executor optimises after its first runs
                assert torch.equal(scripted(*both), got)
                assert torch.equal(again(*both), got)
            for one_of in (module, scripted, again):
                stepwise = one_of.answer_sums(one_of.candidate_sums(both[0]), both[1])
                torch.testing.assert_close(stepwise, expected, atol=1e-6, rtol=1e-6)


def test_an_explained_answer_names_its_experts_and_their_weights() -> None:
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    ranker, module, inputs = build(schema, encoder, None)
    scripted, again = reloaded(module)
    one, repeated, candidates = request_and_candidates(encoder, 7, seed=5)
    with torch.no_grad():
        rows_BD = ranker.embeddings(BlockTensors.of(repeated), BlockTensors.of(candidates))
        expected = ranker.network.fusion.expert_weights(rows_BD)  # type: ignore[operator]
        for stored in (module, scripted, again):
            rows_ND, sums_1F = inputs.candidate_rows(candidates), inputs.request_sums(one)
            answers_NO, levels = stored.explained(rows_ND, sums_1F)
            assert torch.equal(answers_NO, stored.answer(rows_ND, sums_1F))
            torch.testing.assert_close(levels, expected, atol=1e-6, rtol=1e-6)
            tasks = [task.name for task in schema.tasks]
            for units, experts, weights_NGE in zip(stored.unit_names, stored.expert_names, levels, strict=True):
                assert (7, len(units), len(experts)) == weights_NGE.shape
                assert units[: len(tasks)] == tasks
                assert experts[:3] == [f"{tasks[0]}.1", f"{tasks[0]}.2", f"{tasks[1]}.1"]


def test_candidate_sums_are_finite_and_no_request_changes_them() -> None:
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    _, module, inputs = build(schema, encoder, None)
    one, _, candidates = request_and_candidates(encoder, 7, seed=3)
    other, _, _ = request_and_candidates(encoder, 7, seed=4)
    with torch.no_grad():
        rows = inputs.candidate_rows(candidates)
        sums_NF = module.candidate_sums(rows)
        assert torch.isfinite(sums_NF).all()
        for request in (one, other):
            sums_1F = inputs.request_sums(request)
            assert sums_1F.shape == (1, sums_NF.shape[1])
            # bfloat16, as a catalogue stores them, keeps 8 bits of a sum.
            short = module.answer_sums(sums_NF.bfloat16(), sums_1F)
            torch.testing.assert_close(short, module.answer(rows, sums_1F), atol=0.02, rtol=0.02)


def test_an_exported_module_keeps_its_answers_when_training_goes_on() -> None:
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    ranker, _, inputs = build(schema, encoder, "sgd")
    one, repeated, candidates = request_and_candidates(encoder, 5, seed=1)
    before = inputs.candidate_rows(candidates).clone(), inputs.request_sums(one).clone()
    ranker(BlockTensors.of(repeated), BlockTensors.of(candidates)).sum().backward()
    assert torch.equal(inputs.candidate_rows(candidates), before[0])
    assert torch.equal(inputs.request_sums(one), before[1])


def test_empty_lists_everywhere_are_zeros() -> None:
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    ranker, module, inputs = build(schema, encoder, None)
    scripted, _ = reloaded(module)
    request = encoder.encode("request", {}, 1, as_served=True).block
    candidates = encoder.encode("candidate", {}, 3, as_served=True).block
    with torch.no_grad():
        answers = scripted(inputs.candidate_rows(candidates), inputs.request_sums(request))
        repeated = encoder.encode("request", {}, 3, as_served=True).block
        logits = ranker(BlockTensors.of(repeated), BlockTensors.of(candidates))
    torch.testing.assert_close(answers, Answers(schema, encoder.fitted)(logits), atol=1e-6, rtol=1e-6)


def test_candidates_do_not_see_each_other() -> None:
    """The answer of a candidate is that of a request for it alone."""
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    _, module, inputs = build(schema, encoder, None)
    one, _, candidates = request_and_candidates(encoder, 6, seed=4)
    generator = np.random.default_rng(4)
    random_rows(generator, 1)
    rows = random_rows(generator, 6)
    whole = module(inputs.candidate_rows(candidates), inputs.request_sums(one))
    for row in range(6):
        columns = columns_of(schema, {name: [values[row]] for name, values in rows.items()})
        single = encoder.encode(
            "candidate", {f.name: columns[f.name] for f in schema.block("candidate")}, 1, as_served=True
        ).block
        # A product of one row may take another kernel than one of six.
        torch.testing.assert_close(
            module(inputs.candidate_rows(single), inputs.request_sums(one)),
            whole[row : row + 1],
            atol=1e-6,
            rtol=1e-5,
        )


TASKS = """
name: f
features: [{name: a, side: candidate, kind: number}]
tasks:
  - {name: click, kind: binary, label: c}
  - {name: like, kind: binary, label: l, negative_sampling_rate: 0.05}
  - {name: play_time, kind: regression, label: p, transform: log1p}
  - {name: depth, kind: regression, label: d}
"""
FITTED = FittedFeatures(
    targets={
        "play_time": TargetScale(mean=8.0, scale=1.5, upper=1e7),
        "depth": TargetScale(mean=100.0, scale=40.0, upper=400.0),
    }
)


def answers_of(logits: list[list[float]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    answers: Tensor = Answers(schema_of(TASKS), FITTED)(torch.tensor(logits))
    return answers.numpy()


def test_answers_are_in_the_unit_of_each_task() -> None:
    logits = [[0.3, -1.0, 0.5, 2.0], [-4.0, 3.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]
    for (click, like, play_time, depth), row in zip(logits, answers_of(logits), strict=True):
        assert row[0] == pytest.approx(1 / (1 + math.exp(-click)), rel=1e-6)
        # He et al. 2014, section 6.3: p in the downsampled space, w the rate at which negatives were kept.
        p, w = 1 / (1 + math.exp(-like)), 0.05
        assert row[1] == pytest.approx(p / (p + (1 - p) / w), rel=1e-5)
        assert row[2] == pytest.approx(math.exp(8.0 + 1.5 * play_time) - 1, rel=1e-5)
        assert row[3] == pytest.approx(100.0 + 40.0 * depth, rel=1e-6)


def test_quantities_stay_within_their_bounds_and_answers_finite() -> None:
    for logit in (-math.inf, -1e4, -100.0, -6.0, 100.0, 1e4, 1e30, math.inf):
        [row] = answers_of([[logit] * 4])
        assert np.isfinite(row).all(), logit
        assert 0 <= row[0] <= 1
        assert 0 <= row[1] <= 1
        assert 0 <= row[2] <= np.float32(1e7)
        assert 0 <= row[3] <= 400


def test_a_logit_that_is_not_a_number_stays_one() -> None:
    """So that the scorer sees it and refuses, instead of answering 0."""
    assert np.isnan(answers_of([[math.nan] * 4])).all()


def test_towers_have_relu_between_and_none_at_the_end() -> None:
    tower = Tower(3, (4, 2), 1).double()
    rows = torch.randn(50, 3, dtype=torch.float64)
    hidden = rows.numpy()
    linears = [layer for layer in tower.layers if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linears] == [(4, 3), (2, 4), (1, 2)]
    for layer in linears[:-1]:
        hidden = np.maximum(hidden @ layer.weight.detach().numpy().T + layer.bias.detach().numpy(), 0)
    expected = hidden @ linears[-1].weight.detach().numpy().T + linears[-1].bias.detach().numpy()
    np.testing.assert_allclose(tower(rows).detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("config", "message"), [
    ({}, "fusion"),
    ({"fusion": {"kind": "adatt_sp", "levels": [4]}, "tower": [0]}, "tower"),
    ({"fusion": {"kind": "adatt_sp", "levels": [4]}, "towers": [4]}, "did you mean 'tower'"),
    ({"fusion": {"kind": "adatt_sp", "levels": [4]}, "tower": [True]}, "tower: got true or false"),
])  # fmt: skip
def test_faults_of_a_network_are_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig.from_mapping(config, "train.yaml")


def test_a_tower_may_be_one_linear_alone() -> None:
    config = NetworkConfig.from_mapping({"fusion": {"kind": "adatt_sp", "levels": [4]}, "tower": []}, "train.yaml")
    assert Network(config, 3, (1, 1))(torch.randn(5, 3)).shape == (5, 2)
