"""Wheels that `make check-gpu` needs on a machine that has torch and no package index.

    python -m benchmarks.gpu_bundle --present packages.txt --out wheels [--python 3.12]

In: the packages that the other machine has (its `pip list --format freeze`), and this environment, whose versions are
taken. Out: a folder of wheels of all else that the checks import, for Linux on x86-64. There:

    make check-gpu PYTHON=python3 WHEELS=wheels

torch is the other machine's. TorchRec and fbgemm fit one build of torch and stay behind: tables are plain torch's.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.command import run_benchmark

MOST_BYTES = 64 * 2**20
_LEFT_BEHIND = re.compile(
    r"torch|torchrec|torchmetrics|tensordict|fbgemm-gpu.*|triton|nvidia-.*|pyre-extensions|setuptools|pip"
)
_IMPORTS = "import sys, benchmarks.check_gpu, training.train, training.evaluate.evaluate, training.publish.export; "
_PRINT = "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def main() -> None:
    """Fetches the wheels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--present", type=Path, required=True, help="pip list --format freeze of the other machine")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--python", default="3.12", help="Python of the other machine (default 3.12)")
    options = parser.parse_args()
    if options.out.exists():
        raise ValueError(f"{options.out}: is there already; name a new folder")
    present = {canonical(line.partition("==")[0]) for line in options.present.read_text(encoding="utf-8").split()}
    wanted = [name for name in imported() if name not in present]
    if not wanted:
        raise ValueError(f"{options.present}: has all that the checks import; make check-gpu needs no wheels there")
    fetch(wanted, options.out, options.python)
    sizes = {wheel.name: wheel.stat().st_size for wheel in options.out.glob("*.whl")}
    if sum(sizes.values()) > MOST_BYTES:
        by_size = sorted(sizes.items(), key=lambda one: -one[1])
        largest = ", ".join(f"{name} {size >> 20} MiB" for name, size in by_size[:3])
        raise ValueError(f"{options.out}: {sum(sizes.values()) >> 20} MiB, at most {MOST_BYTES >> 20}: {largest}")
    print(f"{options.out}: {len(sizes)} wheels, {sum(sizes.values()) / 2**20:.1f} MiB: {' '.join(wanted)}")


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> list[str]:
    """The distributions that the checks import, and what those declare to need, without torch and its own."""
    printed = subprocess.run([sys.executable, "-c", _IMPORTS + _PRINT], capture_output=True, text=True, check=True)
    owners = importlib.metadata.packages_distributions()
    found: set[str] = set()
    waiting = {canonical(owner) for module in printed.stdout.split() for owner in owners.get(module, ())}
    while waiting:
        name = waiting.pop()
        if name in found or _LEFT_BEHIND.fullmatch(name):
            continue
        found.add(name)
        waiting |= set(_needs(name))
    return sorted(found)


def _needs(name: str) -> Iterable[str]:
    for line in importlib.metadata.requires(name) or ():
        need = re.match(r"[A-Za-z0-9._-]+", line)
        if need is not None and "extra ==" not in line and _is_installed(canonical(need[0])):
            yield canonical(need[0])


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def fetch(names: Iterable[str], out: Path, python: str) -> None:
    """Fetch wheels of this environment's versions. Raises ValueError with pip's last line."""
    platforms = [word for platform in _PLATFORMS for word in ("--platform", f"{platform}_x86_64")]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--dest", str(out)]
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    done = subprocess.run(
        [*command, "--python-version", python, "--implementation", "cp", *platforms, *pinned],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"pip download: {done.stderr.strip().splitlines()[-1]}")


if __name__ == "__main__":
    run_benchmark(main)
