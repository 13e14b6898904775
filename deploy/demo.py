"""`make demo`: from nothing to ranked candidates over HTTP, with the project's own commands.

    python -m deploy.demo [--data DIR] [--port 8080] [--once]

Data (the built-in simulator, or KuaiRand-Pure from --data), train, evaluate, export the next version of model `demo`,
serve it, send one request, print the ranking and the curl line that repeats it, serve on until Ctrl-C. Every step is a
command that is printed and can be run by hand. Ctrl-C, or its terminal's end, ends the step in progress and leaves no
process behind.
"""

import argparse
import json
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.table import Table

from deploy.child_processes import ChildError, child, wait_until_ready

MODELS = Path("models")
NAME = "demo"
BAR = 8
console = Console(highlight=False)
console.width = max(console.width, 110)  # a column per output, also where the output is no terminal


@dataclass(frozen=True)
class Feed:
    """A feed that the demo can show: how its data is made, its training file, and a value model for its tasks."""

    make_data: list[str]
    made: Path
    config: str
    weights: dict[str, float]

    @property
    def run(self) -> Path:
        """The folder of its training run."""
        return Path("runs") / "demo" / self.made.name


def simulated(rows: int) -> Feed:
    """The built-in simulator's feed, with so many impressions."""
    made = Path("data/simulated")
    return Feed(
        ["simulate", "--rows", str(rows), "--seed", "1", "--out", str(made)],
        made,
        "configs/simulated.yaml",
        {"click": 1.0, "long_view": 1.5, "like": 10.0, "hide": -20.0},
    )


def kuairand(source: Path) -> Feed:
    """KuaiRand-Pure, from the folder of its files."""
    made = Path("data/kuairand")
    return Feed(
        ["prepare", "kuairand", "--source", str(source), "--out", str(made)],
        made,
        "configs/kuairand.yaml",
        {"click": 1.0, "long_view": 1.5, "like": 10.0, "profile_enter": 5.0, "comments_opened": 2.0, "finished": 1.0},
    )


def main() -> int:
    """Run the demo. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description="Train, serve and ask a ranker.")
    parser.add_argument("--data", type=Path, help="folder of KuaiRand-Pure (default: the built-in simulator)")
    parser.add_argument("--rows", type=int, default=200_000, help="impressions to simulate (default 200000)")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--once", action="store_true", help="stop after the ranking")
    options = parser.parse_args()
    # Each of them ends the step in progress and takes the children along. A shell's background job ignores SIGINT
    # unless it is set not to. What nohup has ignored stays ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _end_with_terminal)
    try:
        _refuse_taken_port(options.port)
        feed = kuairand(options.data) if options.data else simulated(options.rows)
        artifact = _publish(feed)
        with _service(options.port) as base:
            _show_ranking(base, artifact, feed)
            if not options.once:
                console.print("\nServing until Ctrl-C. API documentation: " + base + "/docs")
                _wait_for_interrupt()
        return 0
    except KeyboardInterrupt:
        console.print("\ninterrupted; what was finished is kept, run the demo again to go on")
        return 130
    except ChildError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1


def _end_with_terminal(*_: object) -> None:
    # The kernel and the shell each say that the terminal is gone, which cannot be written to any more.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    console.quiet = True
    raise KeyboardInterrupt


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ChildError(f"port {port} cannot be used ({error}); choose another: make demo PORT=8090") from None


def _publish(feed: Feed) -> Path:
    """Data, training, evaluation, export. Returns the published version's folder."""
    _training("1/4 data", *feed.make_data)
    if (feed.run / "summary.json").exists():
        # A finished run is yesterday's demo. An interrupted one is resumed.
        shutil.rmtree(feed.run)
    _training("2/4 train", "train", feed.config, "--set", f"output={feed.run}")
    _training("3/4 evaluate", "evaluate", str(feed.run))
    _training("4/4 export", "export", str(feed.run), "--models", str(MODELS), "--name", NAME)
    newest = max((path for path in (MODELS / NAME).iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    _write_value_models(feed, newest)
    return newest


def _training(step: str, *arguments: str) -> None:
    console.print(f"\n[{step}] python -m training {shlex.join(arguments)}", style="bold", markup=False, soft_wrap=True)
    with child("training", *arguments) as process:
        if process.wait():
            raise ChildError(f"step {step} failed")


def _write_value_models(feed: Feed, artifact: Path) -> None:
    """Write a value model unless one is there that fits the answers: it belongs to its editor."""
    path = MODELS / NAME / "value_models.yaml"
    outputs = set(_golden_requests(artifact)[0]["expected"])
    if path.exists():
        existing = yaml.safe_load(path.read_text(encoding="utf-8"))
        weights = existing.get("default", {}).get("weights", {}) if isinstance(existing, dict) else {}
        if weights and set(weights) <= outputs:
            return
    content = yaml.safe_dump({"default": {"kind": "weighted_sum", "weights": feed.weights}}, sort_keys=False)
    path.write_text(
        "# Task weights of the combined score; a running service takes changes without a restart.\n" + content
    )


def _golden_requests(artifact: Path) -> list[dict[str, Any]]:
    requests: list[dict[str, Any]] = json.loads((artifact / "golden_requests.json").read_bytes())["requests"]
    return requests


@contextmanager
def _service(port: int) -> Iterator[str]:
    """The service as a child process, ready. It is ended and waited for on the way out."""
    arguments = ["--models", str(MODELS), "--port", str(port), "--log-level", "warning", "--drain-seconds", "0"]
    console.print(f"\npython -m service {shlex.join(arguments)}", style="bold", markup=False, soft_wrap=True)
    base = f"http://127.0.0.1:{port}"
    with child("service", *arguments) as process:
        wait_until_ready(process, base)
        yield base


def _show_ranking(base: str, artifact: Path, feed: Feed) -> None:
    """Send a request made of real rows (the artifact's golden request of 20 candidates) and print the answer."""
    picked = next(request for request in _golden_requests(artifact) if len(request["candidates"]["id"]) == 20)
    body = {"model": NAME, "user": picked["user"], "candidates": picked["candidates"], "top_k": 10}
    request = feed.run / "request.json"
    request.write_text(json.dumps(body), encoding="utf-8")
    response = httpx.post(base + "/v1/rank", json=body)
    if response.status_code != 200:
        raise ChildError(f"the service answered {response.status_code}: {response.text}")
    answer = response.json()
    schema = json.loads((artifact / "manifest.json").read_bytes())["schema"]
    quantities = {task["name"] for task in schema["tasks"] if task["kind"] == "regression"}
    console.print(_ranking(answer, quantities))
    console.print("Repeat it:")
    console.print(
        f"  curl -s {base}/v1/rank -H 'Content-Type: application/json' -d @{request}", style="bold", soft_wrap=True
    )


def _ranking(answer: dict[str, Any], quantities: set[str]) -> Table:
    candidates = answer["candidates"]
    title = (
        f"\nTop {len(candidates['id'])} of 20 candidates; model {answer['model']} version {answer['model_version']}, "
        f"value model {answer['value_model']} {answer['value_model_version']}; bars are relative to the column's best"
    )
    table = Table("rank", "id", "score", *candidates["tasks"], title=title, title_justify="left")
    best = {output: max(max(values), 1e-12) for output, values in candidates["tasks"].items()}
    for rank, (name, score) in enumerate(zip(candidates["id"], candidates["score"], strict=True)):
        cells = []
        for output, values in candidates["tasks"].items():
            value = values[rank]
            shown = f"{value:,.0f}" if output in quantities else f"{value:.3f}"
            cells.append(f"{shown}\n[cyan]{'━' * max(1, round(BAR * value / best[output]))}[/cyan]")
        table.add_row(str(rank + 1), name, f"{score:.3f}", *cells)
    return table


def _wait_for_interrupt() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("\nstopped")


if __name__ == "__main__":
    sys.exit(main())
