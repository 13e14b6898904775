"""`make bench-after-shift`: what a version is worth two days after a cold start, by what it was trained on and from.

    python -m benchmarks.after_shift [--towns runs/bench-loop]

It reads the towns of `make bench-loop`, those that began from fresh weights on the first night that could.
Their joined days are trained on by several recipes, the cycle's own among them. Every version then ranks the same
requests of one later day for all users, with the histories that they had in the town. Its worth is what the town's
truth expects of the places. The share regained is (version - static) / (cold - static), as in `make bench-loop`.
Intervals are Student's over towns.

Shapes: R requests, K places, N candidates of each, O outputs.
"""

import argparse
import json
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from benchmarks import report
from benchmarks.command import run_benchmark
from deploy.loop.arm import VALUE
from deploy.loop.files import MODEL, LoopFiles, training
from deploy.loop.preparation import COLD, STATIC
from deploy.loop.proof import Plan, cold_start_after_shift, plan_of, read_journal
from deploy.loop.town import HISTORY, HOURS, PLACES, Days
from model.scorer.scorer import Scorer
from training.config import TrainingConfig
from training.daily.cycle_file import Start
from training.datasets.feed_world import item_name
from training.publish.export import export
from training.train import train

FRESH, OLD = "fresh weights", "the version of the old tastes"
_LEVEL = 0.95
_NO_GUARD = 1e9


@dataclass(frozen=True)
class Recipe:
    """Days that a version is trained on and chosen by, counted from the shift, and what it starts from: fresh weights,
    the version that served before, or another recipe by its name."""

    first: int
    last: int
    chosen: int
    start: str = FRESH
    rate_factor: float = 1.0


_QUARTER = Start().rate_factor
COLD_START, DAY_AFTER = "the cycle's cold start", "the cycle's night after it, warm"
RECIPES = {
    COLD_START: Recipe(0, 0, 1),
    "with four days of the old tastes": Recipe(-4, 0, 1),
    "from the version of the old tastes": Recipe(0, 0, 1, OLD),
    "from it, at a quarter of the rates": Recipe(0, 0, 1, OLD, _QUARTER),
    DAY_AFTER: Recipe(1, 1, 2, COLD_START, _QUARTER),
    "that night at the full rates": Recipe(1, 1, 2, COLD_START),
    "that night from fresh weights on both days": Recipe(0, 1, 2),
}
# The day that the versions rank, counted from the shift: the second one after the cold start's night.
RANKED = 3


class TownRun:
    """A town that was played, and versions made of its days."""

    def __init__(self, root: Path, plan: Plan, parent: str, work: Path) -> None:
        self._files = LoopFiles(root)
        self._plan = plan
        self._parent = self._files.models / MODEL / parent
        self._work = work
        days = Days(plan.town)
        day = plan.town.shift_day + RANKED
        self._hours = [visits for hour in range(HOURS) if (visits := days.visits(day, hour)).ids]
        truth = pq.read_table(root / "truth" / f"date={self._date(day):%Y%m%d}.parquet", columns=[HISTORY])
        items = {item_name(item): item for item in range(plan.town.items)}
        # Rows are in the order of visits, each request's places together.
        of_requests = truth[HISTORY].to_pylist()[::PLACES]
        self._histories = [[items[name] for name in names] for names in of_requests]

    def shares(self) -> dict[str, float]:
        """Shares regained by recipe."""
        static, cold = (self._worth(self._files.references / name / "1") for name in (STATIC, COLD))
        versions: dict[str, Path] = {}
        for name, recipe in RECIPES.items():
            versions[name] = self._make(recipe, versions)
        return {name: (self._worth(path) - static) / (cold - static) for name, path in versions.items()}

    def _date(self, day: int) -> date:
        found: date = (self._plan.town.first_day() + timedelta(days=day)).date()
        return found

    def _make(self, recipe: Recipe, made: dict[str, Path]) -> Path:
        """Train and publish by a recipe, as a night does. Poisoned days are left out, and days that come between."""
        shift, poisoned = self._plan.town.shift_day, self._plan.poisoned_day - self._plan.town.shift_day
        left_out = [*range(recipe.last + 1, recipe.chosen), *([poisoned] if recipe.first <= poisoned else [])]
        split = {
            "column": "date",
            "end": str(self._date(shift + recipe.chosen)),
            "train": {"days": recipe.chosen - recipe.first},
            "validation": {"days": 1},
            "halve_validation": True,
            "exclude": [str(self._date(shift + day)) for day in left_out],
        }
        name = f"version-{len(made)}"
        file = training(self._files.joined, split, self._work / "runs" / name)
        if recipe.start != FRESH:
            path = self._parent if recipe.start == OLD else made[recipe.start]
            file["init_from"] = {"path": str(path), "tolerance": _NO_GUARD, "rate_factor": recipe.rate_factor}
        run = train(TrainingConfig.from_mapping(file, name), show=False)
        return export(run, self._work / "models", name, calibration="platt", accept_worse=True)

    def _worth(self, version: Path) -> float:
        """Mean value of a request by the town's truth, where a version ranks for all users."""
        scorer = Scorer.load(version)
        weights_O = np.array([VALUE.get(output, 0.0) for output in scorer.outputs])
        values = []
        histories_left = iter(self._histories)
        for visits in self._hours:
            histories = list(islice(histories_left, len(visits.ids)))
            orders = []
            for body in visits.bodies(MODEL, histories):
                candidates = body["candidates"]
                answers_NO = scorer.score_values(body["user"], candidates["features"], len(candidates["id"]))
                orders.append(np.argsort(-(answers_NO @ weights_O), kind="stable")[:PLACES])
            values.append(visits.expected(np.array(orders), VALUE).sum(axis=1))
        return float(np.concatenate(values).mean())


def main() -> None:
    """Train and rank, print and write the table."""
    parser = argparse.ArgumentParser(prog="make bench-after-shift")
    parser.add_argument("--towns", type=Path, default=Path("runs/bench-loop"), help="towns that were played")
    options = parser.parse_args()
    # Runs are not evaluated, and exports would say so of each.
    logging.disable(logging.WARNING)
    found: dict[int, dict[str, float]] = {}
    for root in sorted(options.towns.glob("seed-*/")):
        if not (root / "result.json").is_file():
            continue
        plan = plan_of(json.loads((root / "result.json").read_text(encoding="utf-8"))["plan"])
        cold_start = cold_start_after_shift(plan, read_journal(LoopFiles(root)))
        if cold_start is None or cold_start.day != plan.town.shift_day + 1:
            print(f"{root}: its cold start was not the first that could be; left out", flush=True)
            continue
        with TemporaryDirectory() as work:
            found[plan.town.seed] = TownRun(root, plan, cold_start.parent, Path(work)).shares()
        print(f"seed {plan.town.seed}: {found[plan.town.seed]}", flush=True)
    if len(found) < 2:
        raise ValueError(f"{options.towns}: {len(found)} towns to compare, and it takes 2; run make bench-loop before")
    rows = [[name, _days(recipe), _interval([of[name] for of in found.values()])] for name, recipe in RECIPES.items()]
    body = [
        f"Towns {', '.join(map(str, sorted(found)))} of `make bench-loop`. Versions by what they were trained on rank "
        "all requests of the second day after the cold start's night. In the town itself a canary has half of the "
        "users. A day has 10,000 rows. The share regained, and its 95 % interval over towns:",
        "",
        *report.table(["version", "days of the new tastes", "regained"], rows),
    ]
    data: dict[str, Any] = {"towns": found}
    path = report.write("after_shift", "What a version knows after a shift", body, data, "make bench-after-shift")
    print(path.read_text(encoding="utf-8"))


def _days(recipe: Recipe) -> str:
    first = max(recipe.first, 0)
    return str(first + 1) if first == recipe.last else f"{first + 1} to {recipe.last + 1}"


def _interval(shares: Sequence[float]) -> str:
    quantile = float(stats.t.ppf((1 + _LEVEL) / 2, len(shares) - 1))
    return f"{statistics.mean(shares):.2f} ± {quantile * statistics.stdev(shares) / math.sqrt(len(shares)):.2f}"


if __name__ == "__main__":
    run_benchmark(main)
