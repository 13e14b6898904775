"""`make bench-distributed`: two gloo processes beside one on the same global batches: losses, and rows a second.

    python -m benchmarks.distributed

The simulated feed of configs/simulated.yaml, one epoch of 300 steps, losses logged every 10. Row-wise and table-wise,
with SGD throughout and with the default optimizers (row-wise Adagrad, Adam). Weak scaling: two processes on twice the
rows of a step. Seconds are of training alone, validation and checkpoints included.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import report
from training.history import TRAIN_LOSS, read_log
from training.run import SUMMARY, Run
from training.simulate import simulate

BATCH, STEPS, POINTS = 256, 300, 30
SGD = {"optimizer": {"tables": {"kind": "sgd", "learning_rate": 0.05}, "dense": {"kind": "sgd", "learning_rate": 0.05}}}


def main() -> None:
    """Runs one and two processes, and writes the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(BATCH * STEPS * 14 // 12, 0, folder / "data", users=5_000, items=2_000)
        lines, data = [], {}
        for title, optimizers in (("SGD", SGD), ("default optimizers", {})):
            one = _train(folder, f"{title}-1", 1, optimizers)
            for sharding in ("row_wise", "table_wise"):
                two = _train(folder, f"{title}-{sharding}", 2, {**optimizers, "embeddings": {"sharding": sharding}})
                differences = np.abs(_losses(one) - _losses(two)).max(axis=1)
                lines.append(
                    [
                        title,
                        sharding,
                        f"{differences[:3].max():.1e}",
                        f"{differences.max():.1e}",
                        f"{_speed(one):,.0f}",
                        f"{_speed(two):,.0f}",
                    ]
                )
                data[f"{title} {sharding}"] = differences.tolist()
                print(lines[-1], flush=True)
        weak = _train(folder, "weak", 2, {"batch_size": 2 * BATCH})
        lines.append(["default optimizers", f"auto, steps of {2 * BATCH}", "", "", "", f"{_speed(weak):,.0f}"])
    body = [
        f"Largest difference of a task's training loss (means over 10 steps), rows a second; global batch {BATCH}.",
        "",
        *report.table(
            ["", "tables", "over 30 steps", f"over {STEPS} steps", "one process, rows/s", "two processes, rows/s"],
            lines,
        ),
    ]
    path = report.write("distributed", "Two processes beside one", body, data, "make bench-distributed")
    print(path.read_text(encoding="utf-8"))


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


def _speed(run: Run) -> float:
    summary = json.loads((run.path / SUMMARY).read_text(encoding="utf-8"))
    return float(summary["rows"]["train"] / summary["seconds"])


if __name__ == "__main__":
    main()
