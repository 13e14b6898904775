"""`make bench-freshness`: what retraining often is worth after users begin to like other things.

    python -m benchmarks.freshness [--runs 5]

The town of the loop's proof (deploy/loop/town.py) asks for rankings day by day. Its users like other things from one
midnight on. Ways of ranking differ by when their model is trained alone: never, each night, each hour, each five
minutes. All begin with the same model and see the same visits, and one chance decides what users do. Each learns from
what it has shown itself. A label counts once its window is over: 30 minutes and 5 of skew after the impression, as the
join of the loop has them. The join makes hours of rows, so that labels of an hour come 35 minutes after its end. With
"by impression" they come 35 minutes after each impression. Gates, canaries and the time of a training are left out. The
share regained is (way - never) / (new tastes - never) of realised value, where the last is a model that has learned the
new tastes from a log of its own beforehand. Intervals are Student's over towns.

Shapes: R requests, K places that are shown, N candidates.
"""

import argparse
import io
import math
import statistics
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.freshness_model import LikesModel, Rows
from deploy.loop.arm import VALUE, value_of
from deploy.loop.town import HOURS, PLACES, Days, Shown, Town, Visits

USERS, ITEMS, CANDIDATES, REQUESTS = 400, 400, 30, 12_000
LEARNED_DAYS, DAYS_AFTER = 3, 3
PASSES = 3
SLICES = 12  # of an hour: five minutes each
MINUTES = 60 // SLICES
WINDOW = 35  # minutes
DAY = 24 * 60
PICTURE = "freshness.png"
_LEVEL = 0.95


class Way(NamedTuple):
    """A way of ranking: minutes between trainings, 0 for never, and whether labels come by the hour."""

    every: int
    by_hour: bool
    colour: str
    marker: str
    title: str


WAYS = {
    "never": Way(0, True, "#56B4E9", "o", "never retrained"),
    "nightly": Way(DAY, True, "#0072B2", "s", "each night"),
    "hourly": Way(60, True, "#E69F00", "D", "each hour"),
    "minutes": Way(MINUTES, True, "#D55E00", "^", "each 5 minutes, labels by the hour"),
    "impression": Way(MINUTES, False, "#CC79A7", "v", "each 5 minutes, labels by impression"),
}
NEW = "new tastes"
REQUESTS_OF = "requests"

# By way, day after the shift and hour: realised value a request. Under REQUESTS_OF the requests.
TownResult = dict[str, list[list[float]]]


class Learner:
    """A model of one way, and the rows that wait for their window."""

    def __init__(self, model: LikesModel, way: Way, seed: int) -> None:
        self.model = model
        self._way = way
        self._waiting: list[tuple[int, Rows]] = []
        self._order = np.random.default_rng([seed, 9])

    def take(self, minute: int, rows: Rows) -> None:
        """Keep rows of five minutes until they may be learned from."""
        if self._way.every:
            end = minute + MINUTES
            closed = math.ceil(end / 60) * 60 if self._way.by_hour else end
            self._waiting.append((closed + WINDOW, rows))

    def train_if_due(self, minute: int) -> None:
        """Train on what is ready, where it is time. A night trains when the day's last labels are there."""
        every = self._way.every
        if not every or (minute - (WINDOW if every == DAY else 0)) % every:
            return
        ready = [rows for due, rows in self._waiting if due <= minute]
        if ready:
            self._waiting = [one for one in self._waiting if one[0] > minute]
            self.model.learn(Rows.of(ready), PASSES, self._order)


def run_town(seed: int) -> TownResult:
    """Result of every way in one town."""
    town = Town(seed, USERS, ITEMS, REQUESTS, CANDIDATES, LEARNED_DAYS)
    days = Days(town)
    learned = _learned(days, range(LEARNED_DAYS), seed)
    # The same town with its new tastes from the first day: what is learned from it is of no visit that is measured.
    elsewhere = Days(Town(seed, USERS, ITEMS, REQUESTS, CANDIDATES, 0))
    new = Learner(_learned(elsewhere, range(100, 100 + LEARNED_DAYS), seed), WAYS["never"], seed)
    learners = {name: Learner(learned.copied(), way, seed) for name, way in WAYS.items()} | {NEW: new}
    found: TownResult = {name: [] for name in (*learners, REQUESTS_OF)}
    for day in range(LEARNED_DAYS, LEARNED_DAYS + DAYS_AFTER):
        sums = {name: [0.0] * HOURS for name in learners}
        requests: list[float] = []
        for hour in range(HOURS):
            visits = days.visits(day, hour)
            requests.append(len(visits.ids))
            ends = np.linspace(0, len(visits.ids), SLICES + 1).astype(int)
            orders: dict[str, list[Any]] = {name: [] for name in learners}
            for part in range(SLICES):
                minute = ((day - LEARNED_DAYS) * HOURS + hour) * 60 + part * MINUTES
                begin, end = ends[part], ends[part + 1]
                for name, learner in learners.items():
                    learner.train_if_due(minute)
                    order_RK = learner.model.order(visits.users_R[begin:end], visits.items_RN[begin:end], PLACES)
                    orders[name].append(order_RK)
                    # What users do is drawn for the whole hour at once, by chances that are theirs.
                    whole_RK = np.zeros((len(visits.ids), PLACES), np.int64)
                    whole_RK[begin:end] = order_RK
                    learner.take(minute, _rows(visits.shown(whole_RK), slice(begin, end)))
            for name in learners:
                sums[name][hour] = float(value_of(visits.shown(np.concatenate(orders[name]))).mean())
        for name, hours in sums.items():
            found[name].append(hours)
        found[REQUESTS_OF].append(requests)
    return found


def _learned(days: Days, numbers: range, seed: int) -> LikesModel:
    """A model of what was shown at random on some days."""
    model = LikesModel(USERS, ITEMS, PLACES, len(VALUE), seed)
    rng = np.random.default_rng([seed, 8])
    rows = []
    for day in numbers:
        for hour in range(HOURS):
            visits = days.visits(day, hour)
            order_RK = rng.permuted(np.tile(np.arange(CANDIDATES), (len(visits.ids), 1)), axis=1)[:, :PLACES]
            rows.append(_rows(visits.shown(order_RK), slice(None)))
    model.learn(Rows.of(rows), PASSES, rng)
    return model


def _rows(shown: Shown, part: slice) -> Rows:
    """Rows of the requests of a part."""
    visits: Visits = shown.visits
    items_RK = shown.items_RK[part]
    requests = len(items_RK)
    labels = [shown.labels[task][part].reshape(-1) for task in VALUE]
    return Rows(
        np.repeat(visits.users_R[part], PLACES),
        items_RK.reshape(-1),
        np.tile(np.arange(PLACES), requests),
        np.stack(labels, axis=1).astype(np.float32),
    )


def shares(towns: list[TownResult]) -> dict[str, list[dict[str, float]]]:
    """The share regained by way and day, with its interval over towns."""
    found: dict[str, list[dict[str, float]]] = {}
    for name in WAYS:
        if name == "never":
            continue
        for day in range(DAYS_AFTER):
            by_town = [
                (_mean(town, name, day) - _mean(town, "never", day))
                / (_mean(town, NEW, day) - _mean(town, "never", day))
                for town in towns
            ]
            found.setdefault(name, []).append(_interval(by_town))
    return found


def _mean(town: TownResult, name: str, day: int) -> float:
    """Mean of a day's requests: hours count by their visits."""
    return float(np.average(town[name][day], weights=town[REQUESTS_OF][day]))


def _interval(values: list[float]) -> dict[str, float]:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": mean, "high": mean}
    reach = stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def draw(towns: list[TownResult]) -> bytes:
    """The picture: value a request by hour since the shift, the mean of all towns over three hours."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axis = figure.subplots()
    for name in (*WAYS, NEW):
        way = WAYS.get(name, Way(0, True, "#009E73", "", "trained on the new tastes"))
        hours = np.mean([np.concatenate(town[name]) for town in towns], axis=0)
        smooth = np.convolve(hours, np.ones(3) / 3, mode="valid")
        axis.plot(np.arange(1, len(hours) - 1) + 0.5, smooth, color=way.colour, linewidth=1.5, label=way.title)
        if way.marker:
            axis.plot(np.arange(1, len(hours) - 1)[::6] + 0.5, smooth[::6], way.marker, color=way.colour, markersize=5)
    for night in range(1, DAYS_AFTER):
        axis.axvline(night * HOURS, color="black", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(0, DAYS_AFTER * HOURS + 1, 6))
    axis.set_xlabel("hours since users began to like other things")
    axis.set_ylabel("realised value a request")
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def main() -> None:
    """Run the towns, write the table and the picture."""
    parser = argparse.ArgumentParser(description="What retraining often is worth.")
    parser.add_argument("--runs", type=int, default=5, help="towns (default 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    towns = [run_town(seed) for seed in range(1, options.runs + 1)]
    regained = shares(towns)
    command = "make bench-freshness" + (f" ARGS='--runs {options.runs}'" if options.runs != 5 else "")
    rows = [
        [WAYS[name].title, *(f"{day['mean']:.0%} ({day['low']:.0%} to {day['high']:.0%})" for day in days)]
        for name, days in regained.items()
    ]
    body = [
        f"The share of value that is regained after a shift, of {len(towns)} towns of {REQUESTS:,} requests a day. "
        f"Labels come {WINDOW} minutes after their hour, or their impression.",
        "",
        *report.table(["retrained", *(f"day {day + 1}" for day in range(DAYS_AFTER))], rows),
        "",
        f"![Value a request by hour]({PICTURE})",
    ]
    data = {"towns": towns, "regained": regained}
    path = report.write("freshness", "What freshness is worth", body, data, command, is_compact=True)
    (report.RESULTS / PICTURE).write_bytes(draw(towns))
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_benchmark(main)
