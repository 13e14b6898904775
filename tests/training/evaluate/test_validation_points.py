"""Several points of validation an epoch: where they lie, that they change nothing else, and what each of them logs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training_data import (
    Stopped,
    assert_same_checkpoints,
    assert_same_state,
    saved_state,
    stop_at,
    training_file,
    write_feed,
)
from training.config import TrainingConfig
from training.evaluate.validation import points_of_epoch
from training.run.history import read_log, series
from training.run.run import BEST, LAST, LOG, Run
from training.train import train

FUSIONS: dict[str, dict[str, Any]] = {
    "adatt": {"kind": "adatt", "levels": [8, 4], "experts_per_task": 1},
    "bottom": {"kind": "shared_bottom", "levels": [8]},
    "routing": {"kind": "learned_routing", "levels": [8], "num_modules": 2, "reward": "log_likelihood"},
}


def run_of(folder: Path, output: str, *, fusion: str = "adatt", **top_level: Any) -> Run:
    if not (folder / "data").exists():
        write_feed(folder / "data", 600)
    network = {"fusion": FUSIONS[fusion], "tower": [4]}
    file = training_file(folder, network=network, output=str(folder / output), **top_level)
    return train(TrainingConfig.load(file), show=False)


@pytest.mark.parametrize(("evaluations", "rows", "batch_size"), [(1, 10, 3), (3, 100, 7), (4, 4, 1), (5, 6, 1)])
def test_points_lie_evenly_and_the_last_is_the_end(evaluations: int, rows: int, batch_size: int) -> None:
    points = points_of_epoch(evaluations, rows, batch_size)
    steps = math.ceil(rows / batch_size)
    assert list(points) == [math.ceil(k * steps / evaluations) for k in range(1, evaluations + 1)]
    assert sum(point.steps for point in points.values()) == steps
    # The rows of a step, counted one by one.
    sizes = [len(range(start, min(start + batch_size, rows))) for start in range(0, rows, batch_size)]
    assert [point.rows for point in points.values()] == [sum(sizes[:step]) for step in points]
    assert points[steps].rows == rows


def test_more_points_than_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluations_per_epoch: 9 is more than the 1 steps of an epoch; give 1"):
        run_of(tmp_path, "run", evaluations_per_epoch=9, batch_size=1000)


@pytest.mark.parametrize("fusion", ["adatt", "routing"])
def test_looking_more_often_trains_the_same(tmp_path: Path, fusion: str) -> None:
    one, three = (run_of(tmp_path, f"run-{n}", fusion=fusion, evaluations_per_epoch=n) for n in (1, 3))
    states = [saved_state(run.path / LAST) for run in (one, three)]
    for name in ("ranker", "optimizers", "policies"):
        assert_same_state(states[0][name], states[1][name], name)
    rare, often = read_log(one), read_log(three)
    rows = one.summary()["rows"]["train"]
    assert [line["rows"] for line in rare] == [rows, 2 * rows]
    assert [line["epoch"] for line in often] == [1, 1, 1, 2, 2, 2]
    steps = math.ceil(rows / 64)
    ends = [math.ceil(k * steps / 3) for k in (1, 2, 3)]
    for epoch in (0, 1):
        part = often[3 * epoch : 3 * epoch + 3]
        assert [line["rows"] - epoch * rows for line in part] == [min(end * 64, rows) for end in ends]
        # The epoch's end is the same point in both logs. Its training loss is the mean of its parts, step by step.
        for name, value in rare[epoch].items():
            if name.startswith("train_loss_"):
                weighted = np.average([line[name] for line in part], weights=np.diff([0, *ends]))
                assert value == pytest.approx(weighted, rel=1e-9)
            else:
                assert part[-1][name] == value, name


def test_the_best_point_may_lie_within_an_epoch(tmp_path: Path) -> None:
    # So high a rate learns the training days by heart within the first epochs.
    optimizer = {"tables": {"kind": "adam", "learning_rate": 0.3}, "dense": {"learning_rate": 0.1}}
    run = run_of(tmp_path, "run", evaluations_per_epoch=4, optimizer=optimizer, epochs=30)
    lines = read_log(run)
    best = lines[int(np.argmin([line["validation_objective"] for line in lines]))]
    summary = run.summary()
    assert (summary["best_rows"], summary["best_epoch"]) == (best["rows"], best["epoch"])
    assert summary["best_objective"] == best["validation_objective"]
    assert saved_state(run.path / BEST)["progress"]["history"][-1] == best
    assert best["rows"] % summary["rows"]["train"], "the case wants a best point within an epoch"
    # Patience is counted in epochs, whichever of their points was the best.
    assert summary["epochs"] == lines[-1]["epoch"] == best["epoch"] + 2


@pytest.mark.parametrize("checkpoint_seconds", [1e-9, 1000.0])
def test_a_run_killed_around_its_points_ends_like_one_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_seconds: float
) -> None:
    settings: dict[str, Any] = {"evaluations_per_epoch": 3, "checkpoint_seconds": checkpoint_seconds}
    whole = run_of(tmp_path, "whole", **settings)
    steps = math.ceil(whole.summary()["rows"]["train"] / 64)
    first = math.ceil(steps / 3)
    # Right before the first point, one step behind it, right before the epoch's end.
    for step in (first, first + 1, steps):
        with monkeypatch.context() as patched:
            stop_at(patched, step)
            with pytest.raises(Stopped):
                run_of(tmp_path, "killed", **settings)
    killed = run_of(tmp_path, "killed", **settings)
    assert_same_checkpoints(whole, killed)
    assert (whole.path / LOG).read_bytes() == (killed.path / LOG).read_bytes()


# What is logged


def test_networks_log_what_they_have(tmp_path: Path) -> None:
    prefixes = ("gate_entropy_level_", "experts_used_level_", "policy_perplexity_layer_", "placebo_perplexity_layer_",
                "balancing_weight_")  # fmt: skip
    uncertainty = {"kind": "uncertainty", "learning_rate": 0.1}
    found = {}
    for fusion, balancing in (("adatt", uncertainty), ("bottom", {"kind": "gradnorm"}), ("routing", {"kind": "none"})):
        lines = read_log(run_of(tmp_path, fusion, fusion=fusion, balancing=balancing))
        found[fusion] = {prefix: series(lines, prefix) for prefix in prefixes}
    tasks = ["click", "like", "watch"]
    assert {name: [list(of[prefix]) for prefix in prefixes] for name, of in found.items()} == {
        "adatt": [["1", "2"], ["1", "2"], [], [], tasks],
        "bottom": [[], [], [], [], tasks],
        "routing": [[], [], ["0"], ["0"], []],
    }
    for level in ("1", "2"):
        # Four experts, the shared one included.
        assert all(0 < value < math.log(4) for value in found["adatt"]["gate_entropy_level_"][level])
        assert all(1 < value <= 4 for value in found["adatt"]["experts_used_level_"][level])
    weights = np.array(list(found["bottom"]["balancing_weight_"].values()))
    # GradNorm's rule: their mean stays 1.
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=1e-6)
    assert np.abs(weights - 1).max() > 1e-3


def test_the_logged_factors_of_uncertainty_are_those_of_its_variances(tmp_path: Path) -> None:
    run = run_of(tmp_path, "run", balancing={"kind": "uncertainty", "learning_rate": 0.1})
    log_variances_T = saved_state(run.path / LAST)["balancing"]["log_variances_T"]
    expected = torch.exp(-log_variances_T).tolist()
    # A regression task's squared error has half a factor: the Gaussian's 1 / (2 sigma^2).
    expected[2] /= 2
    logged = series(read_log(run), "balancing_weight_")
    assert [values[-1] for values in logged.values()] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("content", ["a,b\n1,x\n", "a\n1,2\n", None])
def test_a_broken_log_is_named(tmp_path: Path, content: str | None) -> None:
    run = run_of(tmp_path, "run", epochs=1, fusion="bottom")
    (run.path / LOG).unlink()
    if content is not None:
        (run.path / LOG).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"log\.csv: not readable as the log of a run"):
        read_log(run)
