"""`make bench-private-copy`: tables that two workers verify and map, and one private copy that both map instead.

    python -m benchmarks.private_copy [--mib N] [--turns N]

Each way ends when both workers have read a number of every page. `mapped` is the service's: each worker hashes the file
and maps it. For a private copy the parent hashes once what it copies, into a file of a folder of its own or into memory
without a name (memfd), and the workers map that. The file that is published is in the page cache throughout.
"""

import argparse
import hashlib
import mmap
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

import numpy as np

from benchmarks import report
from benchmarks.command import run_benchmark
from model.untrusted_files import open_regular, sha256_of

_MIB = 2**20
_CHUNK_BYTES = _MIB
_PAGE_BYTES = 4096
WAYS = {
    "mapped": "each worker verifies and maps",
    "file": "one copy in a private file",
    "memfd": "one copy in memory (memfd)",
}
COLUMNS = {
    "wall_s": "wall s",
    "cpu_s": "CPU s of all processes",
    "resident_mib": "resident MiB of a worker",
    "shared_mib": "shared of it",
    "second_mib": "second copy, MiB",
}
Measured = dict[str, float]


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512, help="size of the tables")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="feedrank-bench-") as folder:
        measured = measure(Path(folder), options.mib, options.turns)
    cells = [
        [words, *(f"{statistics.median(turn[column] for turn in measured[way]):,.2f}" for column in COLUMNS)]
        for way, words in WAYS.items()
    ]
    body = [
        f"Tables of {options.mib} MiB, two workers, from a file in the page cache to both workers having read a number "
        f"of every page. Figures are what the mapping adds, medians of {options.turns} turns in random order, on a "
        "machine that did other work too. The second copy is there for as long as the version and the file it came "
        "from: on the disk, or in memory that cannot be dropped.",
        "",
        *report.table(["", *COLUMNS.values()], cells),
    ]
    data = {"mib": options.mib, "turns": measured}
    path = report.write("private_copy", "One private copy of the tables", body, data, "make bench-private-copy")
    print(path.read_text(encoding="utf-8"))


def measure(folder: Path, mib: int, turns: int) -> dict[str, list[Measured]]:
    """By way what each turn took, with a published file of `mib` MiB in `folder`."""
    published = folder / "table_16.f32"
    random = np.random.default_rng(1)
    with published.open("wb") as file:
        for _ in range(mib):
            file.write(random.bytes(_MIB))
    measured: dict[str, list[Measured]] = {way: [] for way in WAYS}
    for turn in range(turns + 1):
        for way in random.permutation(list(WAYS)).tolist():
            found = _measure(way, published, folder)
            if turn:  # the first warms the page cache
                measured[way].append(found)
    return measured


def _measure(way: str, published: Path, folder: Path) -> Measured:
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    workers = [context.Process(target=_work, args=(theirs,)) for _, theirs in pipes]
    for worker in workers:
        worker.start()
    ours = [pipe for pipe, _ in pipes]
    for pipe in ours:
        pipe.recv()  # all is imported
    started, cpu = time.perf_counter(), time.process_time()
    with _shared(way, published, folder) as path:
        for pipe in ours:
            pipe.send((str(path), way == "mapped"))
        found: list[Measured] = [pipe.recv() for pipe in ours]
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        for pipe in ours:
            pipe.send("as long as the other has not measured its memory, both map it")
        memory: list[Measured] = [pipe.recv() for pipe in ours]
    for worker in workers:
        worker.join()
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s + sum(each["cpu_s"] for each in found),
        "resident_mib": statistics.mean(each["resident_mib"] for each in memory),
        "shared_mib": statistics.mean(each["shared_mib"] for each in memory),
        "second_mib": 0.0 if way == "mapped" else published.stat().st_size / _MIB,
    }


@contextmanager
def _shared(way: str, published: Path, folder: Path) -> Iterator[Path]:
    """The file that workers map."""
    if way == "mapped":
        yield published
    elif way == "file":
        with tempfile.TemporaryDirectory(dir=folder) as private:
            with (Path(private) / published.name).open("xb") as copy:
                _copy(published, copy)
            yield Path(private) / published.name
    else:
        with os.fdopen(os.memfd_create("tables"), "wb") as copy:
            _copy(published, copy)
            # In a service a worker would be given the descriptor.
            yield Path(f"/proc/{os.getpid()}/fd/{copy.fileno()}")


def _copy(published: Path, copy: BinaryIO) -> str:
    digest = hashlib.sha256()
    with open_regular(published) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
    copy.flush()
    return digest.hexdigest()


def _work(pipe: Connection) -> None:
    before = _memory()
    pipe.send("ready")
    path, is_verified_here = pipe.recv()
    cpu = time.process_time()
    with open(path, "rb") as file:
        if is_verified_here:
            sha256_of(file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    numbers = np.frombuffer(mapped, "<u1")[::_PAGE_BYTES].sum()
    pipe.send({"cpu_s": time.process_time() - cpu, "sum": float(numbers)})
    pipe.recv()
    pipe.send({name: value - before[name] for name, value in _memory().items()})


def _memory() -> Measured:
    """Memory of this process: resident, and the share that others map too."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    shared = kib["Shared_Clean"] + kib["Shared_Dirty"]
    return {"resident_mib": kib["Rss"] / 1024, "shared_mib": shared / 1024}


if __name__ == "__main__":
    run_benchmark(main)
