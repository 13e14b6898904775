"""`make bench-networks`: CPU time of a training step of AdaTT-sp on Census-Income, against a module per expert.

    FEEDRANK_DATA=<folder with census_income_kdd> python -m benchmarks.network_speed

The other side (plain_adatt.py) has the same equations and, mapped by name, the same weights: logits and the gradients
of all tables are checked to be equal before anything is timed. A step is forward, backward and Adam on a batch of
training rows. It is timed of the network alone, on rows that the embeddings made, and of the ranker with its tables.
The plain side has torch's Adam as it comes, and then Adam with `fused=True`, which this project uses. The other
networks' steps follow, for information.

Shapes: B rows, D columns of the dense row, T tasks.
"""

import argparse
import copy
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import report
from benchmarks.command import data_folder, run_benchmark
from benchmarks.plain_adatt import NAMES, PlainAdaTT, PlainRanker
from benchmarks.ratio import Ratio
from benchmarks.training_steps import Step, load, median, paired, ranker_step
from model.features.block import BLOCKS, block_inputs
from model.fusion import AdaTTConfig
from model.fusion.levels import widths_by_level
from model.ranker import Network, NetworkConfig, Ranker
from training.compare.experiment import Experiment
from training.data.rows import Batch
from training.run.run import Run
from training.start.foreign_weights import NameMap, load_mapped
from training.step.balancing.losses import TaskLosses

CONFIG = Path("configs/census.yaml")
NETWORKS = Path("configs/experiments/census_table5.yaml")
STEPS = 5
# float32 sums of a few hundred products, in another order.
TOLERANCE = 5e-6
OURS, PLAIN, PLAIN_FUSED = "this project", "plain, torch's Adam as it comes", "plain, fused Adam"


def main() -> None:
    """Checks, times, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    data_folder("census")
    run, batches = load(CONFIG)
    torch.manual_seed(0)
    ranker = run.new_ranker()
    plain = _plain_twin(run, ranker)
    _check_equal(run, ranker, plain, batches[0])
    timed = {
        "the network alone": paired(_network_ways(run, ranker, plain, batches), turns=options.turns, steps=STEPS),
        "the ranker with its tables": paired(
            _ranker_ways(run, ranker, plain, batches), turns=options.turns, steps=STEPS
        ),
    }
    others = paired(_other_networks(run, ranker, batches), turns=options.turns, steps=STEPS)
    rows = [
        [what, way, median(values), str(Ratio.of(ways[OURS], values)) if way != OURS else ""]
        for what, ways in timed.items()
        for way, values in ways.items()
    ]
    body = [
        f"AdaTT-sp with 2 experts for each of 3 tasks (levels 128 and 64, towers 32), batches of "
        f"{run.config.batch_size}, one thread, {options.turns} paired turns of {STEPS} steps. Milliseconds of CPU time "
        "a step (median), and the ratio of this project's to it with its 95 % interval over turns.",
        "",
        *report.table(["step of", "by", "ms", "this project / it"], rows),
        "",
        "Steps of the other networks (network alone), and their ratio to that of adatt_sp:",
        "",
        *report.table(
            ["network", "ms", "it / adatt_sp"],
            [[name, median(values), str(Ratio.of(values, others["adatt_sp"]))] for name, values in others.items()],
        ),
    ]
    data = {"against_plain": timed, "networks": others}
    path = report.write("network_speed", "Training step: AdaTT-sp on Census-Income", body, data, "make bench-networks")
    print(path.read_text(encoding="utf-8"))


def _plain_twin(run: Run, ranker: Ranker) -> PlainRanker:
    """A plain ranker, whose weights `ranker` takes."""
    config, tasks = run.config.network, [task.name for task in run.schema.tasks]
    fusion, width = config.fusion, ranker.embeddings.width
    assert isinstance(fusion, AdaTTConfig)
    assert isinstance(fusion.experts_per_task, int)
    levels = widths_by_level(fusion.levels)
    network = PlainAdaTT(width, levels, len(tasks), fusion.experts_per_task, list(config.tower))
    load_mapped(ranker.network.slots(tasks), network.state_dict(), NameMap(names=NAMES), tasks)
    weights = ranker.embeddings.table_weights()
    table_of = {name: weights[table.name] for table in run.schema.tables for name in table.features}
    request, candidate = ([table_of[name] for name in block_inputs(run.schema, block).ids] for block in BLOCKS)
    return PlainRanker(request, candidate, network)


def _check_equal(run: Run, ranker: Ranker, plain: PlainRanker, batch: Batch) -> None:
    """Logits, and the norms of the tables' gradients, which any wrong gradient above them would change."""
    losses = TaskLosses(run.schema)
    seen = []
    for module in (copy.deepcopy(ranker), copy.deepcopy(plain)):
        logits_BT = module(batch.request, batch.candidate)
        losses.total(losses(logits_BT, batch.targets_BT, batch.observed_BT)).backward()  # type: ignore[no-untyped-call]
        tables = [value.grad for name, value in module.named_parameters() if "network" not in name]
        seen.append((logits_BT, torch.stack([grad.norm() for grad in tables if grad is not None]).sort().values))
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-4)


def _ways(
    run: Run, plain: nn.Module, feed: Callable[[], tuple[Sequence[object], Batch]], ours: Step
) -> dict[str, Step]:
    other = copy.deepcopy(plain)
    rate, losses = run.config.optimizer.dense.learning_rate, TaskLosses(run.schema)
    return {
        OURS: ours,
        PLAIN: _step(plain, torch.optim.Adam(plain.parameters(), lr=rate), losses, feed),
        PLAIN_FUSED: _step(other, torch.optim.Adam(other.parameters(), lr=rate, fused=True), losses, feed),
    }


def _network_ways(run: Run, ranker: Ranker, plain: PlainRanker, batches: Sequence[Batch]) -> dict[str, Step]:
    feed = _rows(ranker, batches)
    ours = copy.deepcopy(ranker.network)
    return _ways(run, copy.deepcopy(plain.network), feed, _own_step(run, ours, feed))


def _ranker_ways(run: Run, ranker: Ranker, plain: PlainRanker, batches: Sequence[Batch]) -> dict[str, Step]:
    cycle = itertools.cycle(batches)

    def feed() -> tuple[Sequence[object], Batch]:
        batch = next(cycle)
        return (batch.request, batch.candidate), batch

    return _ways(run, copy.deepcopy(plain), feed, ranker_step(run, copy.deepcopy(ranker), batches))


def _other_networks(run: Run, ranker: Ranker, batches: Sequence[Batch]) -> dict[str, Step]:
    """A step of each network of the Census experiment, adatt_sp among them."""
    feed = _rows(ranker, batches)
    steps = {}
    for entry in Experiment.from_yaml(NETWORKS).networks:
        config = NetworkConfig(fusion=entry.fusion, tower=run.config.network.tower)
        if config.has_own_embeddings:
            continue  # its rows are others, one part for each task
        network = Network(config, ranker.embeddings.width, run.schema.output_counts, run.schema.given)
        steps[entry.name] = _own_step(run, network, feed)
    return steps


def _rows(ranker: Ranker, batches: Sequence[Batch]) -> Callable[[], tuple[Sequence[object], Batch]]:
    """The rows that the embeddings make of the batches, in turn. Like them they take a gradient."""
    made = [(ranker.embeddings(b.request, b.candidate).detach().requires_grad_(), b) for b in batches]
    cycle = itertools.cycle(made)

    def feed() -> tuple[Sequence[object], Batch]:
        rows_BD, batch = next(cycle)
        rows_BD.grad = None
        return (rows_BD,), batch

    return feed


def _own_step(run: Run, network: Network, feed: Callable[[], tuple[Sequence[object], Batch]]) -> Step:
    rate = run.config.optimizer.dense.learning_rate
    return _step(network, torch.optim.Adam(network.parameters(), lr=rate, fused=True), TaskLosses(run.schema), feed)


def _step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: TaskLosses,
    feed: Callable[[], tuple[Sequence[object], Batch]],
) -> Step:
    def step() -> None:
        inputs, batch = feed()
        logits_BT: Tensor = module(*inputs)
        optimizer.zero_grad(set_to_none=True)
        total = losses.total(losses(logits_BT, batch.targets_BT, batch.observed_BT))
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


if __name__ == "__main__":
    run_benchmark(main)
