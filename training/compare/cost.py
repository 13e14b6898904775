"""Cost of a network: parameters, multiply-adds per row, CPU time in training, and the call that scoring is timed by.

Sizes are exact. Times are medians of repeated steps in this process with one thread: they depend on the machine and on
what else it does, so networks are comparable within one report alone.

Shapes: B rows, T tasks, R rows of all tables of a width W.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.artifact.module_inputs import ModuleInputs
from model.artifact.table_files import StackedTables
from model.export.scoring_module import ScoringModule, to_torchscript
from model.features.block import EncodedBlock
from training.compare.predictions import rows_of
from training.data.rows import Rows
from training.run.run import Run
from training.step.balancing.losses import TaskLosses
from training.step.optimizers import Optimizers

WARM_UP = 5
TRAINING_STEPS = 25


def sizes(run: Run) -> dict[str, int]:
    """Parameters of the dense network and of the embedding tables, and multiply-adds per row of the dense network."""
    ranker = run.new_ranker()
    return {
        "parameters": sum(weight.numel() for weight in ranker.network.parameters()),
        "embedding_parameters": sum(weight.numel() for weight in ranker.embeddings.table_weights().values()),
        "multiply_adds_per_row": multiply_adds(ranker.network, ranker.embeddings.width),
    }


def multiply_adds(network: nn.Module, input_width: int) -> int:
    """Multiply-adds of all matrix products for one row. Activations, softmax and look-ups are not counted."""
    rows = 2
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(rows, input_width))
    return int(counter.get_total_flops()) // (2 * rows)


def training_rows_per_second(run: Run) -> float:
    """Training rows per CPU second: forward, backward and step under the plain weighted loss, without reading."""
    torch.set_num_threads(1)
    rows = rows_of(run, "validation")
    return min(run.config.batch_size, len(rows)) / _step_seconds(run, rows)


def _step_seconds(run: Run, rows: Rows) -> float:
    torch.manual_seed(0)
    ranker = run.new_ranker().train()
    optimizers = Optimizers(ranker, run.config.optimizer, WARM_UP + TRAINING_STEPS)
    losses = TaskLosses(run.schema)
    batch = next(rows.batches(run.config.batch_size))

    def step(number: int) -> None:
        optimizers.start_step(number)
        losses_T = losses(ranker(batch.request, batch.candidate), batch.targets_BT, batch.observed_BT)
        optimizers.zero_grad()
        losses.total(losses_T).backward()  # type: ignore[no-untyped-call]
        optimizers.step()

    return median_seconds(step, TRAINING_STEPS, time.process_time)


def scoring_call(run: Run, candidates: int) -> Callable[[], object]:
    """A call of the scripted network of a run for one request: its own products, without look-ups."""
    ranker, rows = run.best_ranker(), rows_of(run, "validation")
    stacked = StackedTables.of(ranker.embeddings.table_weights())
    module = ScoringModule(run.schema, run.fitted, ranker.network, stacked.starts).eval()
    request, candidate = ranker.embeddings.id_maps.place(
        rows.take_batch(torch.zeros(1, dtype=torch.int64)).request,
        rows.take_batch(torch.arange(candidates) % len(rows)).candidate,
    )
    inputs = ModuleInputs(run.schema, module, stacked.stacked_RW)
    one, many = (EncodedBlock(*(tensor.numpy() for tensor in tensors)) for tensors in (request, candidate))
    with torch.no_grad():
        # Kept by what is called. Tables are not.
        return partial(to_torchscript(module), inputs.candidate_rows(many, one), inputs.request_sums(one))


def median_seconds(call: Callable[[int], Any], calls: int, clock: Callable[[], float]) -> float:
    """The median of repeated calls, each given its number, by a clock. The first calls warm up."""
    seconds = []
    for number in range(WARM_UP + calls):
        started = clock()
        call(number)
        seconds.append(clock() - started)
    return statistics.median(seconds[WARM_UP:])
