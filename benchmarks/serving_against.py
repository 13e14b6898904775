"""Parts of a request's cost in this checkout against another's: `make bench-serving ARGS="--against DIR"`.

In: the root of another checkout, which runs in the same environment. Out: tables, and their file. Each checkout serves
an artifact of the reference feed that it has exported itself, with the same weights, by services of its own on one
core (benchmarks/frame_service.py). The user part and the look-ups of the exported module are timed in a process of each
checkout (benchmarks/module_stages.py). Services take turns, A B B A, and ratios are taken within a turn.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from rich.progress import Progress

from benchmarks import report
from benchmarks.events import Way
from benchmarks.module_stages import SHOWN
from benchmarks.ratio import Ratio
from benchmarks.reference_feed import columnar_request
from benchmarks.serving_processes import SERVER_CORES, Server, free_port, serve
from benchmarks.wires import WIRES, messages

HERE = Path(__file__).parents[1]
# By what is measured, the part of benchmarks/frame_service.py and the wire.
SERVED = {
    "HTTP server alone": ("server", "columns"),
    "frame": ("frame", "columns"),
    "frame and data path": ("unscored", "columns"),
    "whole request": ("all", "columns"),
    "whole request, bytes of /v2": ("all", "bytes"),
}
WHOLE, BYTES = list(SERVED)[-2:]
TIMED = tuple(SHOWN)
# Different requests of each size, so that no cache of values answers.
_REQUESTS = 8
_WARM_UP = 100
_CALLS = 300

# CPU microseconds by turn, by size, what is measured, and checkout.
Spent = dict[tuple[int, str, Path], list[float]]


@dataclass(frozen=True)
class Checkout:
    """A checkout, its services by part, and the process that times its exported module."""

    root: Path
    servers: Mapping[str, Server]
    timer: "subprocess.Popen[str]"


def compare(
    other: Path, sizes: Sequence[int], turns: int, requests: int, *, only_module: bool
) -> tuple[list[str], dict[str, Any]]:
    """The tables, and their figures. Raises RuntimeError where a service of either checkout fails."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="feedrank-bench-")))
        checkouts = [stack.enter_context(_running(root, folder, only_module=only_module)) for root in (HERE, other)]
        spent = _take_turns(stack, checkouts, sizes, turns, requests)
    figures = {
        name: {
            str(size): {what: spent[size, what, root] for what in (*SERVED, *TIMED) if (size, what, root) in spent}
            for size in sizes
        }
        for name, root in (("here", HERE), ("there", other))
    }
    return _tables(figures, _commit(other), turns), figures


def _tables(figures: dict[str, dict[str, dict[str, list[float]]]], commit: str, turns: int) -> list[str]:
    rows, wires = [], []
    for size, mine in figures["here"].items():
        others = figures["there"][size]
        rows += [
            [size, what, *map(_shown, (mine[what], others[what])), str(Ratio.of(mine[what], others[what]))]
            for what in mine
        ]
        if WHOLE in mine:
            ratios = [str(Ratio.of(one[BYTES], one[WHOLE])) for one in (mine, others)]
            wires.append([size, *ratios])
    return [
        f"CPU microseconds of a request, median of {turns} turns and the least. The other checkout is commit {commit}. "
        "The last column is the ratio within a turn, with its 95 % interval. The services run on one core, and the "
        "exported module's stages in a process of their own.",
        "",
        *report.table(["N", "what", "here", f"at {commit}", "ratio"], rows),
        *(
            [
                "",
                f"{WIRES['bytes']} against {WIRES['columns']}:",
                "",
                *report.table(["N", "here", f"at {commit}"], wires),
            ]
            if wires
            else []
        ),
    ]


def _shown(microseconds: Sequence[float]) -> str:
    return f"{statistics.median(microseconds):.0f} ({min(microseconds):.0f})"


@contextmanager
def _running(root: Path, folder: Path, *, only_module: bool) -> Iterator[Checkout]:
    """A checkout with what it has published, until the block ends."""
    with ExitStack() as stack:
        models = Path(mkdtemp(dir=folder))
        artifact = _publish(root, models, folder / "as_trained.pt")
        parts = [] if only_module else dict.fromkeys(part for part, _ in SERVED.values())
        servers = {part: stack.enter_context(_server(root, part, models, folder)) for part in parts}
        command = ["taskset", "-c", ",".join(map(str, SERVER_CORES)), sys.executable]
        timer = stack.enter_context(
            subprocess.Popen(
                [*command, str(HERE / "benchmarks/module_stages.py"), str(artifact)],
                cwd=root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        stack.callback(timer.terminate)
        yield Checkout(root, servers, timer)


def _publish(root: Path, models: Path, as_trained: Path) -> Path:
    """Publish by a checkout's own code. Returns the artifact's folder."""
    code = (
        "import sys; from pathlib import Path; from benchmarks import as_trained; "
        "from benchmarks.reference_feed import columnar_request; "
        "as_trained.publish(Path(sys.argv[1]), columnar_request(100, 0), Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(models), str(as_trained)], cwd=root, check=True)
    return next(models.glob("reference/1"))


@contextmanager
def _server(root: Path, part: str, models: Path, folder: Path) -> Iterator[Server]:
    port = free_port()
    script = str(HERE / "benchmarks/frame_service.py")
    flags = ["--models", str(models), "--port", str(port), "--threads", "1", "--queue-seconds", "60"]
    command = [sys.executable, script, part, *flags]
    with serve(command, "/readyz", port, folder / f"{port}.log", SERVER_CORES, root) as server:
        yield server


def _take_turns(
    stack: ExitStack, checkouts: Sequence[Checkout], sizes: Sequence[int], turns: int, requests: int
) -> Spent:
    spent: Spent = {}
    progress = stack.enter_context(Progress(transient=True))
    for size in progress.track(sizes, description="candidates"):
        given = [columnar_request(size, seed) for seed in range(_REQUESTS)]
        for turn in range(-1, turns):  # the first warms up
            count = _WARM_UP if turn < 0 else requests
            for what in (*SERVED, *TIMED[:1]):
                for checkout in checkouts[:: 1 if turn % 2 else -1]:
                    figures = {}
                    if what in TIMED:
                        figures = _timed(checkout, given[0])
                    elif checkout.servers:
                        part, wire = SERVED[what]
                        server = checkout.servers[part]
                        sent = messages(server.url, given)[wire]
                        way = Way(server, [sent[number % _REQUESTS] for number in range(count)])
                        figures = {what: way.cpu_seconds() / count * 1e6}
                    if turn >= 0:
                        for one, microseconds in figures.items():
                            spent.setdefault((size, one, checkout.root), []).append(microseconds)
    return spent


def _timed(checkout: Checkout, request: dict[str, Any]) -> dict[str, float]:
    """CPU microseconds of the exported module's stages. Raises RuntimeError where their process has ended."""
    timer = checkout.timer
    assert timer.stdin is not None
    assert timer.stdout is not None
    print(json.dumps({"request": request, "calls": _CALLS}), file=timer.stdin, flush=True)
    line = timer.stdout.readline()
    if not line:
        raise RuntimeError("the process that times the exported module has ended; what it said stands above")
    figures: dict[str, float] = json.loads(line)
    return figures


def _commit(root: Path) -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    return described.stdout.strip() or "unknown"
