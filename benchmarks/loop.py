"""`make bench-loop`: the proof of the loop in many small towns, and what it called rightly.

    python -m benchmarks.loop [--runs 10]

Each run is `python -m deploy.loop --fast` with a seed of its own: another town, other users, another shift. A run that
was made is kept in runs/bench-loop. The picture of the first is kept beside the results. The share regained on a day is
(loop - static) / (cold - static) of realised value. Its interval is Student's over runs.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks import report
from benchmarks.command import run_benchmark
from deploy.loop.picture import draw

FOLDER = Path("runs/bench-loop")
PICTURE = "loop.png"
_LEVEL = 0.95


def main() -> None:
    """Run what is not run yet, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    results = [_result(seed) for seed in range(1, options.runs + 1)]
    command = "make bench-loop" + (f" ARGS='--runs {options.runs}'" if options.runs != 10 else "")
    path = report.write("loop", "The loop follows its users", _body(results), {"runs": results}, command)
    (report.RESULTS / PICTURE).write_bytes(draw(results[0]))
    print(path.read_text(encoding="utf-8"))


def _result(seed: int) -> dict[str, Any]:
    """The result of one town. Raises ValueError where its run fails."""
    folder = FOLDER / f"seed-{seed}"
    kept = folder / "result.json"
    if not kept.exists():
        if folder.exists():
            raise ValueError(f"{folder}: a run that did not end; remove it")
        print(f"seed {seed}", flush=True)
        command = [sys.executable, "-m", "deploy.loop", "--out", str(folder), "--seed", str(seed), "--fast"]
        if subprocess.run(command, check=False).returncode:
            raise ValueError(f"{folder}: the run failed; its commands.log says why")
    content: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return content


def _body(results: Sequence[dict[str, Any]]) -> list[str]:
    plan = results[0]["plan"]
    town = plan["town"]
    days = [one["day"] for one in results[0]["regained"]]
    shares = {day: [_share(result, day) for result in results] for day in days}
    rows = []
    for day in days:
        values = [
            f"{statistics.mean(result['curves'][arm][day]['mean'] for result in results):.2f}"
            for arm in ("static", "loop", "cold")
        ]
        rows.append([str(day), *values, _interval(shares[day])])
    called = [
        [what, f"{sum(result['called'][what] for result in results)} of {len(results)}"]
        for what in results[0]["called"]
    ]
    size = f"{town['users']} users with {town['requests_per_day']} requests a day"
    return [
        f"{len(results)} towns of {size}. Tastes shift on day {town['shift_day']} of {plan['days']}.",
        "",
        "Mean realised value a request over the towns, and the share of the loss that the loop has regained, with its "
        "95 % interval over towns:",
        "",
        *report.table(["day", "never retrained", "loop", "cold on the new tastes", "regained"], rows),
        "",
        *report.table(["called rightly", "towns"], called),
    ]


def _share(result: dict[str, Any], day: int) -> float:
    value = {arm: days[day]["mean"] for arm, days in result["curves"].items()}
    return float((value["loop"] - value["static"]) / (value["cold"] - value["static"]))


def _interval(shares: Sequence[float]) -> str:
    mean = statistics.mean(shares)
    if len(shares) < 2:
        return f"{mean:.2f}"
    reach = stats.t.ppf((1 + _LEVEL) / 2, len(shares) - 1) * statistics.stdev(shares) / len(shares) ** 0.5
    return f"{mean:.2f} ± {reach:.2f}"


if __name__ == "__main__":
    run_benchmark(main)
