"""Equal rows of an encoded block: each is scored once, so that equal candidates get the same bits at every position.

In: an encoded block. Out: `Distinct`, or None where no two rows are equal, the usual case, which costs a hash of every
row and a sort of the hashes. A matrix product computes the last rows of a batch by another kernel than the rows before
them, so that equal rows would differ in their last digits. Equal means equal numbers, ids, and lists in their order.

Rows of one hash are compared before they are taken for equal. Multipliers of the hash are drawn once a process: no
client can choose rows that collide, and what is answered does not depend on them.

Shapes: N rows, S distinct ones, K single-id features, L list features, V list values in all, Q numbers, P pairs, B rows
of a block.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model.features.block import EncodedBlock
from model.features.kinds.columns import Ids

Positions = NDArray[np.intp]
Hashes = NDArray[np.uint64]


class Distinct(NamedTuple):
    """Distinct rows. `first_S` is the first place of each, ascending. `of_N` is which of them a row equals."""

    first_S: Positions
    of_N: Positions


def distinct(block: EncodedBlock, groups_N: Ids | None = None) -> Distinct | None:
    """The distinct rows of a block, None where all are. Rows of different `groups_N` are never equal."""
    if len(block.ids_BK) < 2:
        return None
    hashes_N = _hashes(block, groups_N)
    if not _has_equal(hashes_N):  # lists, which cost most, are read only where the rest is equal
        return None
    if len(block.list_values_V):
        hashes_N += _multipliers(len(block.list_lengths_LB), "lengths") @ block.list_lengths_LB.view(np.uint64)
        hashes_N += _list_hashes(block)
        if not _has_equal(hashes_N):
            return None
    _, first_S, of_N = np.unique(hashes_N, return_index=True, return_inverse=True)
    copies_P = np.flatnonzero(first_S[of_N] != np.arange(len(of_N)))
    if not _are_equal(block, groups_N, copies_P, first_S[of_N[copies_P]]):
        first_S, of_N = _compared(block, groups_N)
    # In the order of the rows: that of the hashes is another one in every process.
    order_S = np.argsort(first_S)
    place_S = np.empty_like(order_S)
    place_S[order_S] = np.arange(len(order_S))
    return Distinct(first_S[order_S], place_S[of_N]) if len(first_S) < len(of_N) else None


def once(block: EncodedBlock) -> tuple[EncodedBlock, Positions | None]:
    """A block with each row once, and which of its rows every row equals, None where nothing was left out."""
    found = distinct(block)
    return (block, None) if found is None else (picked(block, found.first_S), found.of_N)


def picked(block: EncodedBlock, rows_S: Positions) -> EncodedBlock:
    """Selected rows of a block."""
    lengths_LS = block.list_lengths_LB[:, rows_S]
    return EncodedBlock(
        block.ids_BK[rows_S],
        block.list_values_V[places(starts_of(block)[:, rows_S], lengths_LS)],
        lengths_LS,
        block.numbers_BQ[rows_S],
    )


def spread(values: torch.Tensor, of_N: Positions) -> torch.Tensor:
    """For each row the values of the distinct row that it equals."""
    return values.index_select(0, torch.from_numpy(of_N))


def stacked(*blocks: EncodedBlock) -> EncodedBlock:
    """The rows of one block, then those of others of the same features."""
    values = [value for of_list in zip(*map(by_list, blocks), strict=True) for value in of_list]
    return EncodedBlock(
        np.concatenate([block.ids_BK for block in blocks]),
        np.concatenate(values) if values else blocks[0].list_values_V,
        np.concatenate([block.list_lengths_LB for block in blocks], axis=1),
        np.concatenate([block.numbers_BQ for block in blocks]),
    )


def unstacked(block: EncodedBlock, sizes: Sequence[int]) -> list[EncodedBlock]:
    """The blocks of so many rows that a block has one after another. Nothing is copied but values of several lists."""
    ends = [0, *accumulate(sizes)]
    values = by_list(block)
    # Of each list feature, where the values of each block begin, and where the last one's end.
    value_ends = [np.append(0, np.cumsum(lengths_B))[ends].tolist() for lengths_B in block.list_lengths_LB]
    blocks = []
    for number, (start, end) in enumerate(pairwise(ends)):
        parts = [values_V[at[number] : at[number + 1]] for values_V, at in zip(values, value_ends, strict=True)]
        blocks.append(
            EncodedBlock(
                block.ids_BK[start:end],
                parts[0] if len(parts) == 1 else np.concatenate([block.list_values_V[:0], *parts]),
                block.list_lengths_LB[:, start:end],
                block.numbers_BQ[start:end],
            )
        )
    return blocks


def starts_of(block: EncodedBlock) -> Ids:
    """starts_LB: where each list begins among the block's values."""
    lengths = block.list_lengths_LB.reshape(-1)
    starts_LB: Ids = (np.cumsum(lengths) - lengths).reshape(block.list_lengths_LB.shape)
    return starts_LB


def places(starts_LN: Ids, lengths_LN: Ids) -> Ids:
    """Positions of the values of lists, list after list: each list's start and what follows it."""
    lengths = lengths_LN.reshape(-1)
    # Value v of what is gathered stands at its list's start plus its rank within the list.
    before = np.cumsum(lengths) - lengths
    positions_V: Ids = np.repeat(starts_LN.reshape(-1) - before, lengths) + np.arange(lengths.sum())
    return positions_V


def by_list(block: EncodedBlock) -> list[Ids]:
    """The values of each list feature."""
    if len(block.list_lengths_LB) == 1:
        return [block.list_values_V]
    ends = np.cumsum(block.list_lengths_LB.sum(axis=1))
    return np.split(block.list_values_V, ends[:-1]) if len(ends) else []


@lru_cache(maxsize=64)
def _multipliers(count: int, what: str) -> Hashes:
    """Odd 64-bit words that are secret to the process."""
    del what
    return np.frombuffer(os.urandom(8 * count), np.uint64) | np.uint64(1)


def _has_equal(hashes_N: Hashes) -> bool:
    sorted_N = hashes_N.copy()
    sorted_N.sort()
    return bool(np.count_nonzero(sorted_N[1:] == sorted_N[:-1]))


def _hashes(block: EncodedBlock, groups_N: Ids | None) -> Hashes:
    """A 64-bit hash of each row's ids and numbers: each times a multiplier of its own, summed."""
    ids_NK, numbers_NQ = block.ids_BK, block.numbers_BQ
    hashes_N: Hashes = ids_NK.view(np.uint64) @ _multipliers(ids_NK.shape[1], "ids")
    if numbers_NQ.shape[1]:
        # Two zeros are equal numbers and not equal bits: the sum with 0 makes one of them.
        bits_NQ = (numbers_NQ + np.float32(0)).view(np.uint32)
        hashes_N += bits_NQ.astype(np.uint64) @ _multipliers(numbers_NQ.shape[1], "numbers")
    if groups_N is not None:
        hashes_N += groups_N.view(np.uint64) * _multipliers(1, "groups")[0]
    return hashes_N


def _list_hashes(block: EncodedBlock) -> Hashes:
    """A hash of the values of each row's lists, in their order."""
    lengths = block.list_lengths_LB.reshape(-1)
    ends = np.cumsum(lengths)
    ranks_V = np.arange(len(block.list_values_V)) - np.repeat(ends - lengths, lengths)
    # Sizes by doubling, so that a few arrays serve lists of all lengths.
    ranked = _multipliers(1 << int(ranks_V.max()).bit_length(), "ranks")
    sums = np.zeros(len(block.list_values_V) + 1, np.uint64)
    np.cumsum(block.list_values_V.view(np.uint64) * ranked[ranks_V], out=sums[1:])
    hashes_LN = (sums[ends] - sums[ends - lengths]).reshape(block.list_lengths_LB.shape)
    hashes_N: Hashes = _multipliers(len(hashes_LN), "lists") @ hashes_LN
    return hashes_N


def _are_equal(block: EncodedBlock, groups_N: Ids | None, one_P: Positions, other_P: Positions) -> bool:
    """True where every row of `one_P` equals the one beside it."""
    lengths_LP = block.list_lengths_LB[:, one_P]
    if not (
        np.array_equal(block.ids_BK[one_P], block.ids_BK[other_P])
        and np.array_equal(block.numbers_BQ[one_P], block.numbers_BQ[other_P])
        and np.array_equal(lengths_LP, block.list_lengths_LB[:, other_P])
        and (groups_N is None or np.array_equal(groups_N[one_P], groups_N[other_P]))
    ):
        return False
    starts_LN = starts_of(block)
    one_V, other_V = (block.list_values_V[places(starts_LN[:, at_P], lengths_LP)] for at_P in (one_P, other_P))
    return np.array_equal(one_V, other_V)


def _compared(block: EncodedBlock, groups_N: Ids | None) -> Distinct:
    """The same without a hash, for rows that collide: every row's bytes as a key."""
    starts_LN, numbers_NQ = starts_of(block), block.numbers_BQ + np.float32(0)
    ends_LN = starts_LN + block.list_lengths_LB
    seen: dict[tuple[Any, ...], int] = {}
    first: list[int] = []
    of_N = np.empty(len(block.ids_BK), np.intp)
    for row in range(len(of_N)):
        spans = zip(starts_LN[:, row].tolist(), ends_LN[:, row].tolist(), strict=True)
        lists = tuple(block.list_values_V[start:end].tobytes() for start, end in spans)
        group = None if groups_N is None else int(groups_N[row])
        key = (block.ids_BK[row].tobytes(), numbers_NQ[row].tobytes(), lists, group)
        of_N[row] = place = seen.setdefault(key, len(first))
        if place == len(first):
            first.append(row)
    return Distinct(np.array(first, np.intp), of_N)
