"""Error for training that stopped being finite: it that names the step, the batch's extreme columns and the layer.

In: the ranker as it failed and the rows that it failed on. Out: a `Diverged` for the user.

Shapes: B rows, D columns of the dense row, Q numbers of a block, T tasks, O outputs.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.features.block import BLOCKS, block_inputs, row_columns
from model.ranker import Ranker
from model.schema import FeedSchema
from training.config import SplitName
from training.data.rows import Batch
from training.run.run import Run
from training.step.balancing.losses import TaskLosses

ADVICE = (
    "the last good checkpoint is kept. Lower the learning rates, or give wide numbers a transform, and choose another "
    "output"
)
# Standardised values beyond this are no part of any bulk. Raw ones may be, and then need a transform.
LARGE = 1e4
SHOWN = 3


class Diverged(ValueError):
    """Losses or answers that are not finite: the run's settings are at fault, and it would end so again."""


def diverged(run: Run, ranker: Ranker, batch: Batch, split: SplitName, what: str) -> Diverged:
    """The error for `what` was not finite on a batch of a split."""
    parts = [what, _first_not_finite(ranker, batch, run.schema)]
    extremes = sorted(_extremes(batch, run.schema), key=lambda found: -found[1])[:SHOWN]
    if extremes:
        numbers_B, whose = batch.numbers_B, f"the {split} split"
        if numbers_B is None:
            numbers_B, whose = torch.arange(len(batch.targets_BT)), "the batch"
        shown = ", ".join(f"{name} {value:.3g} in row {int(numbers_B[row])}" for name, value, row in extremes)
        parts.append(f"beyond {LARGE:g} after its transforms: {shown} (rows of {whose}, from 0)")
    return Diverged(f"{run.path}: {'; '.join([*parts, ADVICE])}")


def _extremes(batch: Batch, schema: FeedSchema) -> Iterator[tuple[str, float, int]]:
    """(name, largest absolute value, row of the batch) of each number and target that is large."""
    columns: list[tuple[str, Tensor]] = []
    for block, tensors in zip(BLOCKS, (batch.request, batch.candidate), strict=True):
        numbers = block_inputs(schema, block).numbers
        columns += [(f"feature '{one.name}'", tensors.numbers_BQ[:, position]) for position, one in enumerate(numbers)]
    for position, task in enumerate(schema.tasks):
        seen_B = batch.observed_BT[:, position] > 0
        columns.append((f"label of task '{task.name}'", batch.targets_BT[:, position].where(seen_B, 0.0)))
    for name, values_B in columns:
        # NaN, which no reader lets through, would count as large too.
        sizes_B = values_B.abs().nan_to_num(nan=torch.inf)
        value, row = sizes_B.max(dim=0)
        if value > LARGE:
            yield name, float(value), int(row)


def _first_not_finite(ranker: Ranker, batch: Batch, schema: FeedSchema) -> str:
    """Words for the first place on the way from the rows to the losses where a value is not finite."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            tensors = output if isinstance(output, tuple | list) else (output,)
            if not all(torch.isfinite(part).all() for part in tensors if isinstance(part, Tensor)):
                found.append(name)

        return hook

    with torch.no_grad():
        rows_BD = ranker.embeddings(batch.request, batch.candidate)
        is_finite_D = torch.isfinite(rows_BD).all(dim=0)
        if not is_finite_D.all():
            column = int((~is_finite_D).nonzero()[0])
            return f"the first value that is not finite is in the embedding of feature '{_owners(schema)[column]}'"
        # A module's children end before it does, so the first name is that of the innermost.
        hooks = [module.register_forward_hook(look(name)) for name, module in ranker.network.named_modules()]
        try:
            logits_BO = ranker.network(rows_BD)
        finally:
            for hook in hooks:
                hook.remove()
        if found:
            return f"the first value that is not finite is the output of {_words(found[0], schema)}"
        losses_T = TaskLosses(schema)(logits_BO, batch.targets_BT, batch.observed_BT, batch.weights_B)
    for task, loss in zip(schema.tasks, losses_T, strict=True):
        if not torch.isfinite(loss):
            return f"all logits are finite, the loss of task '{task.name}' is not"
    return "all outputs and losses of single tasks are finite"


def _owners(schema: FeedSchema) -> list[str]:
    """The feature that each column of the dense row comes from."""
    return [name for name, width in row_columns(schema) for _ in range(width)]


def _words(name: str, schema: FeedSchema) -> str:
    """A module of the network by its job: `towers.1.layers.0` is part of the second task's tower."""
    part, _, rest = name.partition(".")
    if part == "towers":
        position, _, rest = rest.partition(".")
        return f"the tower of task '{schema.tasks[int(position)].name}'" + (f" ({rest})" if rest else "")
    what = "the cross layers" if part == "cross" else "the fusion network"
    return what + (f" ({rest})" if rest else "")
