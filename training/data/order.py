"""The order in which a stream gives its rows: arithmetic on row groups, lanes and windows, without a file in sight.

An epoch shuffles the row groups, which puts all N rows in a sequence. That is cut into L lanes whose lengths differ by
one row at most, and each lane shuffles its rows inside windows of consecutive pieces of row groups. Row i of lane l is
row i * L + l of the epoch: a global batch of B rows takes the next B of them, so that every lane gives its share and
all lanes end together. Everything follows from the seed, the epoch and the row counts. A process of W reads the lanes
r, r + W, ..., whose rows are every W-th row of the epoch, so that parts of a batch differ by one row at most.

Groups of rows that stay together (data.together) are shuffled as wholes, and a group is in the batch in whose part of
the sequence its last row lies.

Shapes: B rows, G groups.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.files import derived_seed


class Piece(NamedTuple):
    """Rows `start` to `stop` of those of a row group that are in the split."""

    group: int
    start: int
    stop: int


class Window(NamedTuple):
    """Rows `start` to `stop` of a lane, and the pieces they are read from and shuffled among."""

    number: int
    start: int
    stop: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane of an epoch: its windows in order."""

    number: int
    windows: tuple[Window, ...]

    def window_of(self, row: int) -> int:
        """The place among `windows` of the one with a row."""
        return bisect_right([window.start for window in self.windows], row) - 1


def lanes_of_epoch(rows_of_group: Sequence[int], lanes: int, window: int, seed: int, epoch: int) -> list[Lane]:
    """All lanes of an epoch. `rows_of_group` counts the rows of each row group that are in the split."""
    order = np.random.default_rng(derived_seed(seed, epoch)).permutation(len(rows_of_group)).tolist()
    ends = list(accumulate(rows_of_group[group] for group in order))
    borders = list(accumulate((lane_rows(ends[-1], lane, lanes) for lane in range(lanes)), initial=0))
    made = []
    for number, (first, last) in enumerate(pairwise(borders)):
        pieces = []
        place = bisect_right(ends, first)
        while first < last:
            before = ends[place] - rows_of_group[order[place]]
            stop = min(last, ends[place])
            if stop > first:
                pieces.append(Piece(order[place], first - before, stop - before))
            first, place = stop, place + 1
        made.append(Lane(number, tuple(_windows(pieces, window))))
    return made


def _windows(pieces: Sequence[Piece], window: int) -> list[Window]:
    made: list[Window] = []
    start = 0
    for first in range(0, len(pieces), window):
        held = tuple(pieces[first : first + window])
        stop = start + sum(piece.stop - piece.start for piece in held)
        made.append(Window(len(made), start, stop, held))
        start = stop
    return made


def lane_rows(rows: int, lane: int, lanes: int) -> int:
    """The length of a lane. This is also how many of the first `rows` rows of an epoch are the lane's."""
    return max(0, -(-(rows - lane) // lanes))


def shuffled(rows: int, seed: int, epoch: int, lane: int, window: int) -> NDArray[np.int64]:
    """The order of the rows of a window."""
    return np.random.default_rng(derived_seed(seed, epoch, lane, window)).permutation(rows)


class Groups(NamedTuple):
    """Groups of some rows: the rows of each in their order, one group after the other, and its first place and size."""

    rows_B: NDArray[np.int64]
    starts_G: NDArray[np.int64]
    sizes_G: NDArray[np.int64]

    @classmethod
    def of(cls, codes_B: NDArray[np.int64]) -> "Groups":
        """The groups of rows with equal codes. Each row with a code below 0 is one."""
        codes_B = codes_B.copy()
        is_alone_B = codes_B < 0
        codes_B[is_alone_B] = -1 - np.arange(is_alone_B.sum())
        rows_B = np.argsort(codes_B, kind="stable")
        starts_G = np.flatnonzero(np.diff(codes_B[rows_B], prepend=np.iinfo(np.int64).min))
        return cls(rows_B, starts_G, np.diff(starts_G, append=len(rows_B)))

    def refuse_larger(self, batch_size: int) -> None:
        """Raise ValueError for a group that fills more than a batch."""
        largest = int(self.sizes_G.max(initial=0))
        if largest > batch_size:
            raise ValueError(
                f"data.together: a group has {largest} rows, and batch_size is {batch_size}; raise batch_size, or name "
                "the column of smaller groups"
            )

    def picked(self, order_G: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of some groups, in this order. [B]"""
        sizes_G = self.sizes_G[order_G]
        before_G = np.cumsum(sizes_G) - sizes_G
        places_B = np.repeat(self.starts_G[order_G] - before_G, sizes_G) + np.arange(sizes_G.sum())
        picked_B: NDArray[np.int64] = self.rows_B[places_B]
        return picked_B
