"""Summaries of parts against counting, sorting and averaging the whole, and against their bounds where they are not
exact."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.features.id_counts import IntegerCounts, StringCounts
from model.features.running_statistics import Moments, RankSketch

PIECES = st.lists(st.lists(st.integers(-4, 12), max_size=30), min_size=1, max_size=6)


def in_strings(values: Sequence[int]) -> list[str]:
    return [f"é{value}" for value in values]


@settings(max_examples=100, deadline=None)
@given(pieces=PIECES)
def test_counts_are_exact_while_there_is_room(pieces: list[list[int]]) -> None:
    integers, strings = IntegerCounts(), StringCounts()
    for piece in pieces:
        one, other = IntegerCounts(), StringCounts()
        one.add(np.array(piece, np.int64))
        other.add(in_strings(piece))
        again, other_again = IntegerCounts(), StringCounts()
        again.restore(one.arrays())
        other_again.restore(other.arrays())
        integers.merge(again)
        strings.merge(other_again)
    expected = Counter(value for piece in pieces for value in piece)
    ids, counts = integers.entries()
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == expected
    assert ids.tolist() == sorted(expected)
    texts, of_texts = strings.entries()
    assert dict(zip(texts, of_texts.tolist(), strict=True)) == {f"é{value}": n for value, n in expected.items()}
    assert texts == sorted(texts)
    for summary in (integers, strings):
        assert (summary.total, summary.undercount) == (expected.total(), 0)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("most", [50, 400])
@pytest.mark.parametrize("dtype", ["int64", "string"])
def test_counts_of_too_many_ids_are_within_their_bound(dtype: str, most: int, merged: bool) -> None:
    """The bound of Misra and Gries is kept for every id. An id more frequent than it is never lost."""
    generator = np.random.default_rng(0)
    pieces = [np.concatenate([generator.zipf(1.3, 3000) % 10**6, generator.integers(10**7, 10**8, 1500)])
              for _ in range(12)]  # fmt: skip
    truth = Counter(np.concatenate(pieces).tolist())

    def new() -> IntegerCounts | StringCounts:
        return StringCounts(most) if dtype == "string" else IntegerCounts(most)

    whole = new()
    for piece in pieces:
        summary = new() if merged else whole
        summary.add([str(value) for value in piece] if dtype == "string" else piece)  # type: ignore[arg-type]
        if merged:
            whole.merge(summary)  # type: ignore[arg-type]
    ids, counts = whole.entries()
    found = {int(value): int(count) for value, count in zip(ids, counts, strict=True)}
    assert whole.total == truth.total()
    assert 0 < whole.undercount <= truth.total() / (most + 1)
    assert len(found) <= 1.25 * most
    for value, count in truth.items():
        assert count - whole.undercount <= found.get(value, 0) <= count


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200),
    cuts=st.lists(st.integers(0, 200), max_size=5),
    shift=st.sampled_from([0.0, 1e6]),
)
def test_moments_of_pieces_are_those_of_the_whole(values: list[float], cuts: list[int], shift: float) -> None:
    whole = np.array(values) + shift
    pieces = np.split(whole, sorted(cut for cut in cuts if cut < len(values)))
    one, merged = Moments(), Moments()
    one.add(whole)
    assert (one.mean, one.deviation) == (whole.mean(), whole.std()), "one piece is numpy's own, bit for bit"
    for piece in pieces:
        part, again = Moments(), Moments()
        part.add(piece)
        again.restore(part.arrays())
        merged.merge(again)
    # Relative to the size of the values: a mean near 0 of large values has lost those digits in numpy too.
    size = float(np.abs(whole).max())
    assert merged.mean == pytest.approx(whole.mean(), rel=1e-12, abs=1e-12 * size)
    assert merged.deviation == pytest.approx(whole.std(), rel=1e-12, abs=1e-12 * size)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("dtype", ["int64", "string"])
def test_a_sample_of_too_many_ids_stands_for_all(dtype: str, merged: bool) -> None:
    """Ids of a sample have their exact counts, and are about as many as their share says, however ids are written."""
    generator = np.random.default_rng(0)
    pieces = [np.concatenate([generator.integers(0, 20_000, 3000) * 1024, np.arange(10)]) for _ in range(20)]
    truth = Counter(np.concatenate(pieces).tolist())

    def new() -> IntegerCounts | StringCounts:
        return StringCounts(1000, sampled=True) if dtype == "string" else IntegerCounts(1000, sampled=True)

    whole = new()
    for piece in pieces:
        part = new() if merged else whole
        part.add([str(value) for value in piece] if dtype == "string" else piece)  # type: ignore[arg-type]
        if merged:
            again = new()
            again.restore(part.arrays())
            whole.merge(again)  # type: ignore[arg-type]
    ids, counts = whole.entries()
    assert (whole.total, whole.undercount) == (truth.total(), 0)
    assert {int(value): int(count) for value, count in zip(ids, counts, strict=True)}.items() <= truth.items()
    assert whole.halvings > 0
    assert 500 < len(ids) <= 1250
    # Half of 1,000 to 1,250 ids are drawn each time: five standard deviations.
    assert abs(len(ids) * 2**whole.halvings / len(truth) - 1) < 5 / np.sqrt(len(ids))
    before, once_more = len(ids), whole.halvings + 1
    whole.thin_out(once_more)
    assert whole.halvings == once_more
    assert len(whole.entries()[0]) == pytest.approx(before / 2, abs=5 * np.sqrt(before) / 2)


def rank_errors(ranks: RankSketch, whole: NDArray[np.float64]) -> NDArray[np.int64]:
    """Distance of the weight below each value from the number of values below it."""
    values, weights = ranks.weighted()
    assert int(weights.sum()) == len(whole)
    points = np.unique(whole)
    below = np.append(0, np.cumsum(weights))[np.searchsorted(values, points, side="right")]
    errors: NDArray[np.int64] = np.abs(below - np.searchsorted(np.sort(whole), points, side="right"))
    return errors


def test_ranks_are_exact_while_there_is_room() -> None:
    generator = np.random.default_rng(0)
    pieces = [generator.normal(size=size) for size in (10, 0, 300, 690)]
    ranks = RankSketch(1000, 64)
    for piece in pieces:
        ranks.add(piece)
    values, weights = ranks.weighted()
    np.testing.assert_array_equal(values, np.sort(np.concatenate(pieces)))
    assert set(weights.tolist()) == {1}
    assert ranks.rank_error == 0


@pytest.mark.parametrize("order", ["shuffled", "ascending", "descending", "with ties"])
@pytest.mark.parametrize("merged", [False, True])
def test_ranks_of_too_many_values_are_within_their_bound(order: str, merged: bool) -> None:
    exact, compact, rows = 4096, 512, 200_000
    whole = np.random.default_rng(1).permutation(rows).astype(np.float64)
    whole = {"ascending": np.sort(whole), "descending": -np.sort(whole), "with ties": whole % 100}.get(order, whole)
    ranks = RankSketch(exact, compact)
    for piece in np.split(whole, 40):
        part = RankSketch(exact, compact) if merged else ranks
        part.add(piece)
        if merged:
            again = RankSketch(exact, compact)
            again.restore(part.arrays())
            ranks.merge(again)
    held = len(ranks.weighted()[0])
    assert held <= exact + 20 * compact, "memory is bounded"
    assert rank_errors(ranks, whole).max() <= ranks.rank_error
    # What the documentation promises: a compaction of level l happens once in compact * 2**l values and costs 2**l.
    assert 0 < ranks.rank_error <= rows * (1 / exact + (np.log2(rows / exact) + 1) / compact)
