"""`make bench-input`: rows per CPU second of input alone, Parquet to encoded batches, and memory as a log grows.

    python -m benchmarks.input_speed [--rows 1000000 --rows 10000000 ...] [--turns N]

Two feeds: KuaiRand-Pure as prepared (data/kuairand), its training file written eight times by hard links, and a made-up
log of 26 id features (int64, then the same as strings) and 13 numbers. Each is streamed (training/data/stream.py, no
reader threads: all CPU time is one thread's) in paired turns with the usual loop: `to_pylist` rows in a torch
DataLoader whose collate function hashes and stacks them. Memory: a process of its own for each number of rows streams
a log of hard links of one file of 500,000 rows and says its peak, so that 100M rows come from disk without being there.

Shapes: B rows, T tasks.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader

from benchmarks import report
from benchmarks.command import data_folder, run_benchmark
from benchmarks.ratio import Ratio
from model.features.block import inputs_of
from model.features.encoder import FeatureEncoder
from model.features.fitted import FittedFeatures
from model.features.kinds import IdFeature, IdListFeature, NumberFeature
from model.schema import FeedSchema
from training.config import DataConfig, TrainingConfig
from training.data.index import index_of
from training.data.kinds.columns import columns_from_arrow
from training.data.reader import LogReader
from training.data.rows import fit_features, read_splits
from training.data.stream import StreamSource

BATCH = 1024
COPIES = 8
LISTED_ROWS = 20_000  # of the usual loop, a turn
MADE_ROWS, MADE_GROUP = 500_000, 50_000
SPLIT = {"column": "day", "train": 1, "validation": 2}


def main() -> None:
    """Run all, print and write the tables. With --stream FOLDER it is the process whose memory is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append", help="of the memory runs (default: 1M and 10M)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    if options.stream is not None:
        print(json.dumps(_stream_all(options.stream)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        speeds = [
            _measured("KuaiRand-Pure", *kuairand(Path(scratch) / "kuairand"), options.turns),
            _measured("26 int64 ids, 13 numbers", *made(Path(scratch) / "ids", 26, "int64"), options.turns),
            _measured("26 string ids, 13 numbers", *made(Path(scratch) / "strings", 26, "string"), options.turns),
        ]
        memory = [_memory(Path(scratch), rows) for rows in options.rows or (1_000_000, 10_000_000)]
    body = [
        f"Batches of {BATCH}, one thread, {options.turns} paired turns of an epoch of the stream and {LISTED_ROWS:,} "
        "rows of the usual loop. The ratio is a geometric mean over turns with its 95 % interval.",
        "",
        *report.table(
            ["feed", "rows per CPU second", "`to_pylist` and DataLoader", "ratio"],
            [[s["feed"], f"{s['stream']:,.0f}", f"{s['listed']:,.0f}", s["ratio"]] for s in speeds],
        ),
        "",
        "A stream of 4 ids and 2 numbers, 8 lanes, windows of one row group of 50,000 rows, from hard links of one "
        "file:",
        "",
        *report.table(
            ["rows", "memory before, MiB", "peak, MiB", "rows per CPU second", "rows per second"],
            [
                [
                    f"{m['rows']:,}",
                    f"{m['start_mib']:,.0f}",
                    f"{m['peak_mib']:,.0f}",
                    f"{m['cpu_speed']:,.0f}",
                    f"{m['speed']:,.0f}",
                ]
                for m in memory
            ],
        ),
    ]
    command = "make bench-input" + "".join(f" --rows {rows}" for rows in options.rows or ())
    path = report.write("input_speed", "Input speed", body, {"speeds": speeds, "memory": memory}, command)
    print(path.read_text(encoding="utf-8"))


def kuairand(folder: Path) -> tuple[FeedSchema, DataConfig, FeatureEncoder]:
    data_folder("kuairand")
    config = TrainingConfig.load(Path("configs/kuairand.yaml"))
    schema = config.feed_schema()
    folder.mkdir()
    for file in sorted(Path(config.data.path).glob("*.parquet")):
        pq.write_table(pq.read_table(file), folder / file.name, row_group_size=MADE_GROUP)
    train = folder / "impressions-train.parquet"
    for copy in range(1, COPIES):
        os.link(train, folder / f"impressions-train-{copy}.parquet")
    table = read_splits(config.data, schema, ("train",))["train"]
    encoder = FeatureEncoder(schema, fit_features(schema, table, columns_from_arrow(schema, table)))
    return schema, config.data.model_copy(update={"path": folder, "readers": 0}), encoder


def made(
    folder: Path, ids: int, dtype: str, numbers: int = 13, *, buckets: int = 1_000_000
) -> tuple[FeedSchema, DataConfig, FeatureEncoder]:
    """A log of MADE_ROWS training rows, written where it is not there yet. Ids follow a power law over a million
    values."""
    schema = _schema(ids, dtype, numbers, buckets)
    config = DataConfig.from_mapping({"path": folder, "split": SPLIT, "read": "stream", "readers": 0}, "made")
    encoder = FeatureEncoder(schema, unfitted(schema))
    if folder.exists():
        return schema, config, encoder
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, rows, day in (("train", MADE_ROWS, 1), ("validation", 1_000, 2)):
        columns: dict[str, Any] = {}
        for feature in schema.features:
            if isinstance(feature, NumberFeature):
                columns[feature.name] = rng.lognormal(2.0, 1.0, rows)
            else:
                values = (rng.random(rows) ** 4 * 1_000_000).astype(np.int64)
                columns[feature.name] = [f"{value:08x}" for value in values.tolist()] if dtype == "string" else values
        columns["click"] = (rng.random(rows) < 0.3).astype(np.int8)
        columns["day"] = np.full(rows, day, np.int32)
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=MADE_GROUP)
    for copy in range(1, COPIES // 2):
        os.link(folder / "train.parquet", folder / f"train-{copy}.parquet")
    return schema, config, encoder


def _schema(ids: int, dtype: str, numbers: int, buckets: int = 1_000_000) -> FeedSchema:
    of_id = {"side": "candidate", "kind": "id", "dtype": dtype, "buckets": buckets, "dim": 16}
    of_number = {"side": "candidate", "kind": "number", "transform": "log1p"}
    features = [{"name": f"c{i}", **of_id} for i in range(ids)]
    features += [{"name": f"n{i}", **of_number} for i in range(numbers)]
    tasks = [{"name": "click", "kind": "binary", "label": "click"}]
    return FeedSchema.from_mapping({"name": "made", "features": features, "tasks": tasks}, "made")


def unfitted(schema: FeedSchema) -> FittedFeatures:
    numbers = {one.name: [{"transform": t} for t in one.transform] for one in inputs_of(schema.features).numbers}
    return FittedFeatures.from_mapping({"numbers": numbers}, "made")


def _measured(feed: str, schema: FeedSchema, config: DataConfig, encoder: FeatureEncoder, turns: int) -> dict[str, Any]:
    reader = LogReader(config, schema)
    source = StreamSource(reader, index_of(reader), encoder, BATCH, 0)
    first = sorted(Path(config.path).glob("*train.parquet"))[0]
    table = next(pq.ParquetFile(first).iter_batches(LISTED_ROWS, columns=[*schema.columns()]))
    ways: dict[str, Callable[[], int]] = {
        "stream": lambda: sum(len(batch.targets_BT) for batch in source.batches(0, 0)),
        "listed": lambda: sum(len(labels) for _, labels in listed(schema, table, encoder.rows_of_table)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            started = time.process_time()
            rows = ways[name]()
            seconds[name].append((time.process_time() - started) / rows)
    speeds = {name: 1 / statistics.median(times) for name, times in seconds.items()}
    print(feed, {name: f"{speed:,.0f}" for name, speed in speeds.items()}, flush=True)
    ratio = Ratio.of(seconds["listed"], seconds["stream"])
    return {"feed": feed, **speeds, "ratio": str(ratio), "seconds_per_row": seconds}


def listed(
    schema: FeedSchema, table: pa.RecordBatch, rows_of_table: Mapping[str, int], batch_size: int = BATCH
) -> DataLoader[Any]:
    """The loop that people write first: rows as dictionaries, made tensors when a batch is put together. It gives
    each feature's tensor by name (of a list also `<name>.lengths`) and labels_BT."""
    buckets = {name: rows_of_table[owner.name] - 1 for owner in schema.tables for name in owner.features}

    def collate(rows: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        inputs: dict[str, torch.Tensor] = {}
        for feature in schema.features:
            values = [row[feature.name] for row in rows]
            if isinstance(feature, IdFeature):
                ids = [0 if value is None else hash(value) % buckets[feature.name] + 1 for value in values]
                inputs[feature.name] = torch.tensor(ids)
            elif isinstance(feature, IdListFeature):
                lists = [[hash(value) % buckets[feature.name] + 1 for value in row or []] for row in values]
                inputs[feature.name] = torch.tensor([value for row in lists for value in row])
                inputs[f"{feature.name}.lengths"] = torch.tensor([len(row) for row in lists])
            else:
                numbers = [feature.missing if value is None else float(value) for value in values]
                if "log1p" in feature.transform:
                    numbers = [math.log1p(abs(value)) for value in numbers]
                inputs[feature.name] = torch.tensor(numbers)
        labels = [[float(row[task.label] or 0) for task in schema.tasks] for row in rows]
        return inputs, torch.tensor(labels)

    rows: Any = table.to_pylist()
    return DataLoader(rows, batch_size=batch_size, shuffle=True, collate_fn=collate)


def _memory(scratch: Path, rows: int) -> dict[str, float]:
    folder = scratch / f"rows-{rows}"
    made(folder, 4, "int64", 2)
    for copy in range(COPIES // 2, -(-rows // MADE_ROWS)):
        os.link(folder / "train.parquet", folder / f"train-{copy}.parquet")
    for copy in range(-(-rows // MADE_ROWS), COPIES // 2):
        (folder / f"train-{copy}.parquet").unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.input_speed", "--stream", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{rows:,} rows: {measured}", flush=True)
    return measured


def _stream_all(folder: Path) -> dict[str, float]:
    schema = _schema(4, "int64", 2)
    config = DataConfig.from_mapping({"path": folder, "split": SPLIT, "read": "stream"}, "made")
    reader = LogReader(config, schema)
    source = StreamSource(reader, index_of(reader), FeatureEncoder(schema, unfitted(schema)), BATCH * 8, 0)
    began, cpu, start = time.monotonic(), time.process_time(), _memory_mib("VmRSS")
    rows = sum(len(batch.targets_BT) for batch in source.batches(0, 0))
    assert rows == source.rows
    return {
        "rows": rows,
        "start_mib": start,
        "peak_mib": _memory_mib("VmHWM"),
        "cpu_speed": rows / (time.process_time() - cpu),
        "speed": rows / (time.monotonic() - began),
    }


def _memory_mib(kind: str) -> float:
    """Of this process since its own exec. getrusage would count the parent's memory at the fork too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) / 1024


if __name__ == "__main__":
    run_benchmark(main)
