"""Training steps timed against each other: real batches, CPU time of this process, one thread, paired turns.

In a turn every way runs a few steps, one way after the other, and the next turn runs them in the opposite order: what
the machine does meanwhile meets all of them alike. A ratio is taken within a turn.

Shapes: B rows, D columns of the dense row, T tasks.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from model.ranker import Ranker
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Batch, Rows, fit_features, read_splits
from training.distributed.ranks import ALONE
from training.run.run import Run
from training.step.balancing import Balancing
from training.step.balancing.losses import TaskLosses
from training.step.optimizers import Optimizers
from training.step.slots import ManagedIds

Step = Callable[[], None]
NUM_BATCHES = 16


def paired(ways: Mapping[str, Step], *, turns: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds of CPU time a step, turn by turn, in `turns` turns of `steps` steps."""
    for step in ways.values():
        for _ in range(steps):
            step()
    milliseconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            started = time.process_time()
            for _ in range(steps):
                ways[name]()
            milliseconds[name].append(1000 * (time.process_time() - started) / steps)
    return milliseconds


def median(milliseconds: Sequence[float]) -> str:
    """The median, as a table shows it."""
    return f"{statistics.median(milliseconds):.2f}"


def load(path: Path, changes: Sequence[str] = (), *, num_batches: int = NUM_BATCHES) -> tuple[Run, list[Batch]]:
    """A training file's run (with `key=value` changes), of which nothing is written, and its first training batches in
    random order, `num_batches` at most."""
    torch.set_num_threads(1)
    config = TrainingConfig.load(path, changes)
    schema = config.feed_schema()
    table = read_splits(config.data, schema, ("train",))["train"]
    columns = columns_from_arrow(schema, table)
    run = Run(config.output, config, schema, fit_features(schema, table, columns))
    rows = Rows.encode(schema, run.encoder, table, columns, as_served=False)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return run, [rows.take_batch(part) for part in torch.split(order, config.batch_size)[:num_batches]]


def ranker_step(
    run: Run,
    ranker: Ranker,
    batches: Iterable[Batch],
    balancing: Balancing | None = None,
    optimizers: Optimizers | None = None,
) -> Step:
    """A step of training: forward, backward and the optimizers, as training/train.py makes it."""
    balancing = balancing or Balancing(TaskLosses(run.schema))
    optimizers = optimizers or Optimizers(ranker, run.config.optimizer, 1, balancing)
    ranker.train()
    managed_ids = ManagedIds(ranker.embeddings, run.config.embeddings.slots, ALONE)
    numbers, feed = itertools.count(), itertools.cycle(batches)

    def step() -> None:
        batch, number = next(feed), next(numbers)
        optimizers.start_step(0)
        rows_BD = ranker.embeddings(batch.request, batch.candidate)
        losses_T = balancing.losses(ranker.network(rows_BD), batch.targets_BT, batch.observed_BT)
        total = balancing.total(losses_T)
        optimizers.zero_grad()
        balancing.backward(losses_T, total, rows_BD, ranker.network, number)
        optimizers.step()
        managed_ids.after_step(number, batch, optimizers)
        balancing.after_step()

    return step
