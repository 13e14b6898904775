"""Batches of whole groups: every row once, no group in two batches or two processes, and the same on each of them."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.features.block import BlockTensors
from training.data.groups import codes_together
from training.data.order import Groups
from training.data.rows import Batch, Rows
from training.data.source import WholeGroups


def rows_of(groups: list[int]) -> Rows:
    """Rows whose only id is their number."""
    count = len(groups)
    none = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, count, dtype=torch.int64), torch.zeros(count, 0))
    request = BlockTensors(torch.zeros(count, 0, dtype=torch.int64), *none)
    candidate = BlockTensors(torch.arange(count).unsqueeze(1), *none)
    labels = torch.zeros(count, 1), torch.ones(count, 1)
    return Rows(Batch(request, candidate, *labels, groups_B=torch.tensor(groups)))


def drawn(seed: int, largest: int = 9) -> list[int]:
    rng = np.random.default_rng(seed)
    return rng.permutation(np.repeat(np.arange(60), rng.integers(1, largest + 1, 60))).tolist()  # type: ignore[no-any-return]


def own_rows(batch: Batch) -> list[int]:
    """Numbers of a batch's rows that count."""
    return [
        int(row) for row, counts in zip(batch.candidate.ids_BK[:, 0], batch.observed_BT[:, 0], strict=True) if counts
    ]


@pytest.mark.parametrize("batch_size", [9, 16, 50, 1000])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_groups_stay_whole(batch_size: int, world: int) -> None:
    groups = drawn(batch_size)
    rows = rows_of(groups)
    sources = [WholeGroups(rows, batch_size, 5, rank=rank, world=world) for rank in range(world)]
    assert sources[0].steps == -(-len(groups) // batch_size)
    seen: list[int] = []
    places: dict[int, tuple[int, int]] = {}
    epoch = [list(source.batches(0, 0)) for source in sources]
    assert {len(batches) for batches in epoch} == {sources[0].steps}
    for step, parts in enumerate(zip(*epoch, strict=True)):
        # Parts are of one length, filled with rows that do not count.
        assert len({len(part.targets_BT) for part in parts}) == 1
        of_step = [own_rows(part) for part in parts]
        size = sum(map(len, of_step))
        assert size > 0
        assert size < batch_size + 9 or batch_size > len(groups)
        assert abs(size - min(batch_size, len(groups) - step * batch_size)) < 9
        for rank, (part, own) in enumerate(zip(parts, of_step, strict=True)):
            seen += own
            assert part.groups_B is not None
            assert int(part.groups_B.max()) < len(part.targets_BT)
            codes = part.groups_B.tolist()
            for a, row in enumerate(own):
                assert places.setdefault(groups[row], (step, rank)) == (step, rank)
                for b, other in enumerate(own):
                    assert (groups[row] == groups[other]) == (codes[a] == codes[b])
    assert sorted(seen) == list(range(len(groups)))


def test_an_epoch_goes_on_at_any_step_and_epochs_differ() -> None:
    source = WholeGroups(rows_of(drawn(1)), 16, 5)
    whole = [own_rows(batch) for batch in source.batches(3, 0)]
    for first in (1, 7, source.steps):
        assert [own_rows(batch) for batch in source.batches(3, first)] == whole[first:]
    assert [own_rows(batch) for batch in source.batches(4, 0)] != whole
    assert [own_rows(batch) for batch in WholeGroups(rows_of(drawn(1)), 16, 6).batches(3, 0)] != whole


def test_a_hash_is_of_the_groups_too() -> None:
    groups = drawn(2)
    moved = [*groups[1:], groups[0]]
    found = {WholeGroups(rows_of(codes), 16, 5).fingerprint() for codes in (groups, groups, moved)}
    assert len(found) == 2


def test_a_group_larger_than_a_batch_is_refused() -> None:
    assert (
        WholeGroups(rows_of([0] * 9 + [1]), 9, 5).described()
        == "10 training rows in 2 groups, 1 row of them alone in theirs"
    )
    with pytest.raises(ValueError, match=r"a group has 9 rows, and batch_size is 8; raise batch_size"):
        WholeGroups(rows_of([0] * 9 + [1]), 8, 5)


def test_rows_without_a_value_are_alone() -> None:
    table = pa.table({"request": pa.chunked_array([["b", None, "a"], ["b", None]])})
    codes_B = codes_together(table, "request")
    groups = Groups.of(codes_B)
    found = sorted(sorted(rows.tolist()) for rows in np.split(groups.rows_B, groups.starts_G[1:]))
    assert found == [[0, 3], [1], [2], [4]]
    # A value has its code in every part of a log.
    assert codes_together(table.slice(2), "request").tolist() == codes_B[2:].tolist()
    with pytest.raises(ValueError, match=r"data\.together: column 'lists' of type .* does not name groups of rows"):
        codes_together(pa.table({"lists": pa.array([[1], [2]])}), "lists")
