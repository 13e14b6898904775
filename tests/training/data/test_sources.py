"""Sources of training rows: a process's parts of global batches make up the same sequence on any number of them."""

from pathlib import Path

import pytest
import torch

from tests.training_data import training_file, write_feed
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Batch, Rows, fit_features, read_splits
from training.data.source import MemorySource, filled, share
from training.run.run import Run

ROWS, BATCH = 101, 16


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    folder: Path = tmp_path_factory.mktemp("rows")
    write_feed(folder / "data", 150)
    config = TrainingConfig.load(training_file(folder))
    schema = config.feed_schema()
    table = read_splits(config.data, schema, ("train",))["train"].slice(0, ROWS)
    columns = columns_from_arrow(schema, table)
    run = Run(config.output, config, schema, fit_features(schema, table, columns))
    found = Rows.encode(schema, run.encoder, table, columns, as_served=False)
    assert len(found) == ROWS > BATCH
    return found


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_parts_cover_all_rows_in_order_and_differ_by_one_at_most(world: int) -> None:
    for count in range(20):
        parts = [range(count)[share(count, rank, world)] for rank in range(world)]
        assert [row for part in parts for row in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_sequence_of_global_batches_is_the_same_on_any_number_of_processes(rows: Rows, world: int) -> None:
    sources = [MemorySource(rows, BATCH, 7, rank=rank, world=world) for rank in range(world)]
    assert {source.steps for source in sources} == {-(-ROWS // BATCH)}
    assert {source.rows for source in sources} == {ROWS}
    alone = MemorySource(rows, BATCH, 7)
    for whole, *parts in zip(alone.batches(2, 0), *(source.batches(2, 0) for source in sources), strict=True):
        assert whole.numbers_B is not None
        assert len({len(part.targets_BT) for part in parts}) == 1
        numbers = [counted(part, part.numbers_B) for part in parts if part.numbers_B is not None]
        assert torch.equal(torch.cat(numbers), whole.numbers_B)
        assert torch.equal(torch.cat([counted(part, part.targets_BT) for part in parts]), whole.targets_BT)


def counted(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    """The values of the rows that count. Task click is observed in all rows of the log."""
    return values[batch.observed_BT[:, 0] > 0]


def test_an_epoch_is_a_permutation_and_epochs_differ(rows: Rows) -> None:
    source = MemorySource(rows, BATCH, 7)
    epochs = []
    for epoch in range(2):
        numbers = [batch.numbers_B for batch in source.batches(epoch, 0) if batch.numbers_B is not None]
        epochs.append(torch.cat(numbers).tolist())
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_batches_from_a_step_on_are_those_of_the_whole_epoch(rows: Rows) -> None:
    source = MemorySource(rows, BATCH, 7)
    whole, rest = list(source.batches(1, 0)), list(source.batches(1, 4))
    assert len(rest) == len(whole) - 4
    for one, other in zip(whole[4:], rest, strict=True):
        assert torch.equal(one.targets_BT, other.targets_BT)
        assert torch.equal(one.candidate.ids_BK, other.candidate.ids_BK)


def test_a_process_without_a_row_of_a_batch_gets_one_that_does_not_count(rows: Rows) -> None:
    # Seven processes, and a last batch of 101 - 6 * 16 = 5 rows.
    last = [list(MemorySource(rows, BATCH, 7, rank=rank, world=7).batches(0, 6)) for rank in range(7)]
    counted = [int(batch.observed_BT[:, 0].sum()) for (batch,) in last]
    assert sorted(counted) == [0, 0, 1, 1, 1, 1, 1]
    assert all(len(batch.targets_BT) == 1 for (batch,) in last)


def test_a_filled_batch_has_its_own_rows_and_unknown_ones_behind(rows: Rows) -> None:
    batch = rows.take_batch(torch.tensor([3, 8]))
    longer = filled(batch, 4)
    assert len(longer.targets_BT) == 4
    assert longer.observed_BT[2:].sum() == 0
    assert torch.equal(longer.observed_BT[:2], batch.observed_BT)
    for before, after in ((batch.request, longer.request), (batch.candidate, longer.candidate)):
        assert torch.equal(after.ids_BK[:2], before.ids_BK)
        assert after.ids_BK[2:].sum() == 0
        assert torch.equal(after.list_values_V, before.list_values_V)
        assert torch.equal(after.list_lengths_LB[:, :2], before.list_lengths_LB)
        assert after.list_lengths_LB[:, 2:].sum() == 0
        assert after.numbers_BQ.shape[0] == 4
