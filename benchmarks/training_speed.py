"""`make bench-training`: rows per CPU second of training, by the real command and against the loops people write.

    FEEDRANK_DATA=<folder with kuairand_pure> python -m benchmarks.training_speed [--pairs N] [--turns N]

In pairs, `python -m training train` runs for one epoch and for three (one thread): the difference is two epochs with
their validation and checkpoints, without imports, reading and encoding. Linux counts the CPU time of the child. Then
the ways of benchmarks/training_loops.py in turns, each in a process of its own, on KuaiRand's schema and on 26 tables.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.command import data_folder, run_benchmark
from benchmarks.ratio import Ratio
from benchmarks.training_loops import STEP_ALONE, WITH_INPUT
from training.run.run import SUMMARY

CONFIG = "configs/kuairand.yaml"
SHORT, LONG = 1, 3
# Steps of a turn. Adam over 26 tables of a million rows takes seconds a step.
STEPS = {"kuairand": {"ours": 60, "plain": 20, "modules": 20}, "tables": dict.fromkeys(("plain", "adam-step"), 3)}
USUAL_STEPS = 40
WORDS = {
    "ours": "this project",
    "plain": "the usual loop",
    "modules": "the usual loop, a module per expert",
    "ours-step": "this project, batches ready",
    "dmp-step": "this project through DMP, batches ready",
    "adam-step": "EmbeddingBagCollection, Adam(fused=True), through DMP, batches ready",
}
FEEDS = {
    "kuairand": ("KuaiRand-Pure, AdaTT-sp of configs/kuairand.yaml, batches of 1,024", ("ours", "plain", "modules")),
    "tables": ("26 tables of 1M rows, dim 16, an MLP, batches of 4,096", (*WITH_INPUT, *STEP_ALONE)),
}
# Way, over which other.
PAIRS = {
    "kuairand": (("ours", "plain"), ("ours", "modules")),
    "tables": (("ours", "plain"), ("ours-step", "adam-step"), ("dmp-step", "adam-step")),
}


def main() -> None:
    """Run the pairs, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    data_folder("kuairand")
    runs = [{epochs: _train(epochs) for epochs in (SHORT, LONG)} for _ in range(options.pairs)]
    rows = runs[0][LONG]["rows"]
    speeds = [(LONG - SHORT) * rows / (run[LONG]["cpu_seconds"] - run[SHORT]["cpu_seconds"]) for run in runs]
    start = [run[SHORT]["cpu_seconds"] - rows / speed for run, speed in zip(runs, speeds, strict=True)]
    memory = max(run[LONG]["peak_memory_mib"] for run in runs)
    body = [
        f"`python -m training train {CONFIG}`, {rows:,.0f} training rows, one thread, {options.pairs} pairs.",
        "",
        *report.table(
            ["", "median", "all"],
            [
                ["rows per CPU second", f"{statistics.median(speeds):,.0f}", _all(speeds)],
                ["CPU seconds before the first step", f"{statistics.median(start):.1f}", _all(start)],
                ["peak memory, MiB (whole process)", f"{memory:,.0f}", ""],
            ],
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = {feed: _in_turns(feed, ways, folder, options.turns) for feed, (_, ways) in FEEDS.items()}
    for feed, measured in found.items():
        body += ["", *_compared(feed, measured)]
    body += [
        "",
        "The usual loop: to_pylist rows in a DataLoader (made once, outside of the time, as this project's encoding of "
        "KuaiRand is, while the 26 tables' rows are read and encoded inside of it), an nn.EmbeddingBag a table, "
        "torch's Adam with dense gradients, and the same dense network: this project's module or, in the third line, "
        "the same equations with a module per expert. This project: row-wise Adagrad inside backward. Each way of a "
        f"turn is a process. Ratios are geometric means over {options.turns} turns with their 95 % interval.",
    ]
    data = {
        "runs": [{str(epochs): measured for epochs, measured in run.items()} for run in runs],
        "loops": found,
    }
    path = report.write("training_speed", "Training speed", body, data, "make bench-training")
    print(path.read_text(encoding="utf-8"))


def _train(epochs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        changes = [f"epochs={epochs}", f"output={output}", "early_stopping=null", "threads=1"]
        command = [sys.executable, "-m", "training", "train", CONFIG]
        for change in changes:
            command += ["--set", change]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
        summary = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
    cpu_seconds = usage.ru_utime + usage.ru_stime
    print(f"{epochs} epochs: {cpu_seconds:.1f} CPU s", flush=True)
    return {
        "rows": summary["rows"]["train"],
        "cpu_seconds": cpu_seconds,
        "peak_memory_mib": usage.ru_maxrss / 1024,
    }


def _in_turns(feed: str, ways: Sequence[str], folder: str, turns: int) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for turn in range(turns):
        for way in ways[:: 1 if turn % 2 == 0 else -1]:
            steps = STEPS[feed].get(way, USUAL_STEPS)
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training_loops", feed, way]
            command += ["--folder", folder, "--steps", str(steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(feed, way, found[way][-1], flush=True)
    return found


def _compared(feed: str, found: dict[str, list[dict[str, float]]]) -> list[str]:
    seconds = {way: [one["seconds_per_row"] for one in measured] for way, measured in found.items()}
    lines = [
        [WORDS[way], f"{1 / statistics.median(seconds[way]):,.0f}", f"{max(one['peak_mib'] for one in measured):,.0f}"]
        for way, measured in found.items()
    ]
    ratios = []
    for way, other in PAIRS[feed]:
        ratio = Ratio.of(seconds[other], seconds[way])
        ratios.append([WORDS[way], WORDS[other], str(ratio)])
    return [
        f"{FEEDS[feed][0]}:",
        "",
        *report.table(["way", "rows per CPU second", "peak memory, MiB"], lines),
        "",
        *report.table(["throughput of", "over that of", "ratio"], ratios),
    ]


def _all(values: list[float]) -> str:
    return ", ".join(f"{value:,.1f}" if value < 1000 else f"{value:,.0f}" for value in values)


if __name__ == "__main__":
    run_benchmark(main)
