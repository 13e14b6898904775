"""`make bench-drift`: how far features drift on the day after a promotion, which changes what is shown.

python -m benchmarks.promotion_drift [--seeds 5]

Users of the simulated feed ask for a page. Items are drawn by popularity, a version ranks them by its answer for
clicks, and the ten best are shown. One version does so for seven days, another on the next. Versions are made as
`make bench-gates` makes them: true logits, of which a share is learned, with noise of all versions and of their own.
The data gate's index of each feature is the figure: the rows that were shown against the seven days before.

Shapes: B candidates of a day, P pages, C candidates of each.
"""

import argparse
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.gates_simulation import SCHEMA, Night, Version, answers_of
from training.data.kinds.columns import columns_from_arrow
from training.datasets.feed_world import PAGE, PROPENSITIES, FeedWorld
from training.fit.tally import Tally
from training.judge.data_gate import SURE, stability_indexes
from training.judge.settings import DataGate

ROWS, WINDOW = 50_000, 7
CANDIDATES = (20, 100, 200)
# Seeds of the versions' own noise.
BEFORE, AFTER = 100, 200
SERVED = Version(learned=0.6, shared=0.3, own=0.15)


def cases(world: FeedWorld, other: FeedWorld) -> dict[str, tuple[FeedWorld, Version, int]]:
    """By name the tastes that a version has learned, how well, and the seed of its noise."""
    return {
        "the same version": (world, SERVED, BEFORE),
        "an equal version": (world, SERVED, AFTER),
        "one that has learned more (0.8 instead of 0.6)": (world, Version(0.8, 0.15, 0.15), AFTER),
        "one that has learned other tastes": (other, SERVED, AFTER),
    }


def shown(world: FeedWorld, version: Version, noise: int, candidates: int, rng: np.random.Generator) -> pa.Table:
    """Rows of a day that a version shows. `world` has the tastes that it has learned."""
    pages = ROWS // PAGE
    users_B = world.draw_users(rng, pages).repeat(candidates)
    items_B = world.draw_pages(rng, pages, candidates).ravel()
    hours_B = rng.integers(0, 24, pages).repeat(candidates)
    age_B = world.age_at_start_hours[items_B] + rng.uniform(0, 24, len(items_B))
    zeros_B = np.zeros(len(items_B), np.int64)
    truth = world.outcomes(users_B, items_B, zeros_B, hours_B, zeros_B, age_B)
    clicks_B = truth.click_at_top * float(np.mean(PROPENSITIES))
    columns = {
        "user_id": users_B, "hour": hours_B, "item_id": items_B,
        "duration_ms": world.duration_ms[items_B], "item_age_hours": age_B,
        **dict.fromkeys((task.label for task in SCHEMA.tasks), zeros_B),
    }  # fmt: skip
    table = pa.table(columns)
    answers_B = answers_of(version, Night(table, {"click": np.log(clicks_B / (1 - clicks_B))}), noise)[:, 0]
    best_PC = np.argsort(-answers_B.reshape(pages, candidates), axis=1)[:, :PAGE]
    return table.take(pa.array((best_PC + candidates * np.arange(pages)[:, None]).ravel()))


def indexes(seed: int, candidates: int) -> dict[str, dict[str, float]]:
    """By case each feature's index, and whether the default gate refuses the day."""
    world = FeedWorld(seed)
    rng = np.random.default_rng([seed, candidates])
    after = cases(world, world.with_other_tastes(seed))
    tally = Tally(SCHEMA, {}, WINDOW + len(after))
    days = [shown(world, SERVED, BEFORE, candidates, rng) for _ in range(WINDOW)]
    days += [shown(*case, candidates, rng) for case in after.values()]
    for place, table in enumerate(days):
        tally.add(table, columns_from_arrow(SCHEMA, table, is_coded=True), np.full(table.num_rows, place))
    window, *of_days = tally.counts([[*range(WINDOW)], *([WINDOW + place] for place in range(len(after)))])
    found = {}
    for name, day, table in zip(after, of_days, days[WINDOW:], strict=True):
        drifts = stability_indexes(SCHEMA, day, window, ROWS / len(set(table["user_id"].to_pylist())))
        is_refused = any(drift.value - SURE * drift.error > DataGate().max_psi for drift in drifts.values())
        found[name] = {feature: drift.value for feature, drift in drifts.items()} | {"refused": float(is_refused)}
    return found


def main() -> None:
    """Simulate and write the results."""
    parser = argparse.ArgumentParser(prog="make bench-drift")
    parser.add_argument("--seeds", type=int, default=5, help="simulated feeds (default 5)")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    rows = []
    for candidates in CANDIDATES:
        of_seeds = [indexes(seed, candidates) for seed in range(options.seeds)]
        found[str(candidates)] = of_seeds
        for case in of_seeds[0]:
            values = {name: [one[case][name] for one in of_seeds] for name in of_seeds[0][case]}
            rows.append(
                [
                    str(candidates),
                    case,
                    *(_range(values[name]) for name in ("item_id", "duration_ms", "item_age_hours")),
                    f"{sum(values['refused']):.0f} of {options.seeds}",
                ]
            )
    head = ["candidates", "who shows the day", "item_id", "duration_ms", "item_age_hours", "refused"]
    body = [
        f"Days of {ROWS:,} shown rows, ten of a page's candidates. Seven days are shown by one version, the next by",
        f"who is named. Population stability index of each feature, least to most of {options.seeds} feeds, and",
        f"on how many the data gate leaves the day out by its default, `max_psi: {DataGate().max_psi:g}`.",
        "",
        *report.table(head, rows),
    ]
    title = "Drift on the day after a promotion"
    path = report.write("promotion_drift", title, body, found, "make bench-drift")
    print(path.read_text(encoding="utf-8"))


def _range(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


if __name__ == "__main__":
    run_benchmark(main)
