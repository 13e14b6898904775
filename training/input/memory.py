"""A training split in memory as a source: every epoch all rows once, in an order drawn from the seed and the epoch."""

from collections.abc import Iterator

import torch

from training.data import Batch, Rows
from training.input.source import take_share
from training.seeds import derived_seed


class MemorySource:
    """Rows in memory, shuffled as a whole; a process holds them all and takes its share of every global batch."""

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
