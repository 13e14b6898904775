"""A source of training rows: the interface between what reads a log and the loop that trains on it.

The sequence of global batches follows from the run's seed, the epoch and the data alone, never from the number of
processes: a position in training is (epoch, step), and a run goes on with the same rows on other processes. A process
(rank) takes its share of every global batch.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from training.data import Batch, Rows


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
        """What a checkpoint is bound to: equal for the same rows in the same order, whatever the processes."""
        ...


def share(rows: int, rank: int, world: int) -> slice:
    """The part of `rows` rows that belongs to a process; parts differ by at most one row."""
    return slice(rank * rows // world, (rank + 1) * rows // world)


def take_share(rows: Rows, rows_B: Tensor, rank: int, world: int) -> Batch:
    """A process's part of the global batch of the given row numbers, as long as every other's."""
    own_B = rows_B[share(len(rows_B), rank, world)]
    if len(own_B) == -(-len(rows_B) // world):
        return rows.take(own_B)
    batch = rows.take(torch.cat([own_B, rows_B[:1]]))
    batch.observed_BT[-1] = 0.0
    return batch
