"""Ways to train the same network on the same rows, one in a process of its own, for benchmarks/training_speed.py.

    python -m benchmarks.training_loops FEED WAY --folder DIR --steps N

Feeds: `kuairand` (configs/kuairand.yaml, AdaTT-sp) and `tables` (26 ids, 13 numbers, 26 tables of a million rows, dim
16, an MLP of 128, 64 and 32). Ways: `ours` is this project with its input. `plain` is what people write first:
to_pylist rows in a DataLoader, an nn.EmbeddingBag a table, torch's Adam over all of it. `modules` is the same with
AdaTT-sp as plain_adatt.py writes it, a module per expert. On `tables` there are also steps on batches that lie ready:
`ours-step`, `dmp-step` (ours by DistributedModelParallel, as with several processes) and `adam-step` (TorchRec's
EmbeddingBagCollection through it with dense gradients and Adam(fused=True)). Prints JSON: CPU seconds a row, peak MiB.

Shapes: B rows, K ids, Q numbers, T tasks.
"""

import argparse
import itertools
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from benchmarks.command import data_folder
from benchmarks.input_speed import LISTED_ROWS, listed, made, unfitted
from benchmarks.plain_adatt import PlainAdaTT
from benchmarks.training_steps import Step, ranker_step
from model.embeddings.embeddings import Embeddings
from model.features.block import inputs_of
from model.features.kinds import IdFeature, IdListFeature
from model.fusion import AdaTTConfig
from model.fusion.levels import widths_by_level
from model.ranker import Network, NetworkConfig, Ranker
from model.schema import FeedSchema
from training.config import DataConfig, TrainingConfig
from training.data.index import index_of
from training.data.kinds.columns import columns_from_arrow
from training.data.reader import LogReader
from training.data.rows import Batch, fit_features, read_splits
from training.data.source import Source
from training.data.stream import StreamSource
from training.distributed.ranks import Ranks
from training.distributed.sharding import Sharder
from training.fit.splits import open_splits
from training.run.run import Run
from training.step.balancing.losses import TaskLosses

IDS, TABLES_BATCH, WARM_UP, READY = 26, 4096, 2, 8
MLP = {"fusion": {"kind": "shared_bottom", "levels": [128, 64]}, "tower": [32]}
FEEDS = ("kuairand", "tables")
WITH_INPUT = ("ours", "plain")
STEP_ALONE = ("ours-step", "dmp-step", "adam-step")


class UsualRanker(nn.Module):
    """An nn.EmbeddingBag a table before the network. In: the tensors of `listed`, by name. Out: logits_BT."""

    def __init__(self, schema: FeedSchema, rows_of_table: dict[str, int], network: nn.Module) -> None:
        super().__init__()
        self._schema = schema
        self._table_of = {name: table.name for table in schema.tables for name in table.features}
        poolings = {self._table_of[one.name]: one.pooling for one in inputs_of(schema.features).lists}
        self.bags = nn.ModuleDict(
            {
                table.name: nn.EmbeddingBag(rows_of_table[table.name], table.dim, mode=poolings.get(table.name, "sum"))
                for table in schema.tables
            }
        )
        self.network = network

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """logits_BT."""
        parts = []
        for feature in self._schema.features:
            values = inputs[feature.name]
            if isinstance(feature, IdListFeature):
                lengths_B = inputs[f"{feature.name}.lengths"]
                parts.append(self.bags[self._table_of[feature.name]](values, lengths_B.cumsum(0) - lengths_B))
            elif isinstance(feature, IdFeature):
                parts.append(self.bags[self._table_of[feature.name]](values.unsqueeze(1)))
            else:
                parts.append(values.unsqueeze(1))
        logits_BT: Tensor = self.network(torch.cat(parts, dim=1))
        return logits_BT


class CollectionRanker(nn.Module):
    """A sharded EmbeddingBagCollection before the network. In: a KeyedJaggedTensor, numbers_BQ. Out: logits_BT."""

    def __init__(self, collection: nn.Module, keys: list[str], network: Network) -> None:
        super().__init__()
        self.collection, self.keys, self.network = collection, keys, network

    def forward(self, jagged: object, numbers_BQ: Tensor) -> Tensor:
        """logits_BT."""
        pooled = self.collection(jagged).to_dict()
        logits_BT: Tensor = self.network(torch.cat([*(pooled[key] for key in self.keys), numbers_BQ], dim=1))
        return logits_BT


def open_feed(feed: str, folder: Path, *, buckets: int = 1_000_000) -> tuple[Run, Callable[[], Source], DataConfig]:
    """A feed's run, of which nothing is written, and its training rows. KuaiRand's are from memory, encoded, as its
    configuration has it, those of `tables` are a stream."""
    config = TrainingConfig.load(Path("configs/kuairand.yaml"))
    if feed == "kuairand":
        data_folder(feed)
        schema = config.feed_schema()
        table = read_splits(config.data, schema, ("train",))["train"]
        run = Run(folder / feed, config, schema, fit_features(schema, table, columns_from_arrow(schema, table)))
        return run, lambda: open_splits(config, schema, show=False).encoded(run.encoder)[0], config.data
    schema, data, _ = made(folder / "tables", IDS, "int64", buckets=buckets)
    network = NetworkConfig.model_validate(MLP)
    config = config.model_copy(update={"network": network, "batch_size": TABLES_BATCH, "tasks": None, "data": data})
    run = Run(folder / feed, config, schema, unfitted(schema))

    def source() -> Source:
        reader = LogReader(data, schema)
        return StreamSource(reader, index_of(reader), run.encoder, TABLES_BATCH, 0)

    return run, source, data


def endless(source: Source) -> Iterator[Batch]:
    """A source's batches, epoch by epoch."""
    return (batch for epoch in itertools.count() for batch in source.batches(epoch, 0))


def _ready(source: Source) -> list[Batch]:
    return list(itertools.islice(endless(source), READY))


def _ours(run: Run, source: Source, _: DataConfig) -> Step:
    return ranker_step(run, run.new_ranker(), endless(source))


def _ours_step(run: Run, source: Source, _: DataConfig) -> Step:
    return ranker_step(run, run.new_ranker(), _ready(source))


def _dmp_step(run: Run, source: Source, _: DataConfig) -> Step:
    ranks = _alone_in_a_group()
    tables = run.config.optimizer.tables
    assert tables.kind != "adam"
    embeddings = Embeddings(
        run.schema,
        run.encoder,
        fused=tables.kind,
        learning_rate=tables.learning_rate,
        device=ranks.device,
        shard=Sharder(run.config, ranks),
    )
    return ranker_step(run, Ranker(embeddings, _network(run, embeddings.width)), _ready(source))


def _plain(run: Run, _: Source, data: DataConfig) -> Step:
    return _usual_loop(run, data, _network(run, _width(run)))


def _modules(run: Run, _: Source, data: DataConfig) -> Step:
    config = run.config.network
    fusion = config.fusion
    assert isinstance(fusion, AdaTTConfig)
    assert isinstance(fusion.experts_per_task, int)
    levels, tasks = widths_by_level(fusion.levels), len(run.schema.tasks)
    return _usual_loop(run, data, PlainAdaTT(_width(run), levels, tasks, fusion.experts_per_task, list(config.tower)))


def _usual_loop(run: Run, data: DataConfig, network: nn.Module) -> Step:
    files = sorted(Path(data.path).glob("*train.parquet"))
    rows = next(pq.ParquetFile(files[0]).iter_batches(LISTED_ROWS, columns=[*run.schema.columns()]))
    loader = listed(run.schema, rows, run.encoder.rows_of_table, run.config.batch_size)
    ranker = UsualRanker(run.schema, run.encoder.rows_of_table, network)
    optimizer = torch.optim.Adam(ranker.parameters(), lr=run.config.optimizer.dense.learning_rate)
    feed = (batch for _ in itertools.count() for batch in loader if len(batch[1]) == run.config.batch_size)

    def forward() -> tuple[Tensor, Tensor]:
        inputs, labels_BT = next(feed)
        return ranker(inputs), labels_BT

    return _step(run, forward, optimizer)


def _adam_step(run: Run, source: Source, _: DataConfig) -> Step:
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    _alone_in_a_group()
    tables = [
        EmbeddingBagConfig(
            name=table.name,
            embedding_dim=table.dim,
            num_embeddings=run.encoder.rows_of_table[table.name],
            feature_names=list(table.features),
        )
        for table in run.schema.tables
    ]
    whole: Any = nn.Module()
    whole.collection = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    # TorchRec 1.8 has dense gradients for data_parallel tables alone.
    copied = ParameterConstraints(sharding_types=["data_parallel"], compute_kernels=["dense"])
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=1, local_world_size=1, compute_device="cpu"),
        batch_size=run.config.batch_size,
        constraints={table.name: copied for table in tables},
        debug=False,
    )
    sharders: list[Any] = [EmbeddingBagCollectionSharder()]
    plan = planner.collective_plan(whole, sharders, dist.group.WORLD)
    DistributedModelParallel(whole, device=torch.device("cpu"), plan=plan, sharders=sharders)
    keys = [feature for table in tables for feature in table.feature_names]
    batches = _ready(source)
    ranker = CollectionRanker(whole.collection, keys, _network(run, _width(run)))
    parameters = list(ranker.parameters())
    assert sum(value.numel() for value in parameters) > 16 * sum(table.num_embeddings for table in tables)
    optimizer = torch.optim.Adam(parameters, lr=run.config.optimizer.dense.learning_rate, fused=True)
    ids_of_batch = [batch.candidate.ids_BK.t().reshape(-1) for batch in batches]
    ready = [
        (KeyedJaggedTensor(keys=keys, values=ids, lengths=torch.ones_like(ids)), batch)
        for ids, batch in zip(ids_of_batch, batches, strict=True)
    ]
    feed = itertools.cycle(ready)

    def forward() -> tuple[Tensor, Tensor]:
        jagged, batch = next(feed)
        return ranker(jagged, batch.candidate.numbers_BQ), batch.targets_BT

    return _step(run, forward, optimizer)


WAYS: dict[str, Callable[[Run, Source, DataConfig], Step]] = {
    "ours": _ours,
    "plain": _plain,
    "modules": _modules,
    "ours-step": _ours_step,
    "dmp-step": _dmp_step,
    "adam-step": _adam_step,
}


def _width(run: Run) -> int:
    dims = {name: table.dim for table in run.schema.tables for name in table.features}
    return sum(dims.get(feature.name, 1) for feature in run.schema.features)


def _network(run: Run, width: int) -> Network:
    return Network(run.config.network, width, run.schema.output_counts, run.schema.given)


def _step(run: Run, forward: Callable[[], tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer) -> Step:
    losses = TaskLosses(run.schema)

    def step() -> None:
        logits_BT, targets_BT = forward()
        optimizer.zero_grad()
        total = losses.total(losses(logits_BT, targets_BT, torch.ones_like(targets_BT)))
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert torch.isfinite(total)

    return step


def _alone_in_a_group() -> Ranks:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    return Ranks(0, 1, torch.device("cpu"))


def main() -> None:
    """Run one way and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("feed", choices=FEEDS)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    torch.manual_seed(0)
    run, source, data = open_feed(options.feed, options.folder)
    step = WAYS[options.way](run, source(), data)
    for _ in range(WARM_UP):
        step()
    started = time.process_time()
    for _ in range(options.steps):
        step()
    spent = time.process_time() - started
    found = {
        "seconds_per_row": spent / options.steps / run.config.batch_size,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
