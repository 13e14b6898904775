"""The pipelined look-up beside the plain one: the same rows, and the next batch's exchange begun a step ahead."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from model.embeddings.embeddings import Embeddings, TableOptimizer
from tests.training_data import training_file, write_feed
from training.config import EmbeddingsConfig, TrainingConfig
from training.data.rows import Batch
from training.distributed.ranks import Ranks
from training.distributed.sharding import Sharder
from training.fit.splits import open_splits
from training.run.run import Run
from training.step.lookup import PipelinedLookup, PlainLookup, new_lookup

CPU = torch.device("cpu")


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """One process that is a group of its own, as on a GPU, so that its tables are sharded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRec's words about its own internals
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch documents stores, and exports none
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        yield Ranks(0, 1, CPU)
        dist.destroy_process_group()


def sharded(folder: Path, ranks: Ranks) -> tuple[Embeddings, list[Batch]]:
    """Tables of two fused optimizers, sharded, beside one with dense gradients, and the batches of an epoch."""
    write_feed(folder / "data", 400)
    config = TrainingConfig.load(training_file(folder))
    schema = config.feed_schema()
    splits = open_splits(config, schema, ranks.first_does, show=False)
    run = Run(folder / "run", config, schema, splits.fitted())
    source, _ = splits.encoded(run.encoder, 0, 1)
    own = {"video": TableOptimizer("adagrad", 0.1), "tab": TableOptimizer(None, 0.1)}
    embeddings = Embeddings(
        schema,
        run.encoder,
        fused="rowwise_adagrad",
        learning_rate=0.1,
        own=own,
        device=CPU,
        shard=Sharder(config, ranks),
    )
    return embeddings, list(source.batches(0, 0))


def test_rows_are_those_of_a_plain_look_up_through_pauses_updates_and_epochs(tmp_path: Path, ranks: Ranks) -> None:
    embeddings, batches = sharded(tmp_path, ranks)
    lookup = new_lookup(embeddings, EmbeddingsConfig(), ranks)
    assert isinstance(lookup, PipelinedLookup)
    for _ in range(2):
        lookup.start(iter(batches))
        for position, expected in enumerate(batches):
            batch, rows_BD = lookup.next()
            assert batch.targets_BT is expected.targets_BT
            with lookup.paused():
                assert torch.equal(rows_BD, embeddings(expected.request, expected.candidate))
                other = batches[position - 1]
                before_BD = embeddings(other.request, other.candidate).detach()
            rows_BD.sum().backward()  # type: ignore[no-untyped-call]
            if position % 2:
                with lookup.paused():
                    after_BD = embeddings(other.request, other.candidate)
                assert not torch.equal(after_BD, before_BD), "the tables have learned"


def test_the_next_exchange_begins_before_a_step_and_the_batch_behind_it_is_read(
    tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, batches = sharded(tmp_path, ranks)
    lookup = PipelinedLookup(embeddings, CPU)
    collection: Any = embeddings.collection
    exchanged: list[list[int]] = []
    original = collection.input_dist

    def input_dist(context: object, jagged: Any, *others: Any) -> Any:
        exchanged.append(jagged.values().tolist())
        return original(context, jagged, *others)

    monkeypatch.setattr(collection, "input_dist", input_dist)
    read: list[Batch] = []
    lookup.start(batch for batch in batches if read.append(batch) is None)  # type: ignore[func-returns-value]
    own = [embeddings.jagged(batch.request, batch.candidate)[0].values().tolist() for batch in batches]
    for position in range(len(batches)):
        lookup.next()
        assert exchanged == own[: position + 2]
        assert len(read) == min(position + 3, len(batches))


def test_tables_that_are_not_sharded_and_runs_that_ask_for_it_have_plain_steps(tmp_path: Path, ranks: Ranks) -> None:
    embeddings, _ = sharded(tmp_path, ranks)
    assert isinstance(new_lookup(embeddings, EmbeddingsConfig(pipeline=False), ranks), PlainLookup)
    config = TrainingConfig.load(tmp_path / "training.yaml")
    schema = config.feed_schema()
    splits = open_splits(config, schema, ranks.first_does, show=False)
    run = Run(tmp_path / "run", config, schema, splits.fitted())
    assert isinstance(new_lookup(run.new_ranker().embeddings, EmbeddingsConfig(), ranks), PlainLookup)
