"""`make bench-append`: what an append to a catalogue costs, when it is served, and what overlays cost a look-up.

    python -m benchmarks.append [--items 1000000] [--folder DIR]

A catalogue of a million items of the reference feed. CPU seconds are user and system of the whole command. Start is
measured apart: a process that imports the same modules and loads the version. Each append of the cost curve lies on
the base alone. Then a service runs, items are appended a thousand at a time, and the seconds from a command's end to
the first ranking of a new item are counted. Look-ups are timed in one process, with and without overlays in turn, for
requests of random items. Memory is what a worker has of its own (/proc/PID/smaps_rollup, Private). The folder is
removed at the end unless it is given.

Shapes: N candidates of a request.
"""

import argparse
import http.client
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.appended_catalogue import catalogue, item_id, published, seconds_of, write_items
from benchmarks.command import run_benchmark
from benchmarks.reference_feed import columnar_request
from benchmarks.start import service
from model.scorer.scorer import NamedCandidates, Scorer

CURVE = (1, 10, 100, 1_000, 10_000, 100_000)
APPENDED = 1_000
OVERLAYS = 8
TURNS = 3
CANDIDATES = (100, 500)
REQUESTS = 100
LOOK_UP_TURNS = 15
GIVE_UP_SECONDS = 60.0
START = (
    "import sys; from pathlib import Path; import training.publish.catalogue_append as append; "
    "append.Scorer.load(Path(sys.argv[1]), engine='torchscript')"
)


def cost_curve(version: Path, folder: Path, items: int) -> dict[str, Any]:
    """CPU seconds of starts, and of appends of so many new items to the base, turn by turn."""
    start: list[float] = []
    appends: dict[int, list[float]] = {count: [] for count in CURVE}
    paths = {count: write_items(folder / f"new-{count}.parquet", items, count, count) for count in CURVE}
    for turn in range(TURNS + 1):
        begun = seconds_of([sys.executable, "-c", START, str(version)])[0]
        if turn:  # the first one warms the page cache
            start.append(begun)
            for count, path in paths.items():
                appends[count].append(catalogue(version, str(path), "--append")[0])
                shutil.rmtree(_family(version) / "2")
    return {"start": start, "appends": appends}


def served(version: Path, folder: Path, items: int) -> dict[str, Any]:
    """Appends of 1,000 items beside a service: CPU seconds of each, seconds until it is ranked, and a worker's own
    memory with the base alone and with all overlays."""
    costs, visible = [], []
    with service(version.parent.parent, 1) as (process, port, _):
        _wait_ranked(port, item_id(0))
        worker = _worker(process.pid)
        before = _own_mib(worker)
        for number in range(OVERLAYS):
            first = items + number * APPENDED
            path = write_items(folder / f"minute-{number}.parquet", first, APPENDED, first)
            costs.append(catalogue(version, str(path), "--append")[0])
            visible.append(_wait_ranked(port, item_id(first)))
        _wait_ranked(port, item_id(items - 1))
        after = _own_mib(worker)
    return {"appends": costs, "visible_seconds": visible, "own_mib": {"base": before, "overlays": after}}


def look_ups(version: Path, items: int) -> dict[str, Any]:
    """Microseconds of CPU for a request, without overlays and with eight, turn by turn."""
    torch.set_num_threads(1)
    scorers = []
    for generation in (1, OVERLAYS + 1):
        scorer = Scorer.load(version, engine="torchscript")
        scorer.catalogue = scorer.open_catalogue(_family(version) / str(generation))
        scorers.append(scorer)
    user = scorers[0].encoder.encode_request(columnar_request(1, 0)["user"])
    draw = np.random.default_rng(3)
    found: dict[str, Any] = {}

    def find(scorer: Scorer, ids: list[str]) -> NamedCandidates:
        named = scorer.name(ids, {}, {})
        assert named is not None
        return named

    def rows_of(scorer: Scorer, ids: list[str]) -> None:
        assert scorer.catalogue is not None
        scorer.catalogue.rows_of(ids)

    ways: dict[str, Callable[[Scorer, list[str]], object]] = {
        "ids to rows": rows_of,
        "ids to sums": lambda scorer, ids: scorer.named_sums(find(scorer, ids), user.block),
        "ids to answers": lambda scorer, ids: scorer.score(user, find(scorer, ids)),
    }
    for candidates in CANDIDATES:
        for share in (0.0, 0.1):
            drawn = [draw.permutation(items)[:candidates] for _ in range(REQUESTS)]
            base = [[item_id(int(number)) for number in numbers] for numbers in drawn]
            mixed = [_with_overlays(ids, items, share, draw) for ids in base]
            for way, run in ways.items():
                found[f"{way}, {candidates} candidates, {share:.0%} of overlays"] = _in_turns(
                    [(scorers[0], base), (scorers[1], mixed)], run
                )
    return found


def _in_turns(
    both: list[tuple[Scorer, list[list[str]]]], run: Callable[[Scorer, list[str]], object]
) -> list[list[float]]:
    """Microseconds for a request of each, turn by turn. A first turn warms the caches."""
    with torch.inference_mode():
        turns = [[_microseconds(run, scorer, ids) for scorer, ids in both] for _ in range(LOOK_UP_TURNS + 1)]
    return turns[1:]


def _with_overlays(ids: list[str], items: int, share: float, draw: np.random.Generator) -> list[str]:
    """Ids, a share of which is of any of the overlays."""
    others = items + draw.integers(0, OVERLAYS * APPENDED, len(ids))
    is_other_N = draw.random(len(ids)) < share
    return [item_id(n) if is_other else one for one, n, is_other in zip(ids, others.tolist(), is_other_N, strict=True)]


def _microseconds(run: Callable[[Scorer, list[str]], object], scorer: Scorer, requests: list[list[str]]) -> float:
    started = time.process_time()
    for ids in requests:
        run(scorer, ids)
    return (time.process_time() - started) / len(requests) * 1e6


def _family(version: Path) -> Path:
    return version.parent / "derived" / version.name / "catalogue"


def _wait_ranked(port: int, identifier: str) -> float:
    """Seconds until a request by this id is answered. Raises RuntimeError after GIVE_UP_SECONDS."""
    body = json.dumps({"user": columnar_request(1, 0)["user"], "candidates": {"id": [identifier]}})
    started = time.perf_counter()
    while time.perf_counter() - started < GIVE_UP_SECONDS:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/rank", body)
        if connection.getresponse().status == 200:
            return time.perf_counter() - started
        time.sleep(0.02)
    raise RuntimeError(f"{identifier} was not ranked within {GIVE_UP_SECONDS:g} s")


def _worker(pid: int) -> int:
    """The process that scores: the one below with the most memory."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return max([pid, *map(int, children)], key=_own_mib)


def _own_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def _ratio(turns: list[list[float]]) -> tuple[float, float]:
    """Median of the turns' quotients, and the microseconds more, with overlays against without."""
    quotients = [with_overlays / without for without, with_overlays in turns]
    more = [with_overlays - without for without, with_overlays in turns]
    return statistics.median(quotients), statistics.median(more)


def main() -> None:
    """Measure and write results/append.md and .json."""
    parser = argparse.ArgumentParser(description="Appends to a catalogue of many items.")
    parser.add_argument("--items", type=int, default=1_000_000, help="items of the base (default 1,000,000)")
    parser.add_argument("--folder", type=Path, help="where the catalogue is made and kept")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        version, built = published(folder, options.items)
        size = sum(file.stat().st_size for file in (_family(version) / "1").iterdir())
        data: dict[str, Any] = {"items": options.items, "build_cpu_seconds": built, "base_bytes": size}
        data["curve"] = cost_curve(version, folder, options.items)
        data["served"] = served(version, folder, options.items)
        data["look_ups"] = look_ups(version, options.items)
        more = write_items(folder / "ninth.parquet", options.items + OVERLAYS * APPENDED, APPENDED, 9)
        data["merge_cpu_seconds"] = catalogue(version, str(more), "--append")[0]
    report.write("append", "Appends to a catalogue", _body(data), data, "make bench-append")


def _body(data: dict[str, Any]) -> list[str]:
    start = statistics.median(data["curve"]["start"])
    appends, beside = data["curve"]["appends"], data["served"]
    rows = [
        [f"{count:,}", f"{statistics.median(cpu):.2f}", f"{statistics.median(cpu) - start:.2f}"]
        for count, cpu in appends.items()
    ]
    own, visible = beside["own_mib"], sorted(beside["visible_seconds"])
    ways = []
    for name, turns in data["look_ups"].items():
        quotient, more = _ratio(turns)
        ways.append([name, f"{statistics.median(turn[0] for turn in turns):.0f}", f"{more:+.0f}", f"{quotient:.2f}"])
    return [
        f"A catalogue of {data['items']:,} items of the reference feed, {data['base_bytes'] / 1e9:.1f} GB, is built in "
        f"{data['build_cpu_seconds']:.1f} s of CPU. Starting, which every command does, takes {start:.2f} s of CPU: "
        "imports, and the version loaded and verified.",
        "",
        *report.table(["new items", "CPU seconds of the command", "of these after start"], rows),
        "",
        f"Beside a service, {len(visible)} appends of {APPENDED:,} items took "
        f"{statistics.median(beside['appends']) - start:.2f} s of CPU after start (median). New items were ranked "
        f"{statistics.median(visible):.1f} s after the command's end, {visible[-1]:.1f} s at most. The service polls "
        f"every 2 s. A worker's own memory was {own['base']:.0f} MiB with the base and {own['overlays']:.0f} MiB with "
        f"{OVERLAYS} overlays. The ninth append merges all overlays, and took "
        f"{data['merge_cpu_seconds'] - start:.2f} s of CPU after start.",
        "",
        f"Microseconds of CPU for a request of random items, without overlays, and what {OVERLAYS} of them add. "
        "Requests have either no item of an overlay, or a tenth, of any of them:",
        "",
        *report.table(["from", "without", "more with", "quotient"], ways),
    ]


if __name__ == "__main__":
    run_benchmark(main)
