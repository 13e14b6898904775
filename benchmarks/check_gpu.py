"""`make check-gpu`: what this project does on a GPU, in one go of some minutes. On a CPU the same in small.

    python -m benchmarks.check_gpu [--device cuda|cpu] [--limit 480]

It takes what torch the machine has, with embedding tables by plain torch, and needs no data. Checks run one after
another. One that fails takes no other with it. At the limit the one that runs fails and the others are skipped.

* losses: 100 steps on the device and on the CPU from the same weights and batches give the same losses.
* run: `train` on the device, then `evaluate` and `export` of its checkpoint by processes that see no GPU.
* KuaiRand's shape, and 26 tables of a million rows: rows a second, and the share of what the device reaches.
* images: seconds an epoch of two methods of CIFAR-100's routing experiment, on random images.

On a machine with no more than torch: benchmarks/gpu_bundle.py.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.gpu_training import TABLE_ROWS, TABLES, kuairand_file, losses, peaks, speed, table_bytes, tables_file
from training.images.cell import RESULT
from training.images.cifar import NUM_CLASSES, NUM_SUPERCLASSES, SIDE
from training.images.experiment import load, run

# float32 sums in another order: a step adds some 1e-7 to what the step before has left, and steps amplify it.
LOSS_TOLERANCE = 1e-3
STEPS = 100
_IMAGES = Path("configs/images/cifar100_routing.yaml")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the checks: rows of a step, steps, rows of a table, of a product's matrices, images, and methods."""

    batch: int
    steps: int
    table_batch: int
    table_rows: int
    product: int
    images: int
    cells: int


GPU = Sizes(batch=8192, steps=200, table_batch=8192, table_rows=TABLE_ROWS, product=8192, images=50_000, cells=2)
SMALL = Sizes(batch=256, steps=20, table_batch=256, table_rows=10_000, product=512, images=2_000, cells=1)

Check = Callable[[Path, str, Sizes], dict[str, Any]]


def main() -> None:
    """Runs the checks, prints and writes the table. Ends with status 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds for all checks (default 480)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here")
    if not options.limit > 0:
        raise ValueError(f"--limit: expected seconds above 0, got {options.limit:g}")
    found: dict[str, dict[str, Any]] = {"machine": machine(options.device)}
    ends = time.monotonic() + options.limit
    for name, check in CHECKS.items():
        found[name] = checked(check, options.device, GPU if options.device == "cuda" else SMALL, ends)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    lines = body(found)
    print("\n".join(lines))
    if options.device == "cuda":
        report.write("gpu", "Training on a GPU", lines, found, "make check-gpu")
    if failed := [name for name, one in found.items() if "failed" in one]:
        sys.exit(f"failed: {', '.join(failed)}")


def machine(device: str) -> dict[str, Any]:
    """The device, and the versions that it runs with."""
    about: dict[str, Any] = {"device": device, "torch": str(torch.__version__), "python": sys.version.split()[0]}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        about["cuda"] = torch.version.cuda
    return about


def checked(check: Check, device: str, sizes: Sizes, ends: float) -> dict[str, Any]:
    """Findings of a check and its seconds, or why it failed or was skipped. `ends` is on the clock of
    time.monotonic."""
    started = time.monotonic()
    if started >= ends:
        return {"skipped": "the limit has passed"}
    before = signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory(prefix="feedrank-gpu-") as folder:
        try:
            signal.setitimer(signal.ITIMER_REAL, ends - started)
            found = check(Path(folder), device, sizes)
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    return {**found, "took": round(time.monotonic() - started, 1)}


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError("the limit of all checks has passed")


def check_losses(folder: Path, device: str, sizes: Sizes) -> dict[str, Any]:
    """Largest relative difference of a step's loss between the device and the CPU."""
    steps = min(STEPS, sizes.steps)
    got, expected = (
        np.array(losses(kuairand_file(folder, 256 * (steps + 1), where, 256), steps)) for where in (device, "cpu")
    )
    worst = float((np.abs(got - expected) / expected).max())
    if not worst <= LOSS_TOLERANCE:
        raise ValueError(f"a loss is off by {worst:.2g} of it, over {LOSS_TOLERANCE:g}")
    return {"steps": steps, "first": float(got[0]), "last": float(got[-1]), "largest_difference": worst}


def check_kuairand(folder: Path, device: str, sizes: Sizes) -> dict[str, Any]:
    """Rows a second of KuaiRand's network by precision, and the share of the product of bfloat16 that is reached."""
    peak = peaks(device, sizes.product)
    rows = sizes.batch * (sizes.steps + 1)
    found: dict[str, Any] = {"peak_bfloat16_tflops": peak["bfloat16"] / 1e12, "batch": sizes.batch}
    for precision in ("float32", "bfloat16"):
        taken = speed(kuairand_file(folder, rows, device, sizes.batch, precision), sizes.steps // 10)
        found[precision] = {**taken, "share_of_peak": taken["operations"] / taken["seconds"] / peak["bfloat16"]}
    return found


def check_tables(folder: Path, device: str, sizes: Sizes) -> dict[str, Any]:
    """Rows a second of large tables, and the share of a copy's bytes a second that is reached."""
    peak = peaks(device, sizes.product)
    config = tables_file(folder, sizes.table_batch * (sizes.steps + 1), sizes.table_rows, device, sizes.table_batch)
    taken = speed(config, sizes.steps // 10)
    moved = table_bytes(sizes.table_batch)
    return {
        **taken,
        "tables": TABLES,
        "table_rows": sizes.table_rows,
        "batch": sizes.table_batch,
        "peak_gigabytes": peak["copy"] / 1e9,
        "share_of_peak": moved / taken["seconds"] / peak["copy"],
    }


def check_run(folder: Path, device: str, sizes: Sizes) -> dict[str, Any]:
    """A run trained on the device, then evaluated and exported by processes that see no GPU."""
    config = kuairand_file(folder, sizes.batch * 4, device, sizes.batch)
    path = folder / "training.json"  # JSON is YAML
    path.write_text(json.dumps(config.dump()), encoding="utf-8")
    _training("train", str(path))
    blind = {"CUDA_VISIBLE_DEVICES": ""}
    _training("evaluate", str(config.output), **blind)
    _training("export", str(config.output), "--models", str(folder / "models"), **blind)
    return {"exported": sorted(one.name for one in (folder / "models").iterdir())}


def check_images(folder: Path, device: str, sizes: Sizes) -> dict[str, Any]:
    """Seconds an epoch of methods of CIFAR-100's experiment, by name, on random images."""
    data = folder / "images"
    data.mkdir()
    generator = np.random.default_rng(0)
    for name, count in (("train.bin", sizes.images), ("test.bin", max(sizes.images // 5, 100))):
        rows = generator.integers(0, 256, (count, 2 + 3 * SIDE * SIDE), dtype=np.uint8)
        rows[:, 0], rows[:, 1] = np.arange(count) % NUM_SUPERCLASSES, np.arange(count) % NUM_CLASSES
        rows.tofile(data / name)
    experiment = load(_IMAGES, {"device": device, "seeds": 1, "epochs": 2, "output": str(folder / "out")})
    methods = experiment.methods[: sizes.cells]
    changes = {"methods": methods, "module_counts": None, "hypotheses": ()}
    data_config = experiment.data.model_copy(update={"path": data})
    experiment = experiment.model_copy(update={**changes, "data": data_config})
    run(experiment)
    results = {
        cell.method: json.loads((experiment.folder(cell) / RESULT).read_text(encoding="utf-8"))
        for cell in experiment.cells()
    }
    return {"images": sizes.images, "seconds_an_epoch": {name: one["seconds"] / 2 for name, one in results.items()}}


CHECKS: dict[str, Check] = {
    "losses": check_losses,
    "run": check_run,
    "KuaiRand's shape": check_kuairand,
    "large tables": check_tables,
    "images": check_images,
}


def _training(*arguments: str, **environment: str) -> None:
    """Run a command of training. Raises ValueError with its last words where it fails."""
    command = [sys.executable, "-m", "training", *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"training {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def body(found: dict[str, dict[str, Any]]) -> list[str]:
    """The text and the tables of the result file."""
    about = found["machine"]
    lines = [f"Device {about['device']}" + (f", {about['name']}, CUDA {about['cuda']}." if "name" in about else ".")]
    for name in CHECKS:
        one = found[name]
        for reason in ("failed", "skipped"):
            if reason in one:
                lines += ["", f"{name}: {reason}: {one[reason]}"]
    if "largest_difference" in (one := found["losses"]):
        lines += [
            "",
            f"Losses of {one['steps']} steps from the same weights and batches are those of a CPU to "
            f"{one['largest_difference']:.1e} of each.",
        ]
    if "exported" in found["run"]:
        lines += ["", "A checkpoint that the device wrote was evaluated and exported by processes without one."]
    rows = []
    for name, one in (("KuaiRand's shape", found["KuaiRand's shape"]), ("large tables", found["large tables"])):
        for what in ("float32", "bfloat16") if name != "large tables" else ("",):
            taken = one.get(what, {}) if what else one
            if "rows" in taken:
                share = f"{100 * taken['share_of_peak']:.1f} %"
                rows.append([f"{name} {what}".strip(), f"{taken['rows']:,.0f}", f"{1e3 * taken['seconds']:.2f}", share])
    if rows:
        head = ["step", "rows a second", "ms", "share of the peak: product of bfloat16, or copy"]
        lines += ["", *report.table(head, rows)]
    if "seconds_an_epoch" in (one := found["images"]):
        each = [[name, f"{seconds:.1f}"] for name, seconds in one["seconds_an_epoch"].items()]
        lines += ["", *report.table([f"method, {one['images']:,} images", "seconds an epoch"], each)]
    return lines


if __name__ == "__main__":
    run_benchmark(main)
