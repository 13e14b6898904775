"""Frame and data path of this checkout against another's: `make bench-serving ARGS="--against DIR"`.

In: the root of another checkout, for the same environment. Out: a table. Each checkout serves an artifact of its own of
the reference feed, with the same weights, from processes of their own on one core. One service remembers its answers,
and what it spends is the frame. One remembers what the exported module answered, and what it spends is the frame and
the data path, distinct candidates and the module's inputs included. One answers past the application, which is the HTTP
server and the kernel. Services take turns, A B B A, and ratios are taken within a turn.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from rich.progress import Progress

from benchmarks import report
from benchmarks.load_generator import Block
from benchmarks.ratio import Ratio
from benchmarks.reference_feed import columnar_request
from benchmarks.serving_processes import SERVER_CORES, Server, free_port, load_generator, serve

APPS = {
    "HTTP server alone": "make_bare_app",
    "frame": "make_app",
    "frame and data path": "make_unscored_app",
}
HERE = Path(__file__).parents[1]
WARM_UP = 100
BLOCK_SECONDS = 60.0


def compare(other: Path, sizes: Sequence[int], turns: int, requests: int) -> list[str]:
    """The table. Raises RuntimeError where a service of either checkout fails."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="feedrank-bench-")))
        servers = {
            (what, checkout): stack.enter_context(_server(checkout, app, models, folder))
            for checkout in (HERE, other)
            for models in [_published(checkout, folder)]
            for what, app in APPS.items()
        }
        spent = _take_turns(stack, servers, folder, sizes, turns, requests)
    cells = []
    for size in sizes:
        for what in APPS:
            mine, others = spent[size, what, HERE], spent[size, what, other]
            medians = [f"{statistics.median(values):.0f} ({min(values):.0f})" for values in (mine, others)]
            cells.append([str(size), what, *medians, str(Ratio.of(mine, others))])
    return report.table(["N", "what", "CPU us here: median (least)", "there", "here / there"], cells)


def _published(checkout: Path, folder: Path) -> Path:
    """A models folder that a checkout has published into."""
    models = Path(mkdtemp(dir=folder))
    code = (
        "import sys; from pathlib import Path; from benchmarks import as_trained; "
        "from benchmarks.reference_feed import columnar_request; "
        "as_trained.publish(Path(sys.argv[1]), columnar_request(100, 0), Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(models), str(folder / "as_trained.pt")], cwd=checkout, check=True)
    return models


def _server(checkout: Path, app: str, models: Path, folder: Path) -> AbstractContextManager[Server]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(checkout), "--factory"]
    command += [f"benchmarks.frame_service:{app}", "--port", str(port), "--loop", "uvloop", "--http", "httptools"]
    command += ["--ws", "none", "--no-access-log", "--no-server-header", "--log-level", "warning"]
    log = folder / f"{port}.log"
    return serve(command, "/readyz", port, log, SERVER_CORES, FRAME_MODELS=str(models))


def _take_turns(
    stack: ExitStack,
    servers: dict[tuple[str, Path], Server],
    folder: Path,
    sizes: Sequence[int],
    turns: int,
    requests: int,
) -> dict[tuple[int, str, Path], list[float]]:
    """CPU microseconds of a request by turn."""
    generator = stack.enter_context(load_generator())
    spent: dict[tuple[int, str, Path], list[float]] = {}
    progress = stack.enter_context(Progress(transient=True))
    for size in progress.track(sizes, description="candidates"):
        bodies = folder / f"{size}.json"
        bodies.write_text(json.dumps([json.dumps(columnar_request(size, 0))]))
        for turn in range(-1, turns):  # the first warms up
            count = WARM_UP if turn < 0 else requests
            for key, server in list(servers.items())[:: 1 if turn % 2 else -1]:
                before = server.cpu()
                load = generator(Block(server.port, "/v1/rank", str(bodies), count, 1, BLOCK_SECONDS))
                microseconds = server.cpu().seconds_since(before) / len(load.latencies) * 1e6
                if turn >= 0:
                    spent.setdefault((size, *key), []).append(microseconds)
    return spent
