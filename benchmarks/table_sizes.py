"""`make bench-tables`: rows a second, step time and peak memory of training, from 1M to 100M rows of embedding tables.

    python -m benchmarks.table_sizes [--rows 1 10 50 100]

26 tables share the rows evenly, dim 16, row-wise Adagrad, through the same Embeddings and Optimizers as a training run.
Behind them is one Linear, so that the tables are what is measured. Ids are uniform. Each size has a process of its own:
peak memory is its highest resident size, less that of the same steps on tables of 100 rows which it makes first (what
the libraries and a batch take, with any tables), over parameters plus optimizer state.

Shapes: B rows, K tables, D columns of the dense row.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from benchmarks import report
from benchmarks.command import run_benchmark
from model.embeddings.embeddings import Embeddings
from model.features.block import BlockTensors
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.schema import FeedSchema

TABLES, DIM, BATCH, STEPS, WARM_UP = 26, 16, 4096, 60, 10


def main() -> None:
    """Measure every size, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 10, 50, 100], help="millions of rows in all")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one * 1_000_000)))
        return
    found = []
    for millions in options.rows:
        command = [sys.executable, "-m", "benchmarks.table_sizes", "--one", str(millions)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append({"millions": millions, **json.loads(done.stdout.splitlines()[-1])})
        print(found[-1], flush=True)
    first = found[0]["step"]
    body = [
        f"{TABLES} tables, dim {DIM}, row-wise Adagrad, batches of {BATCH:,}, uniform ids, {STEPS} steps, one thread.",
        "",
        *report.table(
            [
                "rows in all",
                "rows a CPU second",
                "CPU ms a step",
                "over the first",
                "peak memory over parameters + state",
            ],
            [
                [
                    f"{one['millions']}M",
                    f"{BATCH / one['step']:,.0f}",
                    f"{1000 * one['step']:.1f}",
                    f"{one['step'] / first:.2f}",
                    f"{one['peak_bytes'] / one['needed_bytes']:.3f}",
                ]
                for one in found
            ],
        ),
    ]
    path = report.write("table_sizes", "Training on large tables", body, {"sizes": found}, "make bench-tables")
    print(path.read_text(encoding="utf-8"))


def measure(rows: int) -> dict[str, float]:
    """One size, in this process."""
    torch.set_num_threads(1)
    _train(TABLES * 100, WARM_UP)
    before = _peak_bytes()
    spent, tables = _train(rows, STEPS)
    return {
        "step": spent / STEPS,
        "fixed_bytes": before,
        "peak_bytes": _peak_bytes() - before,
        "needed_bytes": 4 * tables + 4 * tables // DIM,
    }


def _train(rows: int, steps: int) -> tuple[float, int]:
    """CPU seconds of `steps` steps on tables of `rows` rows in all, and the tables' weights."""
    features = [
        {"name": f"f{number}", "side": "candidate", "kind": "id", "buckets": rows // TABLES - 1, "dim": DIM}
        for number in range(TABLES)
    ]
    tasks = [{"name": "click", "kind": "binary", "label": "click"}]
    schema = FeedSchema.from_mapping({"name": "tables", "features": features, "tasks": tasks}, "benchmark")
    embeddings = Embeddings(
        schema, FeatureEncoder(schema, FittedFeatures()), fused="rowwise_adagrad", learning_rate=0.02
    )
    head = torch.nn.Linear(embeddings.width, 1)
    dense = torch.optim.Adam(head.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, BATCH, dtype=torch.int64)
    request = BlockTensors(torch.zeros(BATCH, 0, dtype=torch.int64), *nothing, torch.zeros(BATCH, 0))
    spent = 0.0
    for step in range(WARM_UP + steps):
        ids_BK = torch.randint(1, rows // TABLES, (BATCH, TABLES), generator=generator)
        labels_B = torch.randint(0, 2, (BATCH,), generator=generator).float()
        start = time.process_time()
        rows_BD = embeddings(request, BlockTensors(ids_BK, *nothing, torch.zeros(BATCH, 0)))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(rows_BD).squeeze(1), labels_B)
        dense.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        dense.step()
        spent += (time.process_time() - start) * (step >= WARM_UP)
    return spent, sum(weight.numel() for weight in embeddings.table_weights().values())


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    run_benchmark(main)
