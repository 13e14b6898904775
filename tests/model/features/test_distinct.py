"""Equal rows are found, unequal ones never merged, and equal candidates get the same bits by every way of scoring."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.features import distinct as distinct_module
from model.features.block import EncodedBlock
from model.features.distinct import distinct, once, picked, stacked
from model.scorer.batch_scoring import score_requests
from model.scorer.scorer import Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.items import tiny_items, values_of, write_items
from training.publish.catalogue import build_catalogue

Row = tuple[tuple[int, ...], tuple[float, ...], tuple[tuple[int, ...], ...]]

# Few values, so that rows are often equal, and often but nearly so: [1], [2] beside [1, 2], [] and 0.0 beside -0.0.
_LISTS = st.lists(st.integers(0, 2), max_size=3).map(tuple)
_ROW = st.tuples(
    st.tuples(st.integers(0, 1), st.sampled_from([0, 1, 2**40])),
    st.tuples(st.sampled_from([0.0, -0.0, 1.0, 1e-30])),
    st.tuples(_LISTS, _LISTS),
)
# Wide enough that the last rows of a product are computed by another kernel than the first.
_NETWORK = {"fusion": {"kind": "adatt_sp", "levels": [64, 32], "experts_per_task": 2}, "tower": [32]}
# The last rows are the first ones again.
REPEATED = [*range(96), *range(4)]


def block_of(rows: list[Row]) -> EncodedBlock:
    lists = [[row[2][feature] for row in rows] for feature in range(2)]
    return EncodedBlock(
        np.array([row[0] for row in rows], np.int64).reshape(len(rows), 2),
        np.array([value for column in lists for values in column for value in values], np.int64),
        np.array([[len(values) for values in column] for column in lists], np.int64),
        np.array([row[1] for row in rows], np.float32).reshape(len(rows), 1),
    )


def by_loop(rows: list[Any]) -> tuple[list[int], list[int]]:
    """First place of each distinct row, and the one of these that every row equals."""
    kept: list[int] = []
    of_row = []
    for position, row in enumerate(rows):
        place = next((k for k, first in enumerate(kept) if rows[first] == row), len(kept))
        if place == len(kept):
            kept.append(position)
        of_row.append(place)
    return kept, of_row


def check(rows: list[Row], groups: list[int] | None) -> None:
    block = block_of(rows)
    found = distinct(block, None if groups is None else np.array(groups, np.int64))
    first, of_row = by_loop(rows if groups is None else list(zip(rows, groups, strict=True)))
    if len(first) == len(rows):
        assert found is None
        return
    assert found is not None
    assert (found.first_S.tolist(), found.of_N.tolist()) == (first, of_row)


@given(rows=st.lists(_ROW, min_size=1, max_size=12), with_groups=st.booleans())
def test_rows_are_the_same_as_a_loop_finds(rows: list[Row], with_groups: bool) -> None:
    check(rows, [number % 2 for number in range(len(rows))] if with_groups else None)


@given(rows=st.lists(_ROW, min_size=1, max_size=12))
def test_rows_that_collide_are_not_merged(rows: list[Row]) -> None:
    """Every row has the same hash."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distinct_module, "_multipliers", lambda count, _: np.zeros(count, np.uint64))
        check(rows, None)


@given(rows=st.lists(_ROW, min_size=1, max_size=8), more=st.lists(_ROW, min_size=1, max_size=8))
def test_blocks_are_picked_from_and_stacked_row_by_row(rows: list[Row], more: list[Row]) -> None:
    for got, wanted in zip(stacked(block_of(rows), block_of(more)), block_of(rows + more), strict=True):
        np.testing.assert_array_equal(got, wanted)
    some = list(range(len(rows)))[::-2]
    for got, wanted in zip(picked(block_of(rows), np.array(some)), block_of([rows[n] for n in some]), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_very_long_lists_and_many_rows_are_told_apart() -> None:
    long = tuple(range(3000))
    rows: list[Row] = [((0, 0), (0.0,), (long, ())), ((0, 0), (0.0,), (long[::-1], ())), ((0, 0), (0.0,), ((), long))]
    check(rows * 3, None)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version whose last rows differ from equal rows before them, for some numbers of rows, where each is computed by
    itself."""
    folder = tmp_path_factory.mktemp("models")
    return publish_artifact(folder, network=_NETWORK)


def features_of(rows: list[int]) -> dict[str, list[Any]]:
    random = np.random.default_rng(0)
    video_ids, durations = random.permutation(100_000)[:200].tolist(), random.integers(0, 10_000, 200).tolist()
    return {
        "video_id": [video_ids[n] for n in rows],
        "topics": [[7, 8, 9][: n % 4] for n in rows],
        "duration_ms": [durations[n] for n in rows],
    }


def test_equal_candidates_get_the_same_bits(version: Path) -> None:
    scorer = Scorer.load(version)
    for rows in range(12, 40):  # kernels differ in where a product's last rows begin
        repeated = [*range(rows - 4), *range(4)]
        answers_NO = scorer.score_values(TINY_REQUEST["user"], features_of(repeated), rows)
        np.testing.assert_array_equal(answers_NO[-4:], answers_NO[:4])
    answers_NO = scorer.score_values(TINY_REQUEST["user"], features_of(REPEATED), 100)
    np.testing.assert_array_equal(answers_NO[96:], answers_NO[:4])
    assert len(np.unique(answers_NO, axis=0)) == 96
    # The same candidates all over again: each answer stands twice, in its place.
    twice_NO = scorer.score_values(TINY_REQUEST["user"], features_of([*range(96), *range(95, -1, -1)]), 192)
    np.testing.assert_array_equal(twice_NO, np.concatenate([answers_NO[:96], answers_NO[95::-1]]))


def test_reasons_of_equal_candidates_are_the_same(version: Path) -> None:
    scorer = Scorer.load(version)
    columns = scorer.encoder.columns("candidate", features_of(REPEATED), 100)
    scored, levels = scorer.explain(*scorer.encode({}, columns, 100))
    np.testing.assert_array_equal(scored.answers_NO[96:], scored.answers_NO[:4])
    for level in levels:
        np.testing.assert_array_equal(level.weights_NGE[96:], level.weights_NGE[:4])


def test_batch_scoring_answers_equal_candidates_of_equal_requests_alike(version: Path) -> None:
    scorer = Scorer.load(version)
    users = scorer.encoder.columns("request", {"user_id": [17, 18, 17]}, 3)
    rows = [*range(33), *range(33), *range(33), 0]
    columns = scorer.encoder.columns("candidate", features_of(rows), 100)
    request_of_N = np.array([n // 33 for n in range(99)] + [0])
    answers_NO = score_requests(scorer, users, 3, columns, request_of_N).answers_NO
    np.testing.assert_array_equal(answers_NO[66:99], answers_NO[:33])
    np.testing.assert_array_equal(answers_NO[99], answers_NO[0])
    assert (answers_NO[33:66] != answers_NO[:33]).any(axis=1).all()
    for user_id, part in ((17, slice(0, 33)), (18, slice(33, 66))):
        alone_NO = scorer.score_values({"user_id": user_id}, features_of(list(range(33))), 33)
        np.testing.assert_allclose(answers_NO[part], alone_NO, rtol=1e-5)


def test_a_catalogue_s_candidates_and_equal_ones_that_are_sent_get_the_same_bits(version: Path, tmp_path: Path) -> None:
    """Items of equal features, an item named twice, and a candidate that brings what an item has: all one."""
    scorer, items = Scorer.load(version), tiny_items(40)
    for column in items.values():
        if column is not items["id"]:
            column[30:] = column[:10]
    scorer.catalogue = scorer.open_catalogue(build_catalogue(version, write_items(tmp_path / "items.parquet", items)))
    request = scorer.encoder.encode_request({"user_id": 17})
    known, said = [*range(40), *range(5)], [0, 1, 2]
    values = values_of(items, said)
    nothing: list[Any] = [None] * len(known)
    columns = scorer.encoder.columns(
        "candidate", {name: [*nothing, *column] for name, column in values.items()}, len(known) + len(said)
    )
    is_null_N = np.array([True] * len(known) + [False] * len(said))
    ids = [f"item-{n}" for n in known] + [f"sent-{n}" for n in said]
    named = scorer.name(ids, columns, {"topics": is_null_N})
    assert named is not None
    answers_NO = scorer.score(request, named).answers_NO
    explained, levels = scorer.explain(request, named)
    for given_NX in (answers_NO, explained.answers_NO, *(level.weights_NGE for level in levels)):
        np.testing.assert_array_equal(given_NX[30:40], given_NX[:10])
        np.testing.assert_array_equal(given_NX[40:45], given_NX[:5])
        np.testing.assert_array_equal(given_NX[45:], given_NX[:3])
    alone_NO = scorer.score_values({"user_id": 17}, values_of(items, list(range(30))), 30)
    np.testing.assert_allclose(answers_NO[:30], alone_NO, rtol=1e-3, atol=1e-3)  # sums kept in bfloat16


def test_a_block_without_equal_rows_is_passed_on() -> None:
    block = block_of([((n, 0), (1.0,), ((1,), ())) for n in range(5)])
    assert once(block) == (block, None)
