"""`python -m deploy.load_test URL`: how fast a running service answers, at a rate of your choosing or at its limit.

    python -m deploy.load_test http://127.0.0.1:8080 --rate 100 --seconds 30            # make demo's feed, simulated
    python -m deploy.load_test URL --artifact models/demo/1 --candidates 20:3,100:6,500:1
    python -m deploy.load_test URL --requests bodies.jsonl --arrivals impressions.jsonl # logged requests, when they
    came
    python -m deploy.load_test URL --ramp --slo 0.05 --errors 0.001                     # the highest rate within limits

Open loop: requests leave when they are due, and latency counts from then on, so a service that stalls is charged for
all requests that would have come meanwhile. A key comes from --key-file or FEEDRANK_API_KEY. Exit status: 0, or 1 where
--slo is given and not met, 2 for a wrong argument, 130 for Ctrl-C.

Shapes: R requests.
"""

import argparse
import json
import math
import os
import ssl
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import uvloop
from rich.console import Console

from deploy import load_report, load_requests
from deploy.load_report import Step
from deploy.local_cpu import Cpu, listening_at, spent_by
from deploy.open_loop import Array, message, offer, poisson

KEY_VARIABLE = "FEEDRANK_API_KEY"
PATH = "/v1/rank"
# What one run may keep in memory and send.
MOST_REQUESTS = 2_000_000
MOST_SECONDS = 86_400.0
# So many bodies are made and sent in turn.
BODIES = 64
SLO_SECONDS = 0.1
# A ramp ends when the highest rate within limits and the lowest beyond them are no further apart than this.
PRECISION = 1.1
_FURTHEST = 64  # a rate that much below the first is not looked for


def main(arguments: Sequence[str] | None = None) -> int:
    """Load and report. Returns the exit status."""
    options = _parser().parse_args(arguments)
    console = Console()
    console.width = max(console.width, 110)  # a column for each percentile, also where the output is no terminal
    try:
        load = Load(options)
        steps = load.ramp(console) if options.ramp else [load.once(console)]
        slo = options.slo or (SLO_SECONDS if options.ramp else None)
        console.print(load_report.table(steps, slo, options.errors))
        _explain(console, steps)
        held = [step for step in steps if slo is not None and step.is_within(slo, options.errors)]
        capacity = max((step.rate for step in held), default=None)
        if options.ramp:
            rule = f"p99 within {slo:g} s and at most {options.errors:.2%} errors"
            found = (
                "no rate tried is within limits" if capacity is None else f"capacity: {capacity:,.1f} requests a second"
            )
            console.print(f"{found} ({rule})", style="bold", markup=False)
        if options.out is not None:
            about = {"url": load.url, "slo_seconds": slo, "errors": options.errors, "capacity": capacity}
            load_report.write(options.out, steps, about, slo)
            console.print(f"written: {options.out}/load_test.json, load_test.png", markup=False)
    except KeyboardInterrupt:
        console.print("stopped; nothing is written")
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if slo is not None and not held else 0


class Load:
    """Load of a test, and its target. Raises ValueError for options that are not valid."""

    def __init__(self, options: argparse.Namespace) -> None:
        address = urlsplit(options.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"'{options.url}' is no address; give one like http://127.0.0.1:8080")
        self.url = f"{address.scheme}://{address.netloc}"
        self._random = np.random.default_rng(options.seed)
        self._options = options
        self._messages = self._made_messages()
        self._tls = None
        if address.scheme == "https":
            self._tls = ssl.create_default_context(cafile=options.ca)
        self.processes = listening_at(self.url)

    def once(self, console: Console) -> Step:
        """The rate, or the recorded arrivals, of the options."""
        options = self._options
        if options.arrivals is None:
            return self._step(console, options.rate, options.seconds)
        due_R = load_requests.arrivals(options.arrivals)
        due_R = due_R[due_R <= options.seconds]
        seconds = max(float(due_R[-1]), 1e-3)
        return self._offered(console, len(due_R) / seconds, seconds, due_R)

    def ramp(self, console: Console) -> list[Step]:
        """Steps of load up to the highest rate within limits, in the order in which they were taken."""
        options = self._options
        steps: list[Step] = []

        def holds(rate: float) -> bool:
            # A rate that fails is tried again: a cold service, or a moment of the machine's, is no limit.
            return tried(rate) or tried(rate)

        def tried(rate: float) -> bool:
            step = self._step(console, rate, options.seconds)
            steps.append(step)
            p99, held = step.percentile(99), step.is_within(options.slo or SLO_SECONDS, options.errors)
            shown = "no answer" if p99 is None else f"p99 {p99 * 1e3:,.1f} ms"
            console.print(f"{rate:,.1f}/s: {shown}, {step.error_share:.2%} errors, {'holds' if held else 'too much'}")
            return held

        capacity(holds, options.rate, options.max_rate)
        return steps

    def _step(self, console: Console, rate: float, seconds: float) -> Step:
        if rate * seconds > MOST_REQUESTS:
            raise ValueError(f"{rate:g} a second for {seconds:g} s are more than {MOST_REQUESTS:,} requests")
        return self._offered(console, rate, seconds, poisson(rate, seconds, int(self._random.integers(2**31))))

    def _offered(self, console: Console, rate: float, seconds: float, due_R: Array) -> Step:
        # Twice a second: drawing shares the interpreter with the client.
        with console.status(f"{rate:,.1f} requests a second for {seconds:,.0f} s", refresh_per_second=2):
            before = self._cpu()
            asked = offer(self.url, self._messages, due_R, timeout=self._options.timeout, tls=self._tls)
            outcome = uvloop.run(asked)
            after = self._cpu()
            spent = None if before is None or after is None else after.seconds_since(before)
            return Step(rate, seconds, outcome, spent)

    def _cpu(self) -> Cpu | None:
        try:
            return spent_by(self.processes)
        except (RuntimeError, OSError):  # no process there, or none that may be read
            return None

    def _made_messages(self) -> list[bytes]:
        options = self._options
        sizes = None if options.candidates is None else options.candidates.draw(self._random, BODIES)
        if options.artifact is not None:
            bodies = load_requests.golden(options.artifact)
        elif options.requests is not None:
            bodies = load_requests.from_file(options.requests)
        else:
            sizes = sizes or [100] * BODIES
            bodies, sizes = load_requests.simulated(self._random, sizes), None
        if sizes is not None:
            bodies = [load_requests.resized(bodies[number % len(bodies)], size) for number, size in enumerate(sizes)]
        key = _key(options.key_file)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return [message(self.url, PATH, json.dumps(body).encode(), **headers) for body in bodies]


def capacity(holds: Callable[[float], bool], first: float, most: float) -> float | None:
    """The highest rate within limits, to within PRECISION: doubling (or halving, where the first is beyond them), then
    bisecting. None where nothing does."""
    good: float | None = None
    bad: float | None = None
    rate = min(first, most)
    while bad is None or good is None:
        if holds(rate):
            good = rate
            if rate >= most:
                return good
            rate = min(2 * rate, most)
        else:
            bad = rate
            if rate <= first / _FURTHEST:
                return None
            rate /= 2
    while bad / good > PRECISION:
        middle = math.sqrt(good * bad)
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


def _explain(console: Console, steps: list[Step]) -> None:
    said = {status: text for step in steps for status, text in step.outcome.said.items()}
    for status, count in sorted(sum((Counter(step.statuses) for step in steps), Counter()).items()):
        if status != 200:
            example = f", for instance: {said[status]}" if status in said else ""
            console.print(
                f"{count:,} x {load_report.kind(status)}{example}", style="yellow", markup=False, soft_wrap=True
            )
    if all(step.cpu_seconds is None for step in steps):
        console.print("CPU per request: not known, the service is no process of this machine that may be looked at")
    lateness = max(step.outcome.lateness for step in steps)
    if lateness > 0.02:
        told = f"requests left up to {lateness * 1e3:.0f} ms late: this client's own machine is part of the latency"
        console.print(told, style="yellow")


def _key(path: Path | None) -> str | None:
    key = os.environ.get(KEY_VARIABLE) if path is None else path.read_text(encoding="utf-8")
    key = key.strip() if key else None
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"the key of {path or KEY_VARIABLE} is no key: one line of printable ASCII")
    return key


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.load_test", description="Open-loop load on a service.")
    parser.add_argument("url", help="where the service is, http://127.0.0.1:8080 say")
    parser.add_argument("--rate", type=_positive(1e6), default=50.0, help="requests a second; a ramp begins there (50)")
    parser.add_argument("--seconds", type=_positive(MOST_SECONDS), default=30.0, help="of the load, or of a step (30)")
    parser.add_argument("--arrivals", type=Path, help="file of recorded arrivals: seconds, or JSON with `time`, a line")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--artifact", type=Path, help="ask the golden requests of a version, models/<name>/<version>")
    source.add_argument("--requests", type=Path, help="ask the bodies of a file, JSON, one a line")
    parser.add_argument("--candidates", type=_sizes, help="candidates of a request: 100, or weighted 20:3,100:6,500:1")
    parser.add_argument("--ramp", action="store_true", help="find the highest rate within --slo and --errors")
    parser.add_argument("--max-rate", type=_positive(1e6), default=1e5, help="where a ramp ends at the latest (100000)")
    parser.add_argument("--slo", type=_positive(3600), help=f"seconds that p99 may take (in a ramp {SLO_SECONDS:g})")
    parser.add_argument("--errors", type=_share, default=0.001, help="share of requests that may fail (0.001)")
    parser.add_argument("--timeout", type=_positive(3600), default=10.0, help="seconds that an answer may take (10)")
    parser.add_argument("--key-file", type=Path, help=f"file with an API key (otherwise {KEY_VARIABLE})")
    parser.add_argument("--ca", type=Path, help="PEM certificates to trust (otherwise the system's)")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and of made-up requests (0)")
    parser.add_argument("--out", type=Path, help="folder for load_test.json and load_test.png")
    return parser


def _positive(most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {most:g}")
        return value

    return number


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share, 0 to below 1")
    return value


def _sizes(text: str) -> load_requests.Sizes:
    try:
        return load_requests.Sizes.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
