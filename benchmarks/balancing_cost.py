"""`make bench-balancing`: CPU time of a training step with every balancing method, relative to `none`.

    FEEDRANK_DATA=<folder with kuairand_pure> python -m benchmarks.balancing_cost

The ranker, its tables, its seven tasks and the batches are those of configs/kuairand.yaml. Every method has a ranker of
its own, with the same weights at the start, and all take the same batches in paired turns.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks import report
from benchmarks.command import data_folder, run_benchmark
from benchmarks.ratio import Ratio
from benchmarks.training_steps import Step, load, median, paired, ranker_step
from training.run.run import Run
from training.step.balancing import KINDS, Balancing, BalancingConfig
from training.step.balancing.losses import TaskLosses

CONFIG = Path("configs/kuairand.yaml")
STEPS = 3


def main() -> None:
    """Times, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=25)
    options = parser.parse_args()
    data_folder("kuairand")
    run, batches = load(CONFIG)
    ways: dict[str, Step] = {}
    for kind in KINDS:
        torch.manual_seed(0)
        ways[kind] = ranker_step(run, run.new_ranker(), batches, _balancing(kind, run))
    timed = paired(ways, turns=options.turns, steps=STEPS)
    body = [
        f"A step of {CONFIG} ({len(run.schema.tasks)} tasks, {run.config.network.fusion.kind}, batches of "
        f"{run.config.batch_size}, one thread): milliseconds of CPU time (median of {options.turns} paired turns of "
        f"{STEPS} steps), and the ratio to `none` with its 95 % interval over turns.",
        "",
        *report.table(
            ["balancing", "ms", "it / none"],
            [[kind, median(values), str(Ratio.of(values, timed["none"]))] for kind, values in timed.items()],
        ),
    ]
    path = report.write(
        "balancing_cost", "Cost of balancing: KuaiRand-Pure", body, {"milliseconds": timed}, "make bench-balancing"
    )
    print(path.read_text(encoding="utf-8"))


def _balancing(kind: str, run: Run) -> Balancing:
    config: Any = TypeAdapter(BalancingConfig).validate_python({"kind": kind})
    balancing: Balancing = config.build(TaskLosses(run.schema), run.config.seed)
    return balancing


if __name__ == "__main__":
    run_benchmark(main)
