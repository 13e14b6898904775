"""`make bench-distributed`: two gloo processes beside one on the same global batches: losses, and rows a second.

    python -m benchmarks.distributed

The simulated feed of configs/simulated.yaml, one epoch of 300 steps, losses logged every 10. Row-wise and table-wise,
with SGD throughout and with the default optimizers (row-wise Adagrad, Adam), beside the difference of one process
that sums its batch in two halves: what rounding alone does. Then a run that two processes begin, one goes on with from
its checkpoint of step 100 and two again from step 200, each beside the run that did not change. Last the scaling:
seconds (of training alone) and CPU time of two epochs, which are the difference of a run of three and a run of one.

Shapes: B rows, D columns of the dense row, T tasks.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks import report
from benchmarks.command import run_benchmark
from training.config import TrainingConfig
from training.datasets.simulate import simulate
from training.distributed.ranks import ALONE
from training.fit.splits import open_splits
from training.run.checkpoints import FOLDER
from training.run.history import TRAIN_LOSS, read_log
from training.run.run import SUMMARY, Run
from training.step.training import Training

BATCH, STEPS, POINTS = 256, 300, 30
AT_ONCE, EPOCHS = 1024, (1, 3)  # of the scaling
SGD = {"optimizer": {"tables": {"kind": "sgd", "learning_rate": 0.05}, "dense": {"kind": "sgd", "learning_rate": 0.05}}}


def main() -> None:
    """Run one and two processes, and write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(BATCH * STEPS * 14 // 12, 0, folder / "data", users=5_000, items=2_000)
        lines, data = [], {}
        for title, optimizers in (("SGD", SGD), ("default optimizers", {})):
            one = _train(folder, f"{title}-1", 1, optimizers)
            for sharding in ("row_wise", "table_wise"):
                two = _train(folder, f"{title}-{sharding}", 2, {**optimizers, "embeddings": {"sharding": sharding}})
                differences = np.abs(_losses(one) - _losses(two)).max(axis=1)
                lines.append([title, f"two processes, {sharding}", *_shown(differences)])
                data[f"{title} {sharding}"] = differences.tolist()
                print(lines[-1], flush=True)
            differences = np.abs(_losses(one) - _in_halves(folder / f"{title}-1.yaml")).max(axis=1)
            lines.append([title, "one process, two halves", *_shown(differences)])
            data[f"{title} halves"] = differences.tolist()
            print(lines[-1], flush=True)
        moved = _moved(folder)
        print(moved, flush=True)
        scaling = _scaling(folder)
    body = [
        f"Largest difference of a task's training loss (means over 10 steps) from one process, global batch {BATCH}.",
        "",
        *report.table(["", "beside one process", "over 30 steps", f"over {STEPS} steps"], lines),
        "",
        "The halves are those of the dense part's sums. The rows of a table are added up in one order everywhere.",
        "",
        "A run moved from two processes to one and back (row-wise tables, default optimizers), over the 30 steps "
        f"after each change: {moved['2 -> 1']:.1e} and {moved['1 -> 2']:.1e} from the run that did not change.",
        "",
        f"Scaling, two epochs of {BATCH * STEPS:,} rows with validation, by gloo, one thread a process:",
        "",
        *report.table(
            ["processes", "rows of a step", "rows a second", "over one process", "rows per CPU second", "over one"],
            [
                [
                    one["processes"],
                    f"{one['batch']:,}",
                    f"{one['speed']:,.0f}",
                    f"{one['speed'] / scaling[0]['speed']:.2f}",
                    f"{one['cpu_speed']:,.0f}",
                    f"{one['cpu_speed'] / scaling[0]['cpu_speed']:.2f}",
                ]
                for one in scaling
            ],
        ),
    ]
    data |= {"moved": moved, "scaling": scaling}
    path = report.write("distributed", "Two processes beside one", body, data, "make bench-distributed")
    print(path.read_text(encoding="utf-8"))


def _shown(differences: np.ndarray[Any, np.dtype[np.float64]]) -> list[str]:
    return [f"{differences[:3].max():.1e}", f"{differences.max():.1e}"]


def _in_halves(file: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The losses of a run's steps where a batch's halves go through the network one after the other."""
    torch.set_num_threads(1)
    config = TrainingConfig.load(file)
    config = config.model_copy(update={"output": config.output.with_name("halves")})
    schema = config.feed_schema()
    splits = open_splits(config, schema, show=False)
    run = Run(config.output, config, schema, splits.fitted())
    source, _ = splits.encoded(run.encoder)
    training = Training(run, source, ALONE)
    ranker, optimizers = training.ranker.train(), training.optimizers
    found = []
    for step, batch in enumerate(source.batches(0, 0)):
        optimizers.start_step(step)
        rows_BD = ranker.embeddings(batch.request, batch.candidate)
        leaf_BD = rows_BD.detach().requires_grad_()
        optimizers.zero_grad()
        counts_T = batch.observed_BT.sum(dim=0)
        losses_T = torch.zeros(len(schema.tasks))
        middle = len(rows_BD) // 2
        for half in (slice(None, middle), slice(middle, None)):
            targets_BT, observed_BT = batch.targets_BT[half], batch.observed_BT[half]
            part_T = training.losses(ranker.network(leaf_BD[half]), targets_BT, observed_BT)
            part_T = part_T * (observed_BT.sum(dim=0) / counts_T.clamp(min=1.0))
            training.losses.total(part_T).backward()  # type: ignore[no-untyped-call]
            losses_T += part_T.detach()
        rows_BD.backward(leaf_BD.grad)
        optimizers.step()
        found.append(losses_T.double().numpy())
    of_step = np.array(found, dtype=np.float64)
    return np.stack([of_point.mean(axis=0) for of_point in np.split(of_step, POINTS)])


def _moved(folder: Path) -> dict[str, float]:
    """The largest differences over 30 steps after going on with another number of processes."""
    changes = {"checkpoints_kept": 2 * POINTS, "embeddings": {"sharding": "row_wise"}}
    every = STEPS // POINTS
    losses = [_losses(_train(folder, "moved", 2, changes))]
    found = {}
    for name, point, processes in (("2 -> 1", POINTS // 3, 1), ("1 -> 2", 2 * POINTS // 3, 2)):
        for path in (folder / "moved" / FOLDER).glob("[0-9]*"):
            if int(path.name) > point * every:
                shutil.rmtree(path)
        losses.append(_losses(_train(folder, "moved", processes, changes)))
        after = slice(point, point + 30 // every)
        assert np.array_equal(losses[-1][:point], losses[-2][:point]), "not gone on with"
        found[name] = float(np.abs(losses[-1][after] - losses[-2][after]).max())
    return found


def _scaling(folder: Path) -> list[dict[str, Any]]:
    """Rows per second and per CPU second: one process, two with its global batch, two with twice as much."""
    found = []
    for processes, batch in ((1, AT_ONCE), (2, AT_ONCE), (2, 2 * AT_ONCE)):
        spent = []
        for epochs in EPOCHS:
            before = _cpu_of_children()
            changes = {"batch_size": batch, "epochs": epochs, "evaluations_per_epoch": 1, "early_stopping": None}
            run = _train(folder, f"scaling-{processes}-{batch}-{epochs}", processes, changes)
            summary = json.loads((run.path / SUMMARY).read_text(encoding="utf-8"))
            spent.append((summary["seconds"], _cpu_of_children() - before))
        rows = (EPOCHS[1] - EPOCHS[0]) * summary["rows"]["train"]
        seconds, cpu = (long - short for short, long in zip(*spent, strict=True))
        found.append({"processes": str(processes), "batch": batch, "speed": rows / seconds, "cpu_speed": rows / cpu})
        print(found[-1], flush=True)
    return found


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _train(folder: Path, name: str, processes: int, changes: Mapping[str, Any]) -> Run:
    content = yaml.safe_load(Path("configs/simulated.yaml").read_text(encoding="utf-8"))
    content |= {"output": str(folder / name), "epochs": 1, "batch_size": BATCH, "evaluations_per_epoch": POINTS}
    content |= {"checkpoint_seconds": 1000, **changes}
    content["data"]["path"] = str(folder / "data")
    if "optimizer" not in changes:
        del content["optimizer"]
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    start = ["-m", "training", "train", str(file)]
    if processes > 1:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *start]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *start], check=True, env=environment, stderr=subprocess.DEVNULL)
    return Run.open(folder / name)


def _losses(run: Run) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([[value for name, value in line.items() if name.startswith(TRAIN_LOSS)] for line in read_log(run)])


if __name__ == "__main__":
    run_benchmark(main)
