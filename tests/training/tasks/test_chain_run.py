"""A run with a chain of tasks, from its log to an artifact's answers, against the law that the log was drawn from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy.special import expit

from model.features.block import BlockTensors
from model.fusion.aitm import AITMConfig
from model.fusion.shared_bottom import SharedBottomConfig
from model.ranker import Network, NetworkConfig
from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from tests.model.feeds import schema_of
from tests.training.tasks.chain_feed import CHAIN, probabilities, shop_table, write_shop
from tests.training_data import training_file
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.evaluate.evaluate import evaluate
from training.evaluate.validation import predict
from training.inspect.inspect import inspect
from training.publish.export import export
from training.run.run import Run
from training.start.warm_network import Side, fill_network
from training.step.balancing import BalancingConfig
from training.step.balancing.losses import TaskLosses
from training.train import train

OF_CHAIN = ["click", "buy", "returns"]
SHARED = SharedBottomConfig(kind="shared_bottom", levels=(5,))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder / "data", shop_table(9000))
    fusion = {"fusion": {"kind": "shared_bottom", "levels": [16]}, "tower": [8]}
    rates = {"dense": {"kind": "adam", "learning_rate": 0.01}, "schedule": "cosine"}
    file = training_file(folder, schema=CHAIN, network=fusion, optimizer=rates, epochs=12, batch_size=128)
    return train(TrainingConfig.load(file), show=False)


def test_answers_are_the_unconditional_probabilities_of_the_law(run: Run, tmp_path: Path) -> None:
    scorer = Scorer.load(export(run, tmp_path / "models"))
    table = shop_table(400, seed=9)
    columns = columns_from_arrow(run.schema, table.slice(0, 1)), columns_from_arrow(run.schema, table)
    answers_NO = scorer.score(*scorer.encode(*columns, table.num_rows)).answers_NO
    answered_NT = answers_NO[:, [scorer.outputs.index(name) for name in OF_CHAIN]]
    x_N = np.full(table.num_rows, table.column("x")[0].as_py())
    law_NT = probabilities(x_N, table.column("y").to_numpy())
    # 6,000 training rows: a hundredth for the weights of two inputs, the tails of the normal being rare.
    assert np.abs(answered_NT - law_NT).mean() < 0.03
    # Never above the factor, in each single row: that is what the product promises.
    assert (np.diff(answered_NT, axis=1) <= 0).all()


def test_a_ranker_and_its_export_answer_alike(run: Run, tmp_path: Path) -> None:
    scorer = Scorer.load(export(run, tmp_path / "models"))
    table = read_splits(run.config.data, run.schema, ("test",))["test"].slice(0, 1)
    columns = columns_from_arrow(run.schema, table)
    rows = Rows.encode(run.schema, run.encoder, table, columns, as_served=True)
    logits_BO = predict(run.best_ranker(), rows)
    answers_NO = scorer.score(*scorer.encode(columns, columns, 1)).answers_NO
    for name in OF_CHAIN:
        place = scorer.outputs.index(name)
        np.testing.assert_allclose(answers_NO[:, place], expit(logits_BO[:, place]), atol=1e-6)


def test_evaluation_measures_the_product(run: Run) -> None:
    tasks = evaluate(run, "test", replicates=20)["tasks"]
    for name in OF_CHAIN:
        # Of all rows, and their sum is right: 1,500 rows have a standard error of about a tenth of the rarest task.
        assert tasks[name]["rows"] == tasks["click"]["rows"]
        assert tasks[name]["calibration_ratio"]["value"] == pytest.approx(1.0, abs=0.3)
        assert tasks[name]["normalized_entropy"]["value"] < 1.0


@pytest.mark.parametrize("kind", ["uncertainty", "gradnorm", "upgrad"])
def test_balancing_takes_a_chain(kind: str, tmp_path: Path) -> None:
    write_shop(tmp_path / "data", shop_table(600))
    file = training_file(tmp_path, schema=CHAIN, balancing={"kind": kind}, epochs=1)
    run = train(TrainingConfig.load(file), show=False)
    assert np.isfinite(run.summary()["best_objective"])


def test_a_gradient_method_gives_a_tower_the_gradients_of_all_that_are_given_it() -> None:
    schema = schema_of(CHAIN)
    config: Any = TypeAdapter(BalancingConfig).validate_python({"kind": "upgrad"})
    network = _network(schema, NetworkConfig(fusion=SHARED, tower=(3,)))
    rows_BD = torch.randn(20, 2, requires_grad=True)
    losses = TaskLosses(schema)
    targets_BT = (torch.rand(20, 4) < 0.5).float()

    def losses_T() -> torch.Tensor:
        found_T: torch.Tensor = losses(network(rows_BD), targets_BT, torch.ones(20, 4))
        return found_T

    # A loss reaches the towers of its own chain, so their sum has each tower's gradients and no other.
    expected = torch.autograd.grad(losses_T().sum(), list(network.towers.parameters()))
    balancing = config.build(losses, 0)
    for _ in range(2):  # a second step starts from nothing
        found = losses_T()
        balancing.backward(found, balancing.total(found), rows_BD, network, 0)
        for parameter, gradient in zip(network.towers.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("fusion", [SHARED, AITMConfig(kind="aitm", levels=(5,))])
def test_a_tower_that_is_given_another_than_before_starts_fresh(fusion: SharedBottomConfig | AITMConfig) -> None:
    schema = schema_of(CHAIN)
    other = schema.with_given({"returns": "click"})
    config = NetworkConfig(fusion=fusion, tower=(3,))
    names = [task.name for task in schema.tasks]
    for ours, theirs, fresh in ((schema, other, {"returns"}), (other, schema, {"returns"}), (schema, schema, set())):
        mine, parent = _network(ours, config, seed=1), _network(theirs, config, seed=2)
        before = {name: slot.clone() for name, slot in mine.slots(names).items()}
        states = dict(fill_network(Side(mine, config, ours), Side(parent, config, theirs), {"x", "y"}))
        assert {name: states[f"tower.{name}"] for name in names} == {
            name: "fresh" if name in fresh else "taken" for name in names
        }
        for name, slot in mine.slots(names).items():
            what, of = name.split(".")[:2]
            is_fresh = what in ("tower", "transfer") and of in fresh
            assert torch.equal(slot, before[name] if is_fresh else parent.slots(names)[name])


def _blocks(rows: Rows) -> tuple[BlockTensors, BlockTensors]:
    batch = rows.take_batch(torch.arange(len(rows)))
    return batch.request, batch.candidate


def _network(schema: FeedSchema, config: NetworkConfig, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(config, 2, schema.output_counts, schema.given)


def test_aitm_is_exported_explained_and_inspected(tmp_path: Path) -> None:
    write_shop(tmp_path / "data", shop_table(900))
    network = {"fusion": {"kind": "aitm", "levels": [8]}, "tower": []}
    run = train(
        TrainingConfig.load(training_file(tmp_path, schema=CHAIN, network=network, epochs=2)),
        show=False,
    )
    scorer = Scorer.load(export(run, tmp_path / "models"))
    table = read_splits(run.config.data, run.schema, ("test",))["test"].slice(0, 1)
    columns = columns_from_arrow(run.schema, table)
    rows = Rows.encode(run.schema, run.encoder, table, columns, as_served=True)
    ranker = run.best_ranker()
    logits_BO = predict(ranker, rows)
    encoded = scorer.encode(columns, columns, 1)
    answers_NO = scorer.score(*encoded).answers_NO
    for name in OF_CHAIN:
        place = scorer.outputs.index(name)
        np.testing.assert_allclose(answers_NO[:, place], expit(logits_BO[:, place]), atol=1e-6)
    _, levels = scorer.explain(encoded[0], encoded[1])
    assert [(level.units, level.experts) for level in levels] == [
        (["buy", "seconds", "click", "returns"], ["buy.1", "seconds.1", "click.1", "returns.1"])
    ]
    with torch.no_grad():
        (expected_NTT,) = ranker.network.fusion.expert_weights(ranker.embeddings(*_blocks(rows)))  # type: ignore[operator]
    np.testing.assert_allclose(levels[0].weights_NGE, expected_NTT.numpy(), atol=1e-6)
    (level,) = inspect(run)["expert_weights"]
    weights_TT = np.array(level["mean_weights"])
    assert (weights_TT > 0).tolist() == [
        [True, False, True, False],
        [False, True, False, False],
        [False, False, True, False],
        [True, False, False, True],
    ]
    np.testing.assert_allclose(weights_TT.sum(axis=1), 1.0, atol=1e-6)
