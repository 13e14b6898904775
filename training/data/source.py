"""A source of training rows: the interface between what reads a log and the loop that trains on it.

The sequence of global batches follows from the run's seed, the epoch and the data alone, never from the number of
processes: a position in training is (epoch, step), and a run goes on with the same rows on other processes. A process
(rank) takes its share of every global batch.

`MemorySource` has a split in memory: every epoch all rows once, in an order drawn from the seed and the epoch.
`WholeGroups` has the same with groups of rows that stay together.

Shapes: B rows, G groups, K single-id features, L list features, V list values, Q numbers, T tasks.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model.features.block import BlockTensors
from training.data.order import Groups
from training.data.rows import Batch, Rows
from training.files import derived_seed
from training.wording import counted


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
        None if batch.groups_B is None else longer(batch.groups_B),
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


class WholeGroups:
    """A split in memory whose groups of rows, a request's candidates for example, stay whole in their batches
    (data.together).

    An epoch has the groups in an order drawn from the seed and the epoch, the rows of each in the order of the log. A
    group is in the batch in whose part of the sequence its last row lies. Batch i has the groups that end in rows
    i * batch_size to (i + 1) * batch_size. So an epoch has as many steps as one of single rows, and a batch has
    batch_size rows but for less than a group at either end. Of several processes each takes whole groups too, by the
    same rule within the batch."""

    def __init__(self, rows: Rows, batch_size: int, seed: int, *, rank: int = 0, world: int = 1) -> None:
        """`batch_size` is that of the global batch. Raises ValueError for a group that is larger."""
        assert rows.groups_B is not None
        self._rows = rows
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world = rank, world
        self.rows = len(rows)
        self.steps = -(-self.rows // batch_size)
        self._groups = Groups.of(rows.groups_B.numpy())
        self._groups.refuse_larger(batch_size)

    def described(self) -> str:
        """Sentence on the groups, and the rows that are alone and have nothing to be compared with."""
        sizes_G = self._groups.sizes_G
        rows = f"{counted(self.rows, 'training row')} in {counted(len(sizes_G), 'group')}"
        return f"{rows}, {counted(int((sizes_G == 1).sum()), 'row')} of them alone in theirs"

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """This process's groups of each global batch (source.py)."""
        shuffling = torch.Generator().manual_seed(derived_seed(self._seed, epoch))
        order_G = torch.randperm(len(self._groups.sizes_G), generator=shuffling).numpy()
        ends_G = np.cumsum(self._groups.sizes_G[order_G])
        # The first group of each batch: the first that ends in its part of the sequence.
        borders = np.searchsorted(ends_G, np.arange(self.steps + 1) * self._batch_size, side="right").tolist()
        for step in range(first_step, self.steps):
            yield self._share(order_G[borders[step] : borders[step + 1]])

    def _share(self, order_G: NDArray[np.int64]) -> Batch:
        """This process's part of the batch of some groups."""
        sizes_G = self._groups.sizes_G[order_G]
        ends_G = np.cumsum(sizes_G)
        process_G = (ends_G - 1) * self._world // ends_G[-1]
        longest = int(np.bincount(process_G, sizes_G, self._world).max())
        is_own_G = process_G == self._rank
        batch = self._rows.take_batch(torch.from_numpy(self._groups.picked(order_G[is_own_G])))
        own_B = np.repeat(np.arange(is_own_G.sum()), sizes_G[is_own_G])
        return filled(batch._replace(groups_B=torch.from_numpy(own_B)), longest)

    def fingerprint(self) -> str:
        """A hash over every row, its group and its label."""
        return self._rows.fingerprint()
