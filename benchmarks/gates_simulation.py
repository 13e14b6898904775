"""`make bench-gates`: what the gates refuse of good nights, and let through of bad ones.

python -m benchmarks.gates_simulation

Nights of 50,000 rows of the simulated feed, whose true probabilities are known. No network is trained. A version's
logits are the true ones, times a factor below 1 for what it has not learned, with noise by user and item that all
versions have, and noise of its own. That of its own is as large as makes the interval between two equal versions as
wide as it is between two trained networks, measured on this feed: .35 % of NE on each side for clicks, at 10,000 rows
that gate. Of play time it is as large as makes the squared errors of two equal versions' logarithms differ as those of
two seeds on KuaiRand do (next_day.json): by .18 %. Rows are of items drawn at random. Two versions choose their own: of
30 candidates the ten that they put on top. One has learned as much as the town's first model (deploy/loop). The other
knows all, and ranks by likes. It lifts their rate so far that less than half of it is left when every taste is another.

Shapes: B rows of a night, P pages of N candidates or places each, O outputs.
"""

import argparse
import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.command import run_benchmark
from model.schema import FeedSchema
from training.data.kinds.columns import columns_from_arrow
from training.datasets.feed_world import (
    BIAS,
    BINARY_TASKS,
    DEVICE_SHARES,
    MEDIAN_DURATION_MS,
    MEDIAN_PLAY_SHARE,
    PAGE,
    PLAY_NOISE,
    PROPENSITIES,
    SCALE,
    TASKS,
    FeedWorld,
)
from training.fit.tally import PartCounts, Tally
from training.judge.answers import Answered, sums_of_answers
from training.judge.data_gate import faults_of_day, outputs_shifted
from training.judge.day_figures import AnswerFigures, figures_of_answers
from training.judge.quality_gate import quality_gate
from training.judge.settings import DataGate, QualityGate

ROWS = 50_000
CANDIDATES = 30
WINDOW = 7
PLAY_TIME = "play_time"
# What a version answers that has learned nothing: logits, and the logarithm of a play time.
LEVELS = BIAS
LEVEL_OF_PLAY_TIME = math.log(MEDIAN_DURATION_MS * MEDIAN_PLAY_SHARE)
HALF_WIDTH, HALF_WIDTH_ROWS = 0.0035, 10_000
OF_SEEDS, PAIRS = 0.00175, 16
SCHEMA = FeedSchema.from_mapping(
    {
        "name": "simulated",
        "features": [
            {"name": "user_id", "side": "user", "kind": "id", "buckets": 20_000, "dim": 16},
            {"name": "hour", "side": "context", "kind": "id", "buckets": 24, "dim": 4},
            {"name": "item_id", "side": "candidate", "kind": "id", "buckets": 2_000, "dim": 16},
            {"name": "duration_ms", "side": "candidate", "kind": "number"},
            {"name": "item_age_hours", "side": "candidate", "kind": "number"},
        ],
        "tasks": [
            *({"name": task, "kind": "binary", "label": task} for task in BINARY_TASKS),
            {"name": PLAY_TIME, "kind": "regression", "label": PLAY_TIME, "transform": "log1p"},
        ],
    },
    "bench-gates",
)
Floats = NDArray[np.float64]
# By name: how much a version has learned, its noise that others share, and the tasks by which it chose the rows.
VERSIONS: tuple[tuple[str, float, float, tuple[str, ...]], ...] = (
    ("all there is", 1.0, 0.0, ()),
    ("a part", 0.6, 0.3, ()),
    ("what the town's has, and chose the rows", 0.5, 0.8, ("click", "long_view")),
    ("all there is, and chose the rows by likes", 1.0, 0.0, ("like",)),
)
# Why an equal challenger is refused.
DIFFERENT, TOO_WIDE, OTHER = "play time is worse", "play time's interval is too wide", "another task"
# Share of likes that a broken client does not send.
LOST = 2 / 3


@dataclass(frozen=True, slots=True)
class Version:
    """A version that serves. `learned` is its share of the true logits, `shared` and `own` are spreads of the noise
    that it shares with others and of its own, the latter but for play time's logarithm, which has its own."""

    learned: float
    shared: float
    own: float
    own_of_play_time: float = 0.0


class Night(NamedTuple):
    """A night's rows: features and labels, and by task the true logits, of play time the logarithm of its median."""

    table: pa.Table
    logits: dict[str, Floats]


def drawn(
    world: FeedWorld,
    true: FeedWorld,
    rng: np.random.Generator,
    rows: int = ROWS,
    ranked_by: Version | None = None,
    tasks: tuple[str, ...] = (),
) -> Night:
    """A night in which users like what they do in the `true` world. The logits are those of `world`.

    The items are those that a version puts on top by its answers of `tasks`, or drawn like the candidates."""
    pages = rows // PAGE
    users_P, hours_P = world.draw_users(rng, pages), rng.integers(0, 24, pages)
    devices_P = rng.choice(len(DEVICE_SHARES), p=DEVICE_SHARES, size=pages)
    age_P = rng.uniform(0, 24, pages)
    items_PN = world.draw_pages(rng, pages, PAGE if ranked_by is None else CANDIDATES)

    def outcomes(laws: FeedWorld, items_PN: NDArray[np.int64]) -> dict[str, Floats]:
        each = items_PN.shape[1]
        items_B, places_B = items_PN.ravel(), np.tile(np.arange(each) % PAGE, pages)
        users_B, hours_B, devices_B = (of_page.repeat(each) for of_page in (users_P, hours_P, devices_P))
        age_B = world.age_at_start_hours[items_B] + age_P.repeat(each)
        found = laws.outcomes(users_B, items_B, places_B, hours_B, devices_B, age_B)
        play_time = {PLAY_TIME: np.log(found.median_play_time_ms), "at top": found.click_at_top}
        return {**found.probabilities, **play_time}

    if ranked_by is not None:
        answers_BO = _answers(ranked_by, _logits(outcomes(world, items_PN)), users_P, items_PN, 100)
        score_PN = answers_BO[:, [TASKS.index(task) for task in tasks]].sum(axis=1).reshape(items_PN.shape)
        items_PN = np.take_along_axis(items_PN, np.argsort(-score_PN, axis=1)[:, :PAGE], axis=1)
    known, truth = outcomes(world, items_PN), outcomes(true, items_PN)
    labels = {task: (rng.random(rows) < truth[task]).astype(np.int64) for task in BINARY_TASKS}
    labels[PLAY_TIME] = np.rint(np.exp(truth[PLAY_TIME] + PLAY_NOISE * rng.standard_normal(rows))).astype(np.int64)
    items_B = items_PN.ravel()
    age_B = world.age_at_start_hours[items_B] + age_P.repeat(PAGE)
    features = {
        "user_id": users_P.repeat(PAGE), "hour": hours_P.repeat(PAGE), "item_id": items_B,
        "duration_ms": world.duration_ms[items_B], "item_age_hours": age_B,
    }  # fmt: skip
    return Night(pa.table({**features, **labels}), _logits(known))


def _logits(known: dict[str, Floats]) -> dict[str, Floats]:
    # A version scores as if all items were at one place.
    served = {**known, "click": known["at top"] * float(np.mean(PROPENSITIES))}
    return {task: np.log(served[task] / (1 - served[task])) for task in BINARY_TASKS} | {PLAY_TIME: known[PLAY_TIME]}


def answers_of(version: Version, night: Night, seed: int) -> Floats:
    """answers_BO of a version. `seed` is of its own noise."""
    users_B, items_B = (night.table.column(name).to_numpy() for name in ("user_id", "item_id"))
    return _answers(version, night.logits, users_B, items_B[:, None], seed)


def _answers(
    version: Version, logits: dict[str, Floats], users_P: NDArray[np.int64], items_PN: NDArray[np.int64], seed: int
) -> Floats:
    users_B, items_B = users_P.repeat(items_PN.shape[1]), items_PN.ravel()
    columns = []
    for place, (task, logits_B) in enumerate(logits.items()):
        shared_B, own_B = (_noise(users_B, items_B, of_version + place) for of_version in (0, seed))
        if task == PLAY_TIME:
            level, spread = LEVEL_OF_PLAY_TIME, version.shared * SCALE[task] / SCALE["click"]
            log_B = level + version.learned * (logits_B - level) + spread * shared_B + version.own_of_play_time * own_B
            columns.append(np.exp(log_B + PLAY_NOISE**2 / 2))
            continue
        noise_B = version.shared * shared_B + version.own * own_B
        level = LEVELS[task]
        columns.append(1 / (1 + np.exp(-(level + version.learned * (logits_B - level) + noise_B))))
    return np.stack(columns, axis=1)


def _noise(users_B: NDArray[np.int64], items_B: NDArray[np.int64], seed: int) -> Floats:
    """Noise of variance 1 that is the same wherever a user meets an item: half of it is the item's."""
    of_items = np.random.default_rng([7, seed]).standard_normal(int(items_B.max()) + 1)
    pairs_B = (users_B * 2_654_435_761 + items_B * 40_503 + seed * 97) % 65_536
    of_pairs = np.random.default_rng([8, seed]).standard_normal(65_536)
    found: Floats = (of_items[items_B] + of_pairs[pairs_B]) / math.sqrt(2)
    return found


def _answered(table: pa.Table, answers_BO: Floats) -> Answered:
    return sums_of_answers(SCHEMA, {}, table, answers_BO, group_by="user_id")


def with_own_noise(world: FeedWorld, learned: float, shared: float, rng: np.random.Generator) -> Version:
    """A version with as much noise of its own as makes two equal ones differ as trained networks do."""
    night = drawn(world, world, rng, 2 * HALF_WIDTH_ROWS)
    widths, spreads = [], []
    for own in (0.1, 0.2):
        noisy = Version(learned, shared, own, own / 10)
        one, other = (_answered(night.table, answers_of(noisy, night, seed)) for seed in (100, 200))
        found = quality_gate(one.sums, {"0": other.sums}, one.kinds, QualityGate()).figures["0"]["click"]
        widths.append((found["high"] - found["low"]) / 2 * math.sqrt(2))
        spreads.append(_difference_of_play_time(night, noisy))
    # Widths grow with the noise, and differences by a power of it.
    of_clicks = (
        float(np.interp(HALF_WIDTH, widths, (0.1, 0.2))) if widths[0] < HALF_WIDTH else (0.1 * HALF_WIDTH / widths[0])
    )
    power = math.log2(spreads[1] / spreads[0])
    return Version(learned, shared, of_clicks, 0.01 * (OF_SEEDS / spreads[0]) ** (1 / power))


def _difference_of_play_time(night: Night, version: Version) -> float:
    """Relative difference of the squared errors of two equal versions' logarithms, as a root of a mean square."""
    logs_B = np.log1p(night.table.column(PLAY_TIME).to_numpy()) + PLAY_NOISE**2 / 2

    def loss(seed: int) -> float:
        answers_B = answers_of(version, night, seed)[:, TASKS.index(PLAY_TIME)]
        return float(np.mean((np.log1p(answers_B) - logs_B) ** 2))

    pairs = [(loss(1000 + 50 * pair), loss(5000 + 50 * pair)) for pair in range(PAIRS)]
    return float(np.sqrt(np.mean([(one / other - 1) ** 2 for one, other in pairs])))


def quality_nights(world: FeedWorld, version: Version, nights: int, champions: int, seed: int) -> Counter[str]:
    """Nights on which an equal challenger is refused, by reason. Half of a night's users gate."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    for number in range(nights):
        night = drawn(world, world, rng)
        is_gating_B = (night.table.column("user_id").to_numpy() * 2_654_435_761 >> 16) % 2 == 1
        half = night.table.filter(pa.array(is_gating_B))
        first = 1000 + number * 100
        answered = [
            _answered(half, answers_of(version, night, first + 10 * each)[is_gating_B]) for each in range(champions + 1)
        ]
        others = {str(each): one.sums for each, one in enumerate(answered[1:])}
        verdict = quality_gate(answered[0].sums, others, answered[0].kinds, QualityGate())
        refused_for = [reason.split()[1].rstrip(":") for reason in verdict.reasons]
        of_play_time = [reason for reason, task in zip(verdict.reasons, refused_for, strict=True) if task == PLAY_TIME]
        can_tell = any("too wide to tell" not in reason for reason in of_play_time)
        counts[DIFFERENT] += can_tell
        counts[TOO_WIDE] += bool(of_play_time) and not can_tell
        counts[OTHER] += bool({*refused_for} - {PLAY_TIME})
    return counts


def _inverted(table: pa.Table, tasks: tuple[str, ...], share: float, rng: np.random.Generator) -> pa.Table:
    is_inverted_B = rng.random(table.num_rows) < share
    for task in tasks:
        labels_B = table.column(task).to_numpy()
        place = table.column_names.index(task)
        table = table.set_column(place, task, pa.array(np.where(is_inverted_B, 1 - labels_B, labels_B)))
    return table


def _thinned(table: pa.Table, task: str, lost: float, rng: np.random.Generator) -> pa.Table:
    labels_B = table.column(task).to_numpy() * (rng.random(table.num_rows) >= lost)
    return table.set_column(table.column_names.index(task), task, pa.array(labels_B))


def _shuffled(table: pa.Table, rng: np.random.Generator, tasks: tuple[str, ...] = TASKS) -> pa.Table:
    order = pa.array(rng.permutation(table.num_rows))
    for task in tasks:
        place = table.column_names.index(task)
        table = table.set_column(place, task, table.column(task).take(order))
    return table


def data_nights(
    world: FeedWorld, version: Version, nights: int, seed: int, tasks: tuple[str, ...]
) -> dict[str, list[int]]:
    """Nights that the data gate refuses, and that it accepts as a shift of tastes, by what happened in them."""
    rng = np.random.default_rng(seed)
    other = world.with_other_tastes(seed)
    ranked_by = version if tasks else None
    tally = Tally(SCHEMA, {}, WINDOW + 1)
    before: list[AnswerFigures] = []
    for place in range(WINDOW):
        night = drawn(world, world, rng, ranked_by=ranked_by, tasks=tasks)
        _add(tally, night.table, place)
        before.append(_figures(night.table, answers_of(version, night, 100)))
    found: dict[str, list[int]] = {}
    for _ in range(nights):
        usual, shifted = (drawn(world, true, rng, ranked_by=ranked_by, tasks=tasks) for true in (world, other))
        cases = {
            "equal to the days before": (usual, usual.table),
            "every taste is another": (shifted, shifted.table),
            "labels of all tasks inverted": (usual, _inverted(usual.table, BINARY_TASKS, 1.0, rng)),
            "labels of clicks inverted": (usual, _inverted(usual.table, ("click",), 1.0, rng)),
            "half of the clicks' labels inverted": (usual, _inverted(usual.table, ("click",), 0.5, rng)),
            "two of three likes are lost": (usual, _thinned(usual.table, "like", LOST, rng)),
            "labels are those of other rows": (usual, _shuffled(usual.table, rng)),
            "likes are those of other rows": (usual, _shuffled(usual.table, rng, ("like",))),
        }
        for name, (night, table) in cases.items():
            day, window = _counts(tally, table)
            figures = _figures(table, answers_of(version, night, 100))
            faults, _ = faults_of_day(SCHEMA, day, window, 0.0, figures, before, DataGate(), as_gated=before)
            refused, shifted_nights = found.get(name, (0, 0))
            is_shifted = not faults and bool(outputs_shifted(figures, before))
            found[name] = [refused + bool(faults), shifted_nights + is_shifted]
    return found


def _figures(table: pa.Table, answers_BO: Floats) -> AnswerFigures:
    answered = _answered(table, answers_BO)
    return figures_of_answers(answered.sums, answered.kinds, answered.sums)


def _add(tally: Tally, table: pa.Table, part: int) -> None:
    tally.add(table, columns_from_arrow(SCHEMA, table, is_coded=True), np.full(table.num_rows, part))


def _counts(window: Tally, table: pa.Table) -> list[PartCounts]:
    """Counts of a night, and of the window."""
    # Nights are not added up: each is compared with the window alone.
    tally = copy.deepcopy(window)
    _add(tally, table, WINDOW)
    return tally.counts([[WINDOW], [*range(WINDOW)]])


def main() -> None:
    """Simulate and write the results."""
    parser = argparse.ArgumentParser(prog="make bench-gates")
    parser.add_argument("--nights", type=int, default=200, help="simulated nights of each kind (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    world = FeedWorld(options.seed)
    rng = np.random.default_rng(options.seed)
    found: dict[str, Any] = {}
    for name, learned_share, shared, tasks in VERSIONS:
        version = with_own_noise(world, learned_share, shared, rng)
        quality = {
            str(champions): dict(quality_nights(world, version, options.nights, champions, options.seed + champions))
            for champions in (() if tasks else (1, 3))
        }
        data = data_nights(world, version, options.nights, options.seed + 10, tasks)
        found[name] = {
            "own_noise": version.own,
            "own_noise_of_play_time": version.own_of_play_time,
            "quality": quality,
            "data": data,
        }
    print(
        report.write("gates", "The gates, on simulated nights", _body(found, options.nights), found, "make bench-gates")
    )


def _body(found: dict[str, Any], nights: int) -> list[str]:
    body = [
        f"Nights of {ROWS:,} rows of the simulated feed, with the default settings. Versions are made of its true",
        "probabilities with noise, so that they are equally good.",
        "",
        f"Nights of {nights} on which the quality gate refuses an equal challenger, by {ROWS // 2:,} rows of half of",
        "the users, by the reason. Play time is learned by log1p, and its loss is the deviance. Versions have noise of",
        "their own, by which one is a little worse than another:",
        "",
    ]
    reasons = [DIFFERENT, TOO_WIDE, OTHER]
    quality = [
        [name, champions, *(str(of_case.get(key, 0)) for key in reasons)]
        for name, about in found.items()
        for champions, of_case in about["quality"].items()
    ]
    body += report.table(["a version that has learned", "champions", *reasons], quality)
    body += [
        "",
        f"Nights of {nights} that the data gate refuses, and that it accepts as ones since which users like other",
        "things. The third version has the correlations of the town's first model. Rows of the last two are the ten",
        f"of {CANDIDATES} candidates that they put on top:",
        "",
    ]
    rows = [
        [name, case, str(refused), str(shifted)]
        for name, about in found.items()
        for case, (refused, shifted) in about["data"].items()
    ]
    return body + report.table(["a version that has learned", "the night", "refused", "a shift"], rows)


if __name__ == "__main__":
    run_benchmark(main)
