"""Engines of the tables, devices and optimizers: plain torch beside TorchRec, refusals, clipping."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training_data import assert_same_state, saved_state, training_file, write_feed
from training.config import TrainingConfig
from training.distributed.ranks import Ranks, refuse_across
from training.distributed.sharding import Sharder
from training.run.history import read_log
from training.run.run import LAST, Run
from training.step.balancing.losses import TaskLosses
from training.step.optimizers import Optimizers
from training.train import train


def run_of(folder: Path, name: str, *changes: str, **top_level: Any) -> Run:
    if not (folder / "data").exists():
        write_feed(folder / "data", 400)
    file = training_file(folder, **{"epochs": 1, **top_level})
    return train(TrainingConfig.load(file, [f"output={folder / name}", *changes]), show=False)


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adagrad", "sgd", "adam"])
def test_plain_torch_tables_learn_what_torchrecs_do(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = {"tables": {"kind": kind, "learning_rate": 0.05}, "schedule": "cosine", "warm_up_steps": 2}
    fused = run_of(tmp_path, "fused", optimizer=optimizer)
    with caplog.at_level(logging.WARNING):
        plain = run_of(tmp_path, "plain", "embeddings.engine=torch", optimizer=optimizer)
    assert "embedding tables by plain torch: embeddings.engine: torch" in caplog.text
    if kind == "adam":  # TorchRec draws the weights of unfused tables twice: another start
        return
    lines = [list(read_log(run)[0].values()) for run in (fused, plain)]
    # float32 sums of a few rows of a table in another order
    np.testing.assert_allclose(lines[0], lines[1], rtol=0, atol=1e-5)
    states = [saved_state(run.path / LAST) for run in (fused, plain)]
    assert list(states[0]["momenta"]) == list(states[1]["momenta"])
    for part in ("ranker", "momenta"):
        for name, value in states[0][part].items():
            np.testing.assert_allclose(value, states[1][part][name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert not plain.best_ranker().training


@pytest.mark.parametrize("engine", ["torchrec", "torch"])
def test_tables_may_have_optimizers_of_their_own_and_the_state_of_each_is_kept(tmp_path: Path, engine: str) -> None:
    tables = {
        "video": {"optimizer": {"kind": "sgd", "learning_rate": 0.1}},
        "tab": {"optimizer": {"kind": "adam", "learning_rate": 0.01}},
        "position": {"optimizer": {"kind": "rowwise_adagrad", "learning_rate": 1e-12}},
    }
    run = run_of(tmp_path, "run", embeddings={"engine": engine, "tables": tables})
    state = saved_state(run.path / LAST)
    assert list(state["momenta"]) == ["momenta.position", "momenta.user_id"]
    torch.manual_seed(run.config.seed)
    fresh = run.new_ranker().embeddings.table_weights()
    moved = {
        name: float((state["ranker"][f"embeddings.collection.embedding_bags.{name}.weight"] - fresh[name]).abs().max())
        for name in fresh
    }
    assert moved["position"] < 1e-9
    assert min(moved["video"], moved["tab"], moved["user_id"]) > 1e-4
    again = run_of(tmp_path, "run", embeddings={"engine": engine, "tables": tables})
    assert_same_state(saved_state(again.path / LAST), state)


def test_clipping_bounds_the_gradient_at_the_row_and_that_of_the_dense_part(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", 100)
    config = TrainingConfig.load(training_file(tmp_path, optimizer={"clip_norm": 0.5, "tables": {"kind": "sgd"}}))
    run = run_of(tmp_path, "run")
    ranker = run.new_ranker()
    optimizers = Optimizers(ranker, config.optimizer, 1)
    for scale, expected in ((1.0, 0.5), (1e-3, 0.003)):
        rows_BD = torch.ones(3, 3, requires_grad=True)
        # Over two processes with equal rows the sum of squares is twice this one's.
        for across, shrunk in ((None, 1.0), (lambda squared: squared.mul_(2.0), math.sqrt(0.5))):
            (gradient,) = torch.autograd.grad((optimizers.clipped(rows_BD, across) * scale).sum(), rows_BD)
            assert float(gradient.norm()) == pytest.approx(expected * (shrunk if scale == 1.0 else 1.0), rel=1e-5)
    parameters = list(ranker.network.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizers.step()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None))
    assert norm == pytest.approx(0.5, rel=1e-5)


def test_rates_rise_to_their_schedule(tmp_path: Path) -> None:
    config = TrainingConfig.load(training_file(tmp_path, optimizer={"warm_up_steps": 4, "schedule": "cosine"}))
    factors = [config.optimizer.rate_factor(step, 10) for step in range(10)]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    risen = [0.25, 0.5, 0.75] + [1.0] * 7
    assert factors == pytest.approx([a * b for a, b in zip(cosine, risen, strict=True)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["embeddings.tables={vdeo: {sharding: row_wise}}"], "unknown table 'vdeo'; did you mean 'video'"),
        (["embeddings.sharding=data_parallel"], "data_parallel.*optimizer adam"),
        (["embeddings.tables={tab: {sharding: row_wise, optimizer: {kind: adam}}}"], "'tab'.*adam.*data_parallel"),
        (
            ["optimizer.dense.kind=sgd", "optimizer.tables.kind=adam"],
            "tables of optimizer adam step with",
        ),
        (["precision=tf32"], "precision: tf32 is a format of GPUs"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path, "run", *changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device: cuda: torch sees no GPU here"):
        run_of(tmp_path, "run", "device=cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"balancing": {"kind": "graddrop"}}, "graddrop draws signs over the rows of a whole batch; 2 processes"),
        ({"network": {"fusion": {"kind": "learned_routing", "levels": [4], "num_modules": 2}}}, "learned_routing"),
    ],
)
def test_what_several_processes_cannot_reckon_alike_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = TrainingConfig.load(training_file(tmp_path, **changes))
    with pytest.raises(ValueError, match=message):
        refuse_across(config, Ranks(0, 2, torch.device("cpu")))
    refuse_across(config, Ranks(0, 1, torch.device("cpu")))


def test_a_table_with_too_few_rows_is_not_sharded_by_rows(tmp_path: Path) -> None:
    config = TrainingConfig.load(training_file(tmp_path, embeddings={"sharding": "row_wise"}))
    sharder = Sharder(config, Ranks(0, 4, torch.device("cpu")))
    assert sharder.types("user_id", 101) == ["row_wise"]
    with pytest.raises(ValueError, match="table 'tab' has 5 rows, too few to shard by rows over 4 processes"):
        sharder.types("tab", 5)
    automatic = TrainingConfig.load(training_file(tmp_path))
    assert Sharder(automatic, Ranks(0, 4, torch.device("cpu"))).types("tab", 5) == ["table_wise"]


def test_bfloat16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    run = run_of(tmp_path, "run", "precision=bfloat16")
    plain = run_of(tmp_path, "plain")
    assert all(weight.dtype == torch.float32 for weight in run.best_ranker().state_dict().values())
    lines = [read_log(one)[0]["train_loss_click"] for one in (run, plain)]
    assert lines[0] != lines[1]
    assert lines[0] == pytest.approx(lines[1], abs=0.02)  # bfloat16 keeps eight bits of every product


def test_losses_are_those_of_the_global_batch(finished_run: Run) -> None:
    """Two halves of a batch, whose sums another process would add: made up by hand."""
    schema, generator = finished_run.schema, torch.Generator().manual_seed(0)
    logits_BO, uniform_BT = torch.randn(10, 3, generator=generator), torch.rand(10, 3, generator=generator)
    targets_BT = (torch.rand(10, 3, generator=generator) > 0.5).float()
    observed_BT = (uniform_BT > 0.4).float()
    weights_B = torch.rand(10, generator=generator)
    whole_T = TaskLosses(schema)(logits_BO, targets_BT, observed_BT, weights_B)
    counts_T = (observed_BT * weights_B.unsqueeze(1)).sum(dim=0)
    sums: list[torch.Tensor] = []

    def count_whole(values_T: torch.Tensor) -> torch.Tensor:
        sums.append(values_T.clone())
        return values_T.copy_(counts_T) if len(sums) % 2 else values_T

    parts = [
        TaskLosses(schema, count_whole)(logits_BO[rows], targets_BT[rows], observed_BT[rows], weights_B[rows])
        for rows in (slice(0, 4), slice(4, 10))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole_T)
