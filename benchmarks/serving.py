"""`make bench-serving`: what a scoring request costs, against services written in other ways around the same network.

    python -m benchmarks.serving [--peers] [--quick] [--candidates 1 10 100 500 1000] [--turns 7] [--against DIR]

All services run as real processes with one torch thread on one core and serve the same random weights of the reference
feed. Answers are compared first, and there is no result where they differ. A load generator of its own sends requests
over loopback, one at a time and eight at a time. Services take turns, A B C C B A, at every size, so that what else the
machine does falls on all of them. Ratios are taken within a turn. CPU time is the servers', user and system, all
threads and children, from /proc. Then comes what the stages of feedrank's own requests cost (serving_stages.py).
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks import report, serving_report, serving_stages
from benchmarks.command import run_benchmark
from benchmarks.load_generator import Block, Load
from benchmarks.reference_feed import as_rows, columnar_request
from benchmarks.serving_against import compare
from benchmarks.serving_processes import CLIENT_CORES, SERVER_CORES, LoadGenerator, load_generator
from benchmarks.serving_services import COMPILED, MLSERVER_ENVIRONMENT, Services, Way
from model.scorer.scorer import Engine

SIZES = (1, 10, 100, 500, 1000)
AGAINST_SIZES = (10, 100, 500)
CONCURRENCY = (1, 8)
WARM_UP = 20
# The fewest make a p99 over all turns, the most bound the quickest.
FEWEST, MOST = 16, 1500
# No service here needs a tenth of it for a block. One that hangs does not stop the rest for ever.
BLOCK_SECONDS = 30.0


def main() -> None:
    """Measures, prints and writes the tables and the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--peers", action="store_true", help="MLServer too; its environment is made the first time")
    parser.add_argument("--quick", action="store_true", help="100 and 500 candidates, 2 short turns; writes no result")
    parser.add_argument("--candidates", type=_positive, nargs="+", help="sizes of a request")
    parser.add_argument("--turns", type=_positive)
    parser.add_argument("--requests", type=_positive, help="requests of a block; without it, by the service's speed")
    parser.add_argument("--against", type=Path, help="the root of another checkout, whose parts of a request compare")
    parser.add_argument("--only-module", action="store_true", help="--against: the exported module's stages alone")
    parser.add_argument("--note", default="", help="said in the result: what else the machine was doing")
    options = parser.parse_args()
    sizes = options.candidates or ((100, 500) if options.quick else SIZES)
    turns = options.turns or (2 if options.quick else 7)
    signal.signal(signal.SIGTERM, _end)  # the services end with it
    if options.against is not None:
        _compare(options, turns)
        return
    seconds = 0.15 if options.quick else 0.35
    console = Console(stderr=True)
    try:
        data = measure(console, sorted(set(sizes)), turns, seconds, options.requests, with_mlserver=options.peers)
    except KeyboardInterrupt:
        sys.exit("stopped; nothing is written and no service is left running")
    except RuntimeError as error:
        sys.exit(f"no result: {error}")
    data["note"] = options.note
    body = serving_report.body_of(data)
    print("\n".join(body))
    if options.quick:
        print("\nA quick run is a look, not a result; nothing was written.")
        return
    (report.RESULTS / serving_report.PICTURE).write_bytes(serving_report.picture(data))
    print(report.write("serving", "What a scoring request costs", body, data, _command(options)))


def _compare(options: argparse.Namespace, turns: int) -> None:
    """Parts of a request here and in another checkout."""
    sizes = options.candidates or AGAINST_SIZES
    root = options.against.resolve()
    body, figures = compare(root, sizes, turns, options.requests or 300, only_module=options.only_module)
    print("\n".join(body))
    if options.quick or options.only_module:
        return
    command = 'make bench-serving ARGS="--against DIR"'
    print(report.write("serving_against", "Parts of a request", body, {"microseconds": figures}, command))


def measure(
    console: Console, sizes: Sequence[int], turns: int, seconds: float, requests: int | None, *, with_mlserver: bool
) -> dict[str, Any]:
    """All raw figures. `seconds` is about the length of a block. `requests` fixes its number of requests instead.

    Raises RuntimeError where a service fails, or answers otherwise than the usual one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedrank-bench-")))
        services = Services(stack, folder, sizes)
        with console.status("starting") as status:
            services.start(lambda what: status.update(f"starting: {what}"), with_mlserver=with_mlserver)
            for what, reason in services.left_out.items():
                console.print(f"{what} is left out: {reason}", style="yellow")
            status.update("comparing the services' answers")
            difference = max(services.check(size) for size in sizes)
        with (
            ExitStack() as running,
            Progress(console=console) as progress,
        ):
            generator = running.enter_context(load_generator())
            task = progress.add_task("warming up", total=len(sizes) * (1 + turns) * len(services.ways))
            data = _take_turns(
                services,
                generator,
                sizes,
                turns,
                seconds,
                requests,
                lambda what: progress.update(task, advance=1, description=what),
            )
        engines: list[Engine] = ["torchscript", *(["compiled"] if COMPILED in services.ways else [])]  # type: ignore[list-item]
        bodies = {
            size: {
                "columns": json.dumps(request).encode(),
                "rows": json.dumps(as_rows(request)).encode(),
            }
            for size in sizes
            for request in [columnar_request(size, 0)]
        }
        with console.status("the stages of a request"):
            data["stages"] = serving_stages.measure(services.artifact, services.as_trained, bodies, engines)
    return {
        "turns": turns,
        "largest_score_difference": difference,
        "left_out": services.left_out,
        "cores": {"servers": sorted(SERVER_CORES), "client": sorted(CLIENT_CORES)},
        "mlserver": _mlserver_versions() if with_mlserver else {},
        **data,
    }


def _take_turns(
    services: Services,
    generator: LoadGenerator,
    sizes: Sequence[int],
    turns: int,
    seconds: float,
    requests: int | None,
    advance: Callable[[str], None],
) -> dict[str, Any]:
    """By size and way: CPU ms of a request by turn, with one request at a time and with eight, and latency of both."""
    files = {size: services.bodies(size) for size in sizes}
    counts: dict[int, dict[str, int]] = {size: {} for size in sizes}
    for size in sizes:
        for name, way in services.ways.items():
            latencies = _load(generator, way, files[size][name], WARM_UP, 1).latencies
            number = int(seconds / statistics.median(latencies))
            counts[size][name] = requests or min(max(number, FEWEST), MOST)
            advance(f"warming up, {size} candidates")
    cpu_ms: dict[int, dict[str, dict[int, list[float]]]] = {
        size: {name: {many: [] for many in CONCURRENCY} for name in services.ways} for size in sizes
    }
    loads: dict[tuple[int, str, int], list[Load]] = {}
    for turn in range(turns):
        for size in sizes:
            for name in list(services.ways)[:: 1 if turn % 2 == 0 else -1]:
                way = services.ways[name]
                for many in CONCURRENCY:
                    before = way.server.cpu()
                    load = _load(generator, way, files[size][name], counts[size][name], many)
                    spent = way.server.cpu().seconds_since(before)
                    cpu_ms[size][name][many].append(spent / len(load.latencies) * 1e3)
                    loads.setdefault((size, name, many), []).append(load)
                advance(f"turn {turn + 1} of {turns}, {size} candidates")
    return {
        "sizes": {
            str(size): {
                name: {
                    "body_bytes": len(json.loads(files[size][name].read_text())[0]),
                    **{
                        str(many): {"cpu_ms": cpu_ms[size][name][many], **_summary(loads[size, name, many])}
                        for many in CONCURRENCY
                    },
                }
                for name in services.ways
            }
            for size in sizes
        }
    }


def _load(generator: LoadGenerator, way: Way, bodies: Path, requests: int, concurrency: int) -> Load:
    load = generator(Block(way.server.port, way.path, str(bodies), requests, concurrency, BLOCK_SECONDS))
    assert load.latencies
    return load


def _summary(loads: Sequence[Load]) -> dict[str, Any]:
    latencies = np.concatenate([load.latencies for load in loads])
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return {
        "requests": len(latencies),
        "requests_per_second": [len(load.latencies) / load.seconds for load in loads],
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "client_cpu_ms": sum(load.client_cpu_seconds for load in loads) / len(latencies) * 1e3,
    }


def _command(options: argparse.Namespace) -> str:
    """The command that measures the same again."""
    given = ["--peers"] if options.peers else []
    if options.candidates:
        given += ["--candidates", *map(str, options.candidates)]
    for name in ("turns", "requests"):
        if getattr(options, name):
            given += [f"--{name}", str(getattr(options, name))]
    return "make bench-serving" + (f' ARGS="{" ".join(given)}"' if given else "")


def _mlserver_versions() -> dict[str, str]:
    names = ("mlserver", "torch", "fastapi", "pydantic", "uvicorn")
    folders = (MLSERVER_ENVIRONMENT / "lib").glob("python*/site-packages/*.dist-info")
    installed = dict(folder.name.removesuffix(".dist-info").split("-", 1) for folder in folders)
    return {name: installed[name] for name in names if name in installed}


def _end(_: int, __: types.FrameType | None) -> None:
    raise KeyboardInterrupt


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


if __name__ == "__main__":
    run_benchmark(main)
