"""`make bench-slots`: what tables with slots cost training, beside hashed ones.

    python -m benchmarks.slot_cost [--turns N]

A step of configs/simulated.yaml on a simulated log of many users and items, whose two large tables are hashed or have
slots for a part of the ids that come, so that rows change hands all the time: 100 steps and the one turn of evictions
that falls into them, every way in each turn of the benchmark. Then a turn of evictions alone, by slots.

Shapes: V words.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.ratio import Ratio
from benchmarks.training_steps import Step, load, median, paired, ranker_step
from model.embeddings.id_map import IdMap
from training.config import SlotsConfig
from training.datasets.simulate import simulate
from training.step.slots import assign_rows_by_policy

CONFIG = Path("configs/simulated.yaml")
ROWS, USERS, ITEMS = 100_000, 50_000, 20_000
LARGE = {"user_id": 10_000, "item_id": 5_000}
POLICIES = ("distance_lfu", "lfu", "lru")
INTERVAL = 100
SLOTS = (10_000, 100_000, 1_000_000, 10_000_000)
IDS = INTERVAL * 1024


def main() -> None:
    """Times, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    ways: dict[str, Step] = {}
    with tempfile.TemporaryDirectory() as folder:
        simulate(ROWS, 0, Path(folder) / "log", users=USERS, items=ITEMS)
        for name in ("hashed", *POLICIES):
            ways[name] = _step(Path(folder), name)
    timed = paired(ways, turns=options.turns, steps=INTERVAL)
    alone = {slots: _turns(slots) for slots in SLOTS}
    body = [
        f"A step of {CONFIG} on {ROWS:,} rows with {USERS:,} users and {ITEMS:,} items, their tables hashed or with "
        f"{LARGE['user_id']:,} and {LARGE['item_id']:,} slots, one thread, with its share of the evictions "
        f"every {INTERVAL} steps: milliseconds of CPU time (median of {options.turns} paired turns), and the ratio to "
        "hashed with its 95 % interval.",
        "",
        *report.table(
            ["tables", "ms", "it / hashed"],
            [[name, median(values), str(Ratio.of(values, timed["hashed"]))] for name, values in timed.items()],
        ),
        "",
        f"Evictions alone (distance_lfu), once, of {IDS:,} ids by Zipf's law, in tables that are full, and "
        "finding the rows of 1,024 ids in them.",
        "",
        *report.table(
            ["slots", "evictions, CPU ms", "a step's share, ms", "rows of 1,024 ids, ms"],
            [
                [f"{slots:,}", f"{of_turn:.0f}", f"{of_turn / INTERVAL:.2f}", f"{of_rows:.2f}"]
                for slots, (of_turn, of_rows) in alone.items()
            ],
        ),
    ]
    data = {"milliseconds": timed, "turns": {str(slots): values for slots, values in alone.items()}}
    path = report.write("slot_cost", "Cost of slots", body, data, "make bench-slots")
    print(path.read_text(encoding="utf-8"))


def _step(folder: Path, name: str) -> Step:
    schema = Path("configs/schemas/simulated.yaml").read_text(encoding="utf-8")
    lines = []
    for line in schema.splitlines():
        slots = next((count for feature, count in LARGE.items() if f"name: {feature}," in line), None)
        start = line.split("buckets:")[0].split("vocabulary:")[0]
        kind = f"buckets: {4 * (slots or 0)}" if name == "hashed" else f"slots: {slots}"
        lines.append(line if slots is None else f"{start}{kind}, dim: 16}}")
    (folder / f"{name}.yaml").write_text("\n".join(lines), encoding="utf-8")
    changes = [f"schema={folder}/{name}.yaml", f"data.path={folder}/log", f"output={folder}/{name}"]
    if name != "hashed":
        changes.append(f"embeddings.slots={{policy: {name}, interval: {INTERVAL}}}")
    run, batches = load(CONFIG, changes, num_batches=ROWS)
    torch.manual_seed(0)
    return ranker_step(run, run.new_ranker(), batches)


def _turns(slots: int) -> tuple[float, float]:
    """Medians of the milliseconds of a turn, and of finding the rows of 1,024 ids."""
    drawn = np.random.default_rng(0)
    id_map = IdMap(slots, torch.device("cpu"))
    assign_rows_by_policy(id_map, torch.randperm(3 * slots)[:slots], SlotsConfig())
    of_turn, of_rows = [], []
    for _ in range(7):
        words_V = torch.from_numpy(drawn.zipf(1.2, IDS) % (3 * slots))
        started = time.process_time()
        assign_rows_by_policy(id_map, words_V, SlotsConfig())
        of_turn.append(1000 * (time.process_time() - started))
    for words_V in torch.randint(3 * slots, (50, 1024)):
        started = time.process_time()
        id_map.rows(words_V)
        of_rows.append(1000 * (time.process_time() - started))
    return statistics.median(of_turn), statistics.median(of_rows)


if __name__ == "__main__":
    run_benchmark(main)
