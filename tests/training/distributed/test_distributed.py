"""Several real processes over gloo: they compute what one does, and either can go on with what they save.

One launch of torchrun takes some ten seconds, so each scenario here is one launch that proves several things.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.training.run.resaved import resave
from tests.training_data import (
    SCHEMA,
    assert_same_checkpoints,
    assert_same_state,
    saved_state,
    training_file,
    write_feed,
)
from training.config import TrainingConfig
from training.distributed.sharding import PLAN
from training.run.checkpoints import verified
from training.run.history import TRAIN_LOSS, read_log
from training.run.run import LAST, LOG, Run
from training.train import train

pytestmark = pytest.mark.slow

TIMEOUT = 280
# Three groups of one optimizer: two of sharded tables, by rows and whole, and one with a copy in each process.
TABLES: dict[str, Any] = {
    "video": {"sharding": "row_wise", "optimizer": {"kind": "adagrad"}},
    "user_id": {"sharding": "table_wise"},
    "tab": {"sharding": "data_parallel", "optimizer": {"kind": "adam", "learning_rate": 0.01}},
}


def launch(config: Path, *changes: str, processes: int = 2, restarts: int = 0) -> subprocess.Popen[str]:
    """torchrun on a training file, on a port of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [f"--max-restarts={restarts}", "-m", "training", "train", str(config)]
    for change in changes:
        command += ["--set", change]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> str:
    """The lines of the processes on stderr. They must have ended well."""
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors[-3000:]
    return errors


def losses(run: Run) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Training losses, validation errors and gate numbers of every point."""
    return np.array([list(line.values()) for line in read_log(run)])


def assert_close_runs(one: Run, other: Run, tolerance: float) -> None:
    np.testing.assert_allclose(losses(one), losses(other), rtol=0, atol=tolerance)
    first, second = saved_state(one.path / LAST), saved_state(other.path / LAST)
    assert list(first["ranker"]) == list(second["ranker"])
    for name, weights in first["ranker"].items():
        np.testing.assert_allclose(weights, second["ranker"][name], rtol=0, atol=10 * tolerance, err_msg=name)


def resave_by_two(folder: Path, out: Path) -> None:
    """Two processes read what a run's folder holds and write it into another."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.training.run.resaved", str(folder), str(out)]
    subprocess.run(command, check=True, timeout=TIMEOUT, capture_output=True)


def wait_for_a_checkpoint(process: subprocess.Popen[str], run: Path, after: str = "") -> None:
    """Return as soon as a checkpoint is whole, other than `after`."""
    deadline = time.monotonic() + TIMEOUT
    while not (run / LAST).is_symlink() or os.readlink(run / LAST) == after:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes that torchrun has started."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "training" in child.cmdline() and "torch.distributed.run" not in child.cmdline()
    ]


def test_two_processes_reckon_what_one_does_and_export_reads_them(tmp_path: Path) -> None:
    """Default optimizers, with clipping, warm-up and cosine. One table is by rows, one whole, one with a copy in each
    process, one as the planner likes. A task is masked. The last batch has 399 - 6 * 64 = 15 rows, one of which lacks a
    partner."""
    write_feed(tmp_path / "data", 600)
    optimizer = {"clip_norm": 0.05, "warm_up_steps": 5, "schedule": "cosine"}
    config = training_file(tmp_path, embeddings={"tables": TABLES}, optimizer=optimizer)
    said = finish(launch(config))
    assert "row_wise" in said
    assert "Traceback" not in said
    assert said.count("epoch 2: validation") <= 1, "one process alone speaks"
    two = Run.open(tmp_path / "run")
    assert "table_wise" in (two.path / PLAN).read_text(encoding="utf-8")
    assert two.summary()["processes"] == 2
    one = train(TrainingConfig.load(config, [f"output={tmp_path}/one"]), show=False)
    assert_close_runs(one, two, 1e-6)  # the sums of a batch in another order
    assert not two.best_ranker().training


def test_two_processes_give_slots_to_the_ids_that_one_does(tmp_path: Path) -> None:
    """Tables by rows, whole, and with a copy in each process. Two processes go on with what one saved between
    intervals."""
    write_feed(tmp_path / "data", 600)
    schema = SCHEMA.replace("vocabulary: fitted, dim: 4", "slots: 12, dim: 4").replace("buckets: 100", "slots: 30")
    schema = schema.replace("dtype: string, vocabulary: [home, follow]", "dtype: string, slots: 2")
    slots = {"policy": "lru", "interval": 3}
    config = training_file(tmp_path, schema=schema, batch_size=16, embeddings={"tables": TABLES, "slots": slots})
    assert "another's row" in finish(launch(config))
    one = train(TrainingConfig.load(config, [f"output={tmp_path}/one"]), show=False)
    two = Run.open(tmp_path / "run")
    assert_close_runs(one, two, 1e-6)  # the sums of a batch in another order
    states = [saved_state(run.path / LAST)["slots"] for run in (one, two)]
    assert_same_state(states[0], states[1])
    assert states[0]["video"]["turns"] > 10
    assert states[0]["video"]["counts"].sum() > 0, "saved between turns"
    resave(one.path, tmp_path / "by-one")
    resave_by_two(tmp_path / "by-one", tmp_path / "by-two")
    for name in ("by-one", "by-two"):
        assert_same_state(saved_state(tmp_path / name / LAST)["slots"], states[0], name)


@pytest.mark.parametrize("kind", ["gradnorm", "pcgrad"])
def test_two_processes_balance_tasks_as_one_does(kind: str, tmp_path: Path) -> None:
    """By the norms of the tasks' gradients, by the gradients themselves: each of the whole batch."""
    write_feed(tmp_path / "data", 600)
    config = training_file(tmp_path, balancing={"kind": kind})
    finish(launch(config))
    one = train(TrainingConfig.load(config, [f"output={tmp_path}/one"]), show=False)
    plain = train(TrainingConfig.load(config, [f"output={tmp_path}/plain", "balancing={kind: none}"]), show=False)
    assert_close_runs(one, Run.open(tmp_path / "run"), 1e-6)  # the sums of a batch in another order
    ends = [{name: value for name, value in read_log(run)[-1].items() if TRAIN_LOSS in name} for run in (one, plain)]
    assert ends[0].keys() == ends[1].keys() != set()
    assert ends[0] != ends[1], "the method changes nothing here"


def test_a_killed_process_costs_nothing_and_a_checkpoint_serves_any_number_of_processes(tmp_path: Path) -> None:
    """SIGTERM to one process: both save the step that they agree on, and end. kill -9 of one: torchrun starts both
    again, and the end is that of a run left alone, bit for bit, though that one exchanges each batch's ids within its
    step. Then 2 -> 1 -> 2 processes: each saves what it has read."""
    write_feed(tmp_path / "data", 1200)
    often: dict[str, Any] = {"evaluations_per_epoch": 3, "checkpoint_seconds": 0.2}
    config = training_file(tmp_path, epochs=4, early_stopping=None, embeddings={"tables": TABLES}, **often)
    told = launch(config)
    wait_for_a_checkpoint(told, tmp_path / "run")
    workers(told)[-1].terminate()
    _, said = told.communicate(timeout=TIMEOUT)
    assert said.count("saved at epoch") == 1
    assert said.count("ended by a signal; what was saved is kept") == 2
    assert "exitcode  : 143" in said  # of each, as torchrun says it
    killed = launch(config, restarts=3)
    wait_for_a_checkpoint(killed, tmp_path / "run", os.readlink(tmp_path / "run" / LAST))
    workers(killed)[-1].kill()
    said = finish(killed)
    assert "resuming" in said
    assert "pipelined steps" in said
    assert "plain steps" in finish(launch(config, f"output={tmp_path}/whole", "embeddings.pipeline=false"))
    runs = [Run.open(tmp_path / name) for name in ("run", "whole")]
    assert_same_checkpoints(*runs)
    assert (runs[0].path / LOG).read_bytes() == (runs[1].path / LOG).read_bytes()

    shutil.copytree(runs[0].path, tmp_path / "again", symlinks=True)
    resave(tmp_path / "again", tmp_path / "by-one")
    resave_by_two(tmp_path / "by-one", tmp_path / "by-two")
    one, two = (verified(tmp_path / name / LAST)["processes"] for name in ("by-one", "by-two"))
    assert (one, two) == (1, 2)
    original = saved_state(runs[0].path / LAST)
    for name in ("by-one", "by-two"):
        assert_same_state(saved_state(tmp_path / name / LAST), original, name)
