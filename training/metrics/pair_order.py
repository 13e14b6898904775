"""Order of pairs of rows: which share of them predictions order as their labels do (XAUC).

XAUC is AUC for quantities (Zhan et al., "Deconfounding Duration Bias in Watch-time Prediction for Video
Recommendation", KDD 2022). A pair counts where its labels differ. It counts 1 where its predictions are in
the same order, and half where they are equal. Of labels 0 and 1 this is AUC. The publication draws pairs at random,
here all of them count.

Shapes: N rows, G groups, R draws.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.metrics.bootstrap import Floats, Statistic

Counts = NDArray[np.int64]


class PairOrder(NamedTuple):
    """Per row, the pairs with all other rows whose labels differ, and those of them in the right order, ties half."""

    right_N: Floats
    pairs_N: Floats


def pair_order(labels_N: Floats, predictions_N: Floats) -> PairOrder:
    """Exact counts in O(N log N), as float64. They are whole or half numbers, which float64 has up to 2^53."""
    rows = labels_N.size
    label_ranks_N, equal_labels_N = _ranks(labels_N)
    ranks_N, equal_predictions_N = _ranks(predictions_N)
    # Rows of one label stand by falling prediction. So a smaller prediction before a row has a smaller label too, and
    # a larger one behind it a larger label.
    order_N = np.lexsort((-ranks_N, label_ranks_N))
    sorted_N = ranks_N[order_N]
    below_N = _smaller_before(sorted_N)
    equal_before_N = _equal_before(sorted_N)
    larger_before_N = np.arange(rows) - below_N - equal_before_N
    larger_N = rows - np.searchsorted(np.sort(ranks_N), sorted_N, side="right")
    right_N = np.empty(rows)
    right_N[order_N] = below_N + (larger_N - larger_before_N)
    # Pairs with equal predictions are ties where their labels differ.
    _, both_N = _ranks(label_ranks_N * max(rows, 1) + ranks_N)
    right_N += (equal_predictions_N - both_N) / 2
    return PairOrder(right_N, (rows - equal_labels_N).astype(np.float64))


def xauc_on_draws(labels_N: Floats, predictions_N: Floats, codes_N: Counts, num_groups: int) -> Statistic:
    """XAUC on draws of groups: exact where every group is drawn once, and to first order in the draws elsewhere.

    A pair has two rows, so its draws are a product. Its expansion around one draw of every group moves twice as far as
    a pair of which one row alone is drawn. That takes sums per group where the product would take a sort per draw.
    """
    right_N, pairs_N = pair_order(labels_N, predictions_N)
    right_G, pairs_G = (np.bincount(codes_N, counts_N, num_groups) for counts_N in (right_N, pairs_N))
    pairs = pairs_G.sum()
    value = right_G.sum() / pairs if pairs else np.nan

    def statistic(draws_RG: Floats) -> Floats:
        pairs_R = draws_RG @ pairs_G
        half_R = np.divide(draws_RG @ right_G, pairs_R, out=np.full_like(pairs_R, np.nan), where=pairs_R > 0)
        return np.clip(value + 2 * (half_R - value), 0.0, 1.0)

    return statistic


def _ranks(values_N: NDArray[np.generic]) -> tuple[Counts, Counts]:
    """Dense ranks from 0, and how many rows have each row's value, itself among them."""
    _, ranks_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return ranks_N.astype(np.int64), counts[ranks_N].astype(np.int64)


def _equal_before(ranks_N: Counts) -> Counts:
    """Rows before each that have its rank."""
    order_N = np.argsort(ranks_N, kind="stable")
    sorted_N = ranks_N[order_N]
    before_N = np.empty_like(ranks_N)
    before_N[order_N] = np.arange(ranks_N.size) - np.searchsorted(sorted_N, sorted_N)
    return before_N


def _smaller_before(ranks_N: Counts) -> Counts:
    """Rows before each that have a smaller rank, by the levels of a wavelet tree.

    A level takes one bit of the ranks, the highest first. Rows that agree in all higher bits stand together, in their
    order. Those with a 0 before one with a 1 are smaller, and the level counts them.
    """
    rows = ranks_N.size
    smaller_N = np.zeros(rows, np.int64)
    order_N = np.arange(rows)
    for bit in reversed(range(int(ranks_N.max(initial=0)).bit_length())):
        prefixes_N = ranks_N[order_N] >> bit
        is_one_N = (prefixes_N & 1) == 1
        starts = np.flatnonzero(np.diff(prefixes_N >> 1, prepend=-1))
        sizes = np.diff(starts, append=rows)
        zeros_before_N = np.cumsum(~is_one_N) - ~is_one_N
        zeros_N = zeros_before_N - np.repeat(zeros_before_N[starts], sizes)
        smaller_N[order_N[is_one_N]] += zeros_N[is_one_N]
        # Stable partition: within a group first the rows with a 0, then those with a 1.
        starts_N = np.repeat(starts, sizes)
        of_group_N = np.repeat(np.add.reduceat(~is_one_N, starts, dtype=np.int64), sizes)
        ones_N = np.arange(rows) - starts_N - zeros_N
        places_N = starts_N + np.where(is_one_N, of_group_N + ones_N, zeros_N)
        order_N[places_N] = order_N.copy()
    return smaller_N
