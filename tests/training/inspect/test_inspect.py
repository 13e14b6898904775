"""Looking inside a run: expert weights and gradient conflicts against hand computation, and the files of `inspect`."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from model.embeddings.embeddings import Embeddings
from model.fusion.adatt import AdaTT
from model.fusion.names import unit_and_expert_names
from model.ranker import Network, NetworkConfig, Ranker
from tests.training_data import files_of, saved_state, training_file, write_feed
from training.__main__ import main
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.inspect.conflicts import Conflicts, cosines, cosines_where_both, task_conflicts
from training.inspect.gates import LevelGates, gate_use, level_gates
from training.inspect.inspect import inspect
from training.inspect.plots import plot_conflicts, plot_expert_weights
from training.run.run import BEST, Run
from training.step.balancing.losses import TaskLosses
from training.train import train

TASKS = ["click", "like", "watch"]
ADATT = {"kind": "adatt", "levels": [6, 4], "experts_per_task": [2, 1, 1], "shared_experts": 2}


@pytest.fixture(scope="module")
def rows(finished_run: Run) -> Rows:
    """The validation split of the small feed."""
    run = finished_run
    table = read_splits(run.config.data, run.schema, ("validation",))["validation"]
    return Rows.encode(run.schema, run.encoder, table, columns_from_arrow(run.schema, table), as_served=False)


def ranker_with(run: Run, fusion: Mapping[str, Any]) -> tuple[Ranker, NetworkConfig]:
    """Random weights. Gates ten times steeper than they start, so that weights differ from row to row."""
    torch.manual_seed(0)
    config = NetworkConfig.from_mapping({"fusion": fusion, "tower": [4]}, "network.yaml")
    embeddings = Embeddings(run.schema, run.encoder)
    ranker = Ranker(embeddings, Network(config, embeddings.width, run.schema.output_counts))
    with torch.no_grad():
        for name, parameter in ranker.network.named_parameters():
            if "gates" in name:
                parameter.mul_(10)
    return ranker, config


def dense_rows(ranker: Ranker, rows: Rows) -> Tensor:
    batch = rows.take_batch(torch.arange(len(rows)))
    with torch.no_grad():
        out: Tensor = ranker.embeddings(batch.request, batch.candidate)
    return out


def gates_of(run: Run, rows: Rows, fusion: Mapping[str, Any]) -> list[LevelGates]:
    ranker, config = ranker_with(run, fusion)
    levels = level_gates(ranker, rows, config.fusion, TASKS)
    assert levels is not None
    return levels


# Expert weights


def test_weights_of_adatt_are_gate_means_plus_native_weights(
    finished_run: Run, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several batches, the last one smaller.
    monkeypatch.setattr("training.inspect.gates.ROWS_AT_ONCE", 100)
    assert len(rows) % 100
    ranker, config = ranker_with(finished_run, ADATT)
    levels = level_gates(ranker, rows, config.fusion, TASKS)
    assert levels is not None
    fusion = ranker.network.fusion
    assert isinstance(fusion, AdaTT)
    state = {name: value.numpy().astype(np.float64) for name, value in fusion.state_dict().items()}
    rows_BD = dense_rows(ranker, rows).numpy().astype(np.float64)
    logits_BGE = (rows_BD @ state["levels.0.gates.0.weight"].T + state["levels.0.gates.0.bias"]).reshape(-1, 4, 6)
    gates_BGE = softmax(logits_BGE, axis=2)
    native_GE = np.zeros((4, 6))
    # Experts by unit: click has 0 and 1, like 2, watch 3, the shared unit 4 and 5.
    for value, (unit, expert) in zip(
        state["levels.0.native_weights"], [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (3, 5)], strict=True
    ):
        native_GE[unit, expert] = value
    first = levels[0]
    # The network's own arithmetic is float32.
    np.testing.assert_allclose(first.weights_GE, gates_BGE.mean(axis=0) + native_GE, atol=1e-6)
    np.testing.assert_allclose(first.entropy_G, entropy(gates_BGE, axis=2).mean(axis=0), atol=1e-5)
    largest_BG = (gates_BGE + native_GE).argmax(axis=2)
    share_GE = np.stack([(largest_BG == expert).mean(axis=0) for expert in range(6)], axis=1)
    np.testing.assert_allclose(first.largest_GE, share_GE, atol=1e-12)
    assert first.units == ["click", "like", "watch", "shared"]
    assert first.experts == ["click.1", "click.2", "like.1", "watch.1", "shared.1", "shared.2"]
    assert levels[1].units == TASKS
    assert levels[1].weights_GE.shape == (3, 6)


def test_use_of_gates_is_entropy_within_rows_and_spread_over_them(finished_run: Run, rows: Rows) -> None:
    ranker, config = ranker_with(finished_run, ADATT)
    batch = rows.take_batch(torch.arange(len(rows)))
    levels = level_gates(ranker, rows, config.fusion, TASKS)
    fusion = ranker.network.fusion
    assert isinstance(fusion, AdaTT)
    assert levels is not None
    state = {name: value.numpy().astype(np.float64) for name, value in fusion.state_dict().items()}
    logits = dense_rows(ranker, rows).numpy() @ state["levels.0.gates.0.weight"].T + state["levels.0.gates.0.bias"]
    gates_BGE = softmax(logits.reshape(-1, 4, 6), axis=2)
    found = gate_use(ranker, batch)
    assert len(found) == 2
    # The network's own arithmetic is float32.
    assert found[0][0] == pytest.approx(entropy(gates_BGE, axis=2).mean(), abs=1e-5)
    assert found[0][1] == pytest.approx(np.exp(entropy(gates_BGE.mean(axis=(0, 1)))), abs=1e-5)
    assert gate_use(ranker_with(finished_run, {"kind": "shared_bottom", "levels": [4]})[0], batch) == []


@pytest.mark.parametrize("fusion", [
    ADATT,
    {**ADATT, "native_experts": False},
    {"kind": "adatt_sp", "levels": [4], "experts_per_task": 1},
    {"kind": "mmoe", "levels": [4], "num_experts": 3},
    {"kind": "ml_mmoe", "levels": [5, 4], "num_experts": 3},
    {"kind": "ple", "levels": [5, 4], "experts_per_task": [2, 1, 1], "shared_experts": 2},
])  # fmt: skip
def test_entropies_and_shares_keep_their_bounds(finished_run: Run, rows: Rows, fusion: dict[str, Any]) -> None:
    for level in gates_of(finished_run, rows, fusion):
        units, experts = level.weights_GE.shape
        assert (len(level.units), len(level.experts)) == (units, experts)
        assert len(set(level.units)) == units
        # Some rounding of float32 above the bound that a uniform gate reaches.
        assert ((level.entropy_G >= 0) & (level.entropy_G <= np.log(experts) + 1e-5)).all()
        np.testing.assert_allclose(level.largest_GE.sum(axis=1), 1.0, atol=1e-12)
        if fusion["kind"] in ("mmoe", "ml_mmoe", "ple"):
            np.testing.assert_allclose(level.weights_GE.sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize(("bias", "expected"), [(0.0, np.log(3)), (1e4, 0.0)])
def test_entropy_of_even_and_of_certain_gates(finished_run: Run, rows: Rows, bias: float, expected: float) -> None:
    ranker, config = ranker_with(finished_run, {"kind": "mmoe", "levels": [4], "num_experts": 3})
    with torch.no_grad():
        for name, parameter in ranker.network.fusion.named_parameters():
            if "gates" in name:
                parameter.zero_()
                if name.endswith("bias"):
                    parameter[1::3] = bias
    levels = level_gates(ranker, rows, config.fusion, TASKS)
    assert levels is not None
    np.testing.assert_allclose(levels[0].entropy_G, expected, atol=1e-5)
    np.testing.assert_allclose(levels[0].weights_GE[:, 1], 1.0 if bias else 1 / 3, atol=1e-6)


def test_names_follow_the_network() -> None:
    def names(fusion: dict[str, Any], units: int, experts: int, *, is_last: bool) -> tuple[list[str], list[str]]:
        config = NetworkConfig.from_mapping({"fusion": fusion}, "network.yaml").fusion
        return unit_and_expert_names(config, ["a", "b"], units, experts, is_last=is_last)

    ple = {"kind": "ple", "levels": [4, 4], "experts_per_task": 1, "shared_experts": 1}
    assert names(ple, 3, 3, is_last=False) == (["a", "b", "shared"], ["a.1", "b.1", "shared.1"])
    assert names(ple, 2, 3, is_last=True) == (["a", "b"], ["a.1", "b.1", "shared.1"])
    mmoe = {"kind": "ml_mmoe", "levels": [4, 4], "num_experts": 2}
    # As many gates as tasks here, but each belongs to an expert of the level above.
    assert names(mmoe, 2, 2, is_last=False) == (["shared.1", "shared.2"], ["shared.1", "shared.2"])
    assert names(mmoe, 2, 2, is_last=True) == (["a", "b"], ["shared.1", "shared.2"])


# Gradient conflicts


def test_cosines_of_made_gradients() -> None:
    gradients = torch.tensor([[3.0, 4.0, 0.0], [-3.0, -4.0, 0.0], [0.0, 0.0, 2.0], [4.0, 3.0, 5.0]])
    found = cosines(gradients).numpy()
    half = 24 / (5 * np.sqrt(50))
    expected = [[1, -1, 0, half], [-1, 1, 0, -half], [0, 0, 1, 5 / np.sqrt(50)], [half, -half, 5 / np.sqrt(50), 1]]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    shared = cosines_where_both(gradients).numpy()
    # Of tasks 0 and 3 the third value is task 3's alone: 24 / (5 * 5).
    assert shared[0, 3] == pytest.approx(24 / 25)
    assert shared[2, 3] == pytest.approx(1.0)
    assert np.isnan(shared[0, 2])
    np.testing.assert_allclose(np.diag(shared), 1.0, atol=1e-12)
    assert torch.isnan(cosines(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))[0]).all()


def conflicts_of(run: Run, rows: Rows, fusion: Mapping[str, Any]) -> Conflicts:
    ranker, _ = ranker_with(run, fusion)
    return task_conflicts(ranker, rows, TaskLosses(run.schema), TASKS, batch_size=64, num_batches=3)


@pytest.mark.parametrize("fusion", [ADATT, {"kind": "shared_bottom", "levels": [8]}])
def test_conflicts_are_symmetric_cosines(finished_run: Run, rows: Rows, fusion: dict[str, Any]) -> None:
    found = conflicts_of(finished_run, rows, fusion)
    assert found.batches == 3
    for matrix in (found.at_rows_TT, found.at_parameters_TT):
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
        np.testing.assert_allclose(np.diag(matrix), 1.0, atol=1e-12)
        assert (np.abs(matrix) <= 1 + 1e-12).all()


def test_opposite_tasks_conflict_and_equal_tasks_agree(finished_run: Run, rows: Rows) -> None:
    ranker, _ = ranker_with(finished_run, {"kind": "shared_bottom", "levels": [8]})
    towers = ranker.network.towers
    towers[1].load_state_dict(towers[0].state_dict())
    losses = TaskLosses(finished_run.schema)

    def matrices(second_label: Tensor) -> list[NDArray[np.float64]]:
        made = Rows.__new__(Rows)
        made.__dict__.update(rows.__dict__)
        # The made labels: like is the click, or its opposite, and is always observed.
        made.targets_BT, made.observed_BT = rows.targets_BT.clone(), torch.ones_like(rows.observed_BT)
        made.targets_BT[:, 1] = second_label
        found = task_conflicts(ranker, made, losses, TASKS, batch_size=64, num_batches=2)
        return [found.at_rows_TT, found.at_parameters_TT]

    for same, opposite in zip(matrices(rows.targets_BT[:, 0]), matrices(1 - rows.targets_BT[:, 0]), strict=True):
        assert same[0, 1] == pytest.approx(1.0)
        assert opposite[0, 1] < -0.1


def test_tasks_that_share_no_layer_have_no_conflict_of_parameters(finished_run: Run, rows: Rows) -> None:
    found = conflicts_of(finished_run, rows, {"kind": "no_sharing", "levels": [8]})
    off_diagonal = ~np.eye(3, dtype=bool)
    assert np.isnan(found.at_parameters_TT[off_diagonal]).all()
    assert np.isfinite(found.at_rows_TT).all()
    assert found.as_json()["at_shared_parameters"][0][1] is None


def test_a_task_without_labels_is_left_out(finished_run: Run, rows: Rows) -> None:
    ranker, _ = ranker_with(finished_run, ADATT)
    made = Rows.__new__(Rows)
    made.__dict__.update(rows.__dict__)
    made.observed_BT = rows.observed_BT.clone()
    made.observed_BT[:, 1] = 0
    found = task_conflicts(ranker, made, TaskLosses(finished_run.schema), TASKS, batch_size=64, num_batches=2)
    assert np.isnan(found.at_rows_TT[1]).all()
    assert np.isfinite(found.at_rows_TT[0, 2])


# The command and its files


def pixels(path: Path) -> NDArray[np.float32]:
    image: NDArray[np.float32] = matplotlib.image.imread(path)
    return image


@pytest.fixture
def run(finished_run: Run, tmp_path: Path) -> Run:
    """A copy of the finished run that a test may write to."""
    shutil.copytree(finished_run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def test_inspect_writes_numbers_and_pictures(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(run.path / BEST)
    tables = saved_state(run.path / BEST)["ranker"]
    assert main(["inspect", str(run.path)]) == 0
    assert "gate entropy" in capsys.readouterr().out
    written = json.loads((run.path / "inside/inside.json").read_text(encoding="utf-8"))
    assert (written["split"], written["network"]) == ("validation", "adatt_sp")
    (level,) = written["expert_weights"]
    assert level["units"] == TASKS
    assert level["experts"] == ["click.1", "like.1", "watch.1"]
    # Native weights are 1 here: one expert each.
    np.testing.assert_allclose(np.sum(level["mean_weights"], axis=1), 2.0, atol=1e-5)
    for name in ("expert_weights", "gradient_conflicts"):
        image = pixels(run.path / f"inside/{name}.png")
        assert image.std() > 0.05, "blank"
    assert files_of(run.path / BEST) == before
    again = run.best_ranker().state_dict()
    assert all(torch.equal(again[name], value) for name, value in tables.items())


def test_fused_tables_do_not_move(finished_run: Run, rows: Rows) -> None:
    ranker = finished_run.best_ranker()
    assert ranker.embeddings.fused_optimizers()
    before = {name: weight.clone() for name, weight in ranker.embeddings.table_weights().items()}
    losses = TaskLosses(finished_run.schema)
    task_conflicts(ranker, rows, losses, TASKS, batch_size=64, num_batches=2)
    for name, weight in ranker.embeddings.table_weights().items():
        assert torch.equal(weight, before[name]), name


def test_a_network_without_gates_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_feed(tmp_path / "data", 300)
    network = {"fusion": {"kind": "shared_bottom", "levels": [4]}, "tower": [4]}
    run = train(TrainingConfig.load(training_file(tmp_path, network=network, epochs=1)), show=False)
    (run.path / "inside").mkdir()
    (run.path / "inside/expert_weights.png").write_bytes(b"of another run")
    with caplog.at_level(logging.INFO, "training"):
        written = inspect(run)
    assert written["expert_weights"] is None
    assert "shared_bottom has no gates" in caplog.text
    assert sorted(path.name for path in (run.path / "inside").iterdir()) == ["gradient_conflicts.png", "inside.json"]


def test_an_unfinished_run_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "summary.json").unlink()
    assert main(["inspect", str(run.path)]) == 2
    assert "has not finished" in capsys.readouterr().err
    assert not (run.path / "inside").exists()


def test_pictures_show_the_numbers(tmp_path: Path) -> None:
    """Equal numbers give equal bytes, other numbers another picture, and NaN is no fault."""
    even = LevelGates(["a", "b"], ["a.1", "b.1"], np.full((2, 2), 0.5), np.zeros(2), np.full((2, 2), 0.5))
    other = LevelGates(["a", "b"], ["a.1", "b.1"], np.array([[1.5, -0.5], [0.0, 1.0]]), np.zeros(2), np.eye(2))
    assert plot_expert_weights([even], "t") == plot_expert_weights([even], "t")
    assert plot_expert_weights([even, other], "t") != plot_expert_weights([other, even], "t")
    conflicts = Conflicts(["a", "b"], 1, 8, np.array([[1.0, -0.7], [-0.7, 1.0]]), np.full((2, 2), np.nan))
    (tmp_path / "conflicts.png").write_bytes(plot_conflicts(conflicts, "t"))
    image = pixels(tmp_path / "conflicts.png")[..., :3]
    # The scale's ends: a cell that is clearly red (1.0) and one that is clearly blue (-0.7).
    red, blue = image[..., 0] - image[..., 2], image[..., 2] - image[..., 0]
    assert red.max() > 0.2
    assert blue.max() > 0.2
