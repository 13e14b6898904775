"""A source of training rows: the interface between what reads a log and the loop that trains on it.

The sequence of global batches follows from the run's seed, the epoch and the data alone, never from the number of
processes: a position in training is (epoch, step), and a run goes on with the same rows on other processes. A process
(rank) takes its share of every global batch.
"""

from collections.abc import Iterator
from typing import Protocol

import torch

from training.data import Batch


class Source(Protocol):
    """This process's part of an endless supply of epochs."""

    rows: int
    """Training rows of an epoch, all processes together."""
    steps: int
    """Steps of an epoch, the same on every process: rows / batch_size, rounded up."""

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """This process's part of each global batch of an epoch from `first_step` (0-based) on, nothing before it read
        again. A part is never empty: where a global batch has fewer rows than there are processes it is
        `unobserved`."""
        ...

    def fingerprint(self) -> str:
        """What a checkpoint is bound to: equal for the same rows in the same order, whatever the processes."""
        ...


def share(rows: int, rank: int, world: int) -> slice:
    """The part of `rows` rows that belongs to a process; parts differ by at most one row."""
    return slice(rank * rows // world, (rank + 1) * rows // world)


def unobserved(batch: Batch) -> Batch:
    """The batch with no label that counts: it moves no weight, and stands where a process has no row of its own."""
    return batch._replace(observed_BT=torch.zeros_like(batch.observed_BT))
