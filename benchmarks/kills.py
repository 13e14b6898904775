"""`make bench-kills`: kill -9 at random moments, a checkpoint among them. The end is that of a run left alone.

    python -m benchmarks.kills [--kills 20] [--processes 1] [--seed 0]

A run on the simulated feed writes checkpoints without pause, so that most kills fall into one. Each start after a kill
resumes. At the end every tensor of network, tables and optimizers is compared bit for bit with the run left alone.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from benchmarks import report
from benchmarks.command import run_benchmark
from training.datasets.simulate import simulate
from training.run import state_file, table_files
from training.run.checkpoints import FOLDER, STATE
from training.run.run import LAST

# Some 600 steps, of which a start and its kill take a dozen.
ROWS, BATCH, EPOCHS = 20_000, 256, 9


def main() -> None:
    """Kills, compares, writes what was seen. Raises RuntimeError where a bit differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(ROWS, 0, folder / "data", users=500, items=300)
        # The run left alone writes at the points of validation only: when it writes must not matter.
        killed, whole = _file(folder, "killed", 0.001), _file(folder, "whole", 1000.0)
        kills, in_writing = 0, 0
        while kills < options.kills:
            process = _start(killed, options.processes)
            before = os.path.realpath(folder / "killed" / LAST)
            while process.poll() is None and os.path.realpath(folder / "killed" / LAST) == before:
                time.sleep(0.001)
            if process.poll() is not None:
                raise RuntimeError(f"the run ended after {kills} kills: give it more epochs")
            time.sleep(draw.uniform(0.0, 0.3))
            children = psutil.Process(process.pid).children(recursive=True)
            for number in (process.pid, *(child.pid for child in children)):
                os.kill(number, signal.SIGKILL)
            process.wait()
            kills += 1
            in_writing += any((folder / "killed" / FOLDER).glob(".*.partial"))
            print(f"kill {kills} at step {Path(os.path.realpath(folder / 'killed' / LAST)).name}", flush=True)
        for file in (killed, whole):
            if _start(file, options.processes).wait():
                raise RuntimeError(f"{file}: did not end well")
        tensors = _compare(folder / "killed" / LAST, folder / "whole" / LAST)
    body = [
        f"{kills} kills of {options.processes} process(es), {in_writing} of them while a checkpoint was being written: "
        f"all {tensors} tensors of network, tables and optimizers equal those of the run left alone, bit for bit."
    ]
    data = {"kills": kills, "in_writing": in_writing, "tensors": tensors, "processes": options.processes}
    path = report.write("kills", "kill -9 at random moments", body, data, "make bench-kills")
    print(path.read_text(encoding="utf-8"))


def _file(folder: Path, run: str, checkpoint_seconds: float) -> Path:
    content = yaml.safe_load(Path("configs/simulated.yaml").read_text(encoding="utf-8"))
    content |= {"output": str(folder / run), "epochs": EPOCHS, "batch_size": BATCH, "early_stopping": None}
    content |= {"checkpoint_seconds": checkpoint_seconds}
    content["data"]["path"] = str(folder / "data")
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _start(file: Path, processes: int) -> subprocess.Popen[bytes]:
    command = ["-m", "training", "train", str(file)]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.DEVNULL)


def _compare(one: Path, other: Path) -> int:
    """The number of tensors that were compared."""
    sides = []
    for path in (one, other):
        state = state_file.load(path / STATE)
        parts = {name: state[name] for name in ("network", "optimizers", "balancing", "random")}
        sides.append(_tensors(parts) + sorted(table_files.read_whole(path).items()))
    for (name, left), (again, right) in zip(*sides, strict=True):
        if name != again or not torch.equal(left, right):
            raise RuntimeError(f"{name} differs from that of the run left alone")
    return len(sides[0])


def _tensors(value: Any, place: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(place, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [found for name, entry in items for found in _tensors(entry, f"{place}/{name}")]


if __name__ == "__main__":
    run_benchmark(main)
