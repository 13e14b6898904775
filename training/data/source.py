"""A source of training rows: the interface between what reads a log and the loop that trains on it.

The sequence of global batches follows from the run's seed, the epoch and the data alone, never from the number of
processes: a position in training is (epoch, step), and a run goes on with the same rows on other processes. A process
(rank) takes its share of every global batch.

`MemorySource` has a split in memory: every epoch all rows once, in an order drawn from the seed and the epoch.

Shapes: B rows, K single-id features, L list features, V list values, Q numbers, T tasks.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from model.features.block import BlockTensors
from training.data.rows import Batch, Rows
from training.files import derived_seed


class Source(Protocol):
    """This process's part of an endless supply of epochs."""

    rows: int
    """Training rows of an epoch, all processes together."""
    steps: int
    """Steps of an epoch, the same on every process: rows / batch_size, rounded up."""

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """This process's part of each global batch of an epoch from `first_step` (0-based) on, nothing before it read
        again. All processes' parts of a global batch have the same number of rows, which TorchRec's exchanges ask for:
        a shorter one ends in a row that does not count (`observed_BT` 0 for all tasks)."""
        ...

    def fingerprint(self) -> str:
        """Fingerprint that a checkpoint is bound to: equal for the same rows in the same order, with any
        processes."""
        ...


def share(rows: int, rank: int, world: int) -> slice:
    """The part of `rows` rows that belongs to a process. Parts differ by at most one row."""
    return slice(rank * rows // world, (rank + 1) * rows // world)


def take_share(rows: Rows, rows_B: Tensor, rank: int, world: int) -> Batch:
    """A process's part of the global batch of the given row numbers, as long as every other's."""
    return filled(rows.take_batch(rows_B[share(len(rows_B), rank, world)]), -(-len(rows_B) // world))


def filled(batch: Batch, rows: int) -> Batch:
    """The batch with rows that do not count behind its own, `rows` in all: ids unknown, lists empty, labels unobserved.
    They move no weight."""
    more = rows - len(batch.targets_BT)
    if not more:
        return batch

    def longer(values_B: Tensor) -> Tensor:
        return torch.cat([values_B, values_B.new_zeros(more, *values_B.shape[1:])])

    def longer_block(block: BlockTensors) -> BlockTensors:
        lengths_LB = functional.pad(block.list_lengths_LB, (0, more))
        return BlockTensors(longer(block.ids_BK), block.list_values_V, lengths_LB, longer(block.numbers_BQ))

    return Batch(
        longer_block(batch.request),
        longer_block(batch.candidate),
        longer(batch.targets_BT),
        longer(batch.observed_BT),
        None if batch.weights_B is None else longer(batch.weights_B),
        None if batch.numbers_B is None else longer(batch.numbers_B),
    )


class MemorySource:
    """Rows in memory, shuffled as a whole. A process has them all and takes its share of every global batch."""

    def __init__(self, rows: Rows, batch_size: int, seed: int, *, rank: int = 0, world: int = 1) -> None:
        """`batch_size` is that of the global batch."""
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._rank, self._world = rank, world
        self.rows = len(rows)
        self.steps = -(-len(rows) // batch_size)

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """This process's part of each global batch (source.py)."""
        shuffling = torch.Generator().manual_seed(derived_seed(self._seed, epoch))
        order = torch.randperm(self.rows, generator=shuffling)
        for rows_B in torch.split(order, self._batch_size)[first_step:]:
            yield take_share(self._rows, rows_B, self._rank, self._world)

    def fingerprint(self) -> str:
        """A hash over every row and label."""
        return self._rows.fingerprint()
