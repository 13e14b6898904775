"""`make bench-first-demo`: what a first `make demo` fetches and takes, in a fresh clone of this commit.

    python -m benchmarks.first_demo [--wheels-only]

pip fetches the wheels of the lock files as `make setup` does, by this machine's own settings, and their sizes are added
up. Then the clone runs `make setup` and `make demo ONCE=1`, with those wheels at hand (PIP_FIND_LINKS): the network,
which is each user's own, has no part in the seconds. CPU seconds count all processes. Seconds depend on what else runs.
"""

import argparse
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.command import run_benchmark

LOCKS = ("dev", "fbgemm-cpu")
SHOWN = 6


def main() -> None:
    """Fetches, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels-only", action="store_true", help="the sizes alone: nothing is run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone, wheels = Path(folder) / "clone", Path(folder) / "wheels"
        subprocess.run(["git", "clone", "-q", str(Path.cwd()), str(clone)], check=True)
        sizes = _fetch(clone, wheels)
        print(f"{_megabytes(sizes):,.0f} MB in {len(sizes)} wheels", flush=True)
        environment = {**os.environ, "PIP_FIND_LINKS": f"{wheels} {os.environ.get('PIP_FIND_LINKS', '')}"}
        commands = [] if options.wheels_only else [["make", "setup"], ["make", "demo", "ONCE=1"]]
        steps = {
            " ".join(command): _timed([*command, f"PORT={_free_port()}"], clone, environment) for command in commands
        }
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:SHOWN]
    body = [
        f"`make demo` in a fresh clone fetches {_megabytes(sizes):,.0f} MB in {len(sizes)} wheels. The largest:",
        "",
        *report.table(["wheel", "MB"], [[name, f"{sizes[name] / 1e6:,.0f}"] for name in largest]),
    ]
    if steps:
        lines = [[name, f"{step['seconds']:,.0f}", f"{step['cpu_seconds']:,.0f}"] for name, step in steps.items()]
        body += ["", "With the wheels at hand:", "", *report.table(["step", "seconds", "CPU seconds"], lines)]
        body += ["", f"Load average at the end {os.getloadavg()[1]:.1f}."]
    content = {"wheels_bytes": sizes, "steps": steps}
    command = "make bench-first-demo" + (" ARGS=--wheels-only" if options.wheels_only else "")
    print(report.write("first_demo", "A first make demo", body, content, command).read_text())


def _fetch(clone: Path, wheels: Path) -> dict[str, int]:
    """The size in bytes of every wheel of a development environment, by name."""
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    locks = [part for lock in LOCKS for part in ("-r", str(clone / f"requirements/{lock}.txt"))]
    subprocess.run([*command, "--dest", str(wheels), *locks], check=True)
    return {path.name: path.stat().st_size for path in sorted(wheels.iterdir())}


def _timed(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, float]:
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.monotonic() - begun, "cpu_seconds": cpu}


def _megabytes(sizes: dict[str, int]) -> float:
    return sum(sizes.values()) / 1e6


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    run_benchmark(main)
