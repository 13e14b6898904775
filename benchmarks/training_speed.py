"""`make bench-training`: rows per CPU second and peak memory of training the KuaiRand model by the real command.

    FEEDRANK_DATA=<folder with kuairand_pure> python -m benchmarks.training_speed

In pairs, `python -m training train` runs for one epoch and for three (one thread): the difference is two epochs with
their validation and checkpoints, without imports, reading and encoding. Linux counts the CPU time of the child.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.quality import data_folder
from training.run import SUMMARY

CONFIG = "configs/kuairand.yaml"
SHORT, LONG = 1, 3


def main() -> None:
    """Runs the pairs, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    data_folder("kuairand", Path(os.environ.get("FEEDRANK_DATA", ".")) / "kuairand_pure")
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
    data = {"runs": [{str(epochs): measured for epochs, measured in run.items()} for run in runs]}
    path = report.write("training_speed", "Training speed: KuaiRand-Pure", body, data, "make bench-training")
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


def _all(values: list[float]) -> str:
    return ", ".join(f"{value:,.1f}" if value < 1000 else f"{value:,.0f}" for value in values)


if __name__ == "__main__":
    main()
