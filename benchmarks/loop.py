"""`make bench-loop`: the proof of the loop in many small towns, and what it called rightly.

    python -m benchmarks.loop [--runs 10]

Each run is `python -m deploy.loop --fast` with a seed of its own: another town, other users, another shift. A run that
was made is kept in runs/bench-loop, and what its journal called rightly is read again. The picture of the first is kept
beside the results. The share regained on a day is (loop - static) / (cold - static) of realised value. Intervals of
means are Student's over runs. The shares are given once more by nights from the cold start on the new days.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks import report
from benchmarks.command import run_benchmark
from deploy.loop.files import LoopFiles
from deploy.loop.picture import draw
from deploy.loop.proof import cold_start_after_shift, journal_calls, plan_of, read_journal
from deploy.loop.questions import BETTER, EQUAL, covers

FOLDER = Path("runs/bench-loop")
PICTURE = "loop.png"
_LEVEL = 0.95
# What a run called that its journal alone does not tell.
_BESIDE_THE_JOURNAL = (
    "joined rows are the town's",
    "better value model called",
    "no difference of equal arms called",
    "estimate covers the true value",
)


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
    plan, files = plan_of(content["plan"]), LoopFiles(folder)
    of_journal = journal_calls(plan, files)
    beside = {what: content["called"][what] for what in _BESIDE_THE_JOURNAL}
    cold_start = cold_start_after_shift(plan, read_journal(files))
    return {**content, "cold_start": None if cold_start is None else cold_start.day, "called": of_journal | beside}


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
        *_by_nights(results),
        "",
        *report.table(["called rightly", "towns"], called),
        "",
        *_experiments(results),
        "",
        *_exploration(results),
    ]


def _by_nights(results: Sequence[dict[str, Any]]) -> list[str]:
    """The shares regained by nights from each town's own cold start."""
    days, shift = results[0]["plan"]["days"], results[0]["plan"]["town"]["shift_day"]
    begun = [result for result in results if result["cold_start"] is not None]
    rows = []
    for nights in range(1, days - shift):
        shares = [_share(result, day) for result in begun if (day := result["cold_start"] + nights) < days]
        if shares:
            rows.append([str(nights), str(len(shares)), _interval(shares)])
    early = sum(result["cold_start"] == shift + 1 for result in begun)
    return [
        f"The first night with a newer day to choose by is that after day {shift + 1}. In {early} of {len(results)} "
        f"towns it published a version from fresh weights, in {len(begun) - early} a later one did. The share regained "
        "on the day after so many nights, the night of that version being the first:",
        "",
        *report.table(["nights", "towns", "regained"], rows),
    ]


def _experiments(results: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for name, what in ((BETTER, "clicks and long views against play time"), (EQUAL, "two equal arms")):
        found = [result["experiments"][name] for result in results]
        covered = sum(one["value"]["low"] <= one["true"] <= one["value"]["high"] for one in found)
        width = statistics.mean((one["value"]["high"] - one["value"]["low"]) / 2 for one in found)
        rows.append([
            what,
            f"{statistics.mean(one['users'] for one in found):.0f}",
            f"{statistics.mean(one['true'] for one in found):+.1%}",
            f"{statistics.mean(one['value']['value'] for one in found):+.1%}",
            f"{width:.1%}",
            f"{covered} of {len(found)}",
            f"{sum('value' in one['called'] for one in found)} of {len(found)}",
            f"{sum(bool(one['called']) for one in found)} of {len(found)}",
        ])  # fmt: skip
    head = ["experiment", "users", "true difference of value", "found", "half-width", "interval covers the true one",
            "value called", "anything called"]  # fmt: skip
    return [
        "Experiments of two layers that deal the same users, on the first two days, means over the towns. An arm is "
        "called by Holm's steps over the value and five labels:",
        "",
        *report.table(head, rows),
    ]


def _exploration(results: Sequence[dict[str, Any]]) -> list[str]:
    found = [result["exploration"] for result in results]
    prices = [one["price"]["mean"] for one in found]
    estimated = [one for one in found if one["estimate"]["doubly_robust"] is not None]
    covered = sum(covers(one) for one in found)
    refused = sum(one["estimate_of_watch_time"]["refused"] is not None for one in found)
    places = found[0]["places"]
    lines = [
        f"Exploration: {found[0]['share']:.0%} of the requests draw their places. By the town's truth that changes the "
        f"value of such a request by {_percent_interval(prices)}, and shows "
        f"{statistics.mean(one['other_items'] for one in found):.1f} other items.",
        "",
        f"Estimates of what the first {places} places would be worth without exploration, from explored requests "
        f"alone: {len(estimated)} of {len(found)} towns have 100 effective users, and {covered} of {len(estimated)} "
        "intervals cover the true value. An order by play time, which nobody explored, was refused in "
        f"{refused} of {len(found)}.",
    ]
    if not estimated:
        return lines
    rows = []
    for seed, one in enumerate(found, 1):
        estimate = one["estimate"]
        intervals = [_written(estimate[kind]) for kind in ("self_normalised", "doubly_robust")]
        values = [f"{one['true']:.3f}", f"{estimate['observed']:.3f}", *intervals]
        rows.append([str(seed), f"{one['explored']:,}", *values, f"{min(estimate['effective_users']):.0f}"])
    head = ["town", "explored requests", "true value", "observed where explored", "self-normalised", "doubly robust",
            "effective users"]  # fmt: skip
    return [*lines, "", *report.table(head, rows)]


def _written(interval: dict[str, float] | None) -> str:
    if interval is None:
        return "refused"
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _percent_interval(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:+.1%} ± {_reach(values):.1%}" if len(values) > 1 else f"{mean:+.1%}"


def _share(result: dict[str, Any], day: int) -> float:
    value = {arm: days[day]["mean"] for arm, days in result["curves"].items()}
    return float((value["loop"] - value["static"]) / (value["cold"] - value["static"]))


def _interval(shares: Sequence[float]) -> str:
    mean = statistics.mean(shares)
    if len(shares) < 2:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {_reach(shares):.2f}"


def _reach(values: Sequence[float]) -> float:
    """Half-width of Student's interval of the mean."""
    quantile = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


if __name__ == "__main__":
    run_benchmark(main)
