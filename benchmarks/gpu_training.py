"""Training steps of a device, for `make check-gpu`: their losses beside a CPU's, and their rows a second.

In: training files. Out: losses of each step, seconds a step, and the shares that these are of what the device reaches
in a product of bfloat16 and in copying memory.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.random_feed import DAY, write_random_feed
from model.schema import FeedSchema
from training.config import TrainingConfig
from training.distributed.ranks import joined
from training.fit.splits import open_splits
from training.run.run import Run
from training.step.precision import set_products
from training.step.training import Training

KUAIRAND, TABLES, TABLE_ROWS, DIM = Path("configs/kuairand.yaml"), 26, 1_000_000, 16
_SPLIT = f"data.split={{column: {DAY}, train: {{max: 1}}, validation: 2, test: 3}}"
# A row of a table is read by the look-up, and read and written by the optimizer, with its momentum.
_BYTES_OF_A_ROW = 3 * 4 * DIM + 2 * 4


def kuairand_file(folder: Path, rows: int, device: str, batch: int, precision: str = "float32") -> TrainingConfig:
    """KuaiRand's training file on random impressions, of which a third is trained on."""
    schema = TrainingConfig.load(KUAIRAND).feed_schema()
    data = folder / f"kuairand-{rows}"
    if not data.exists():
        data.mkdir()
        write_random_feed(schema, data / "part.parquet", 3 * rows, values=50)
    changes = [f"batch_size={batch}", "data.group_by=null", f"precision={precision}"]
    return _loaded(KUAIRAND, folder, data, device, changes)


def tables_file(folder: Path, rows: int, table_rows: int, device: str, batch: int) -> TrainingConfig:
    """A training file of TABLES tables of `table_rows` rows and a small network, on random impressions."""
    features = [
        {"name": f"f{number}", "side": "candidate", "kind": "id", "buckets": table_rows, "dim": DIM}
        for number in range(TABLES)
    ]
    content = {"name": "tables", "features": features, "tasks": [{"name": "click", "kind": "binary", "label": "click"}]}
    data = folder / f"tables-{rows}-{table_rows}"
    if not data.exists():
        data.mkdir()
        schema = FeedSchema.from_mapping(content, "benchmark")
        write_random_feed(schema, data / "part.parquet", 3 * rows, values=100 * table_rows)
    path, schema_path = folder / "tables.yaml", folder / "tables_schema.yaml"
    schema_path.write_text(yaml.safe_dump(content), encoding="utf-8")
    file = {
        "schema": str(schema_path),
        "data": {"path": str(data), "split": {"column": DAY, "train": 1, "validation": 2, "test": 3}},
        "network": {"fusion": {"kind": "shared_bottom", "levels": [16]}, "tower": [16]},
        "optimizer": {
            "tables": {"kind": "rowwise_adagrad", "learning_rate": 0.02},
            "dense": {"kind": "adam", "learning_rate": 0.001},
        },
        "epochs": 1,
        "output": str(folder / "run"),
    }
    path.write_text(yaml.safe_dump(file), encoding="utf-8")
    return _loaded(path, folder, data, device, [f"batch_size={batch}"])


def _loaded(path: Path, folder: Path, data: Path, device: str, changes: list[str]) -> TrainingConfig:
    own = [f"data.path={data}", _SPLIT, f"device={device}", "embeddings.engine=torch", "epochs=1", "threads=1"]
    return TrainingConfig.load(path, [*own, f"output={folder / 'run'}", *changes])


@contextmanager
def opened(config: TrainingConfig) -> Iterator[tuple[Training, int]]:
    """The training of a file before its first step, on the file's device, and the steps of its epoch."""
    torch.set_num_threads(config.threads)
    set_products(config.precision)
    schema = config.feed_schema()
    with joined(config.device) as ranks:
        splits = open_splits(config, schema, lambda act: act(), show=False)
        run = Run(config.output, config, schema, splits.fitted())
        source, _ = splits.encoded(run.encoder, ranks.rank, ranks.world)
        training = Training(run, source, ranks)
        training.ranker.train()
        training.lookup.start(source.batches(0, 0))
        yield training, source.steps


def losses(config: TrainingConfig, steps: int) -> list[float]:
    """Total loss of each of the first steps."""
    with opened(config) as (training, _):
        return [float(training.step(_nothing).total) for _ in range(steps)]


def speed(config: TrainingConfig, warm_up: int) -> dict[str, float]:
    """Seconds and floating point operations of a step, its input included, over all steps of an epoch but the first
    `warm_up`. Operations are those of the network's products, forward and backward (twice the forward)."""
    with opened(config) as (training, steps):
        for _ in range(warm_up):
            training.step(_nothing)
        network = training.ranker.network
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            network(torch.zeros(config.batch_size, training.ranker.embeddings.width, device=config.device))
        started = time.perf_counter()
        for _ in range(steps - warm_up - 1):  # the last batch is smaller
            training.step(_nothing)
        _wait(config.device)
        seconds = (time.perf_counter() - started) / (steps - warm_up - 1)
    return {"seconds": seconds, "operations": 3.0 * counter.get_total_flops(), "rows": config.batch_size / seconds}


def table_bytes(batch: int) -> float:
    """Bytes of tables that a step of `tables_file` cannot do without."""
    return float(batch * TABLES * _BYTES_OF_A_ROW)


def peaks(device: str, size: int) -> dict[str, float]:
    """Peaks of the device: floating point operations a second of a product of bfloat16 [size, size], and bytes a
    second of a copy, read and written."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.ones(16 * size * size, device=device)
    target = torch.empty_like(source)
    product = _seconds(lambda: left @ right, device)
    copy = _seconds(lambda: target.copy_(source), device)
    return {"bfloat16": 2 * size**3 / product, "copy": 2 * source.nbytes / copy}


def _seconds(act: Callable[[], Any], device: str, times: int = 10) -> float:
    """The least time of a call, after two that warm up."""
    best = float("inf")
    for turn in range(times + 2):
        _wait(device)
        started = time.perf_counter()
        act()
        _wait(device)
        if turn > 1:
            best = min(best, time.perf_counter() - started)
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _nothing() -> None:
    pass
