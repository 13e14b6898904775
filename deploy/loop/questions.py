"""Questions that the town's team asks while the loop runs: two experiments, and the price and use of exploration.

In: the plan of the town, and what its service logged. Out: experiments.yaml and policies.yaml, and at the end what the
project's own commands found, beside the town's truth. Two layers deal the same users: in one an experiment of two value
models, of which one is better, in the other one of two equal arms.

Shapes: R requests, K places, D days, U users.
"""

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from deploy.loop.answered import AnsweredHour, answered_hours
from deploy.loop.arm import VALUE
from deploy.loop.curves import Ledger, relative_difference
from deploy.loop.files import MODEL, LoopFiles
from deploy.loop.town import USER, Days, Town
from training.datasets.feed_world import Integers

# `python -m ...` to its end. Returns its status.
Status = Callable[..., int]
# What a feed that wants long plays ranks by, which the town's users like less than what VALUE does.
WATCH_TIME = {"play_time": 1.0}
VALUE_MODELS = {
    "default": {"kind": "weighted_sum", "weights": VALUE},
    "watch_time": {"kind": "weighted_sum", "weights": WATCH_TIME},
}
BETTER, EQUAL = "clicks_and_views", "no_change"
# Before the poisoned day. A user counts by the first hour: some hundred users tell more of an order so than by all that
# they do in a day, for they come as often under either.
_HORIZON = timedelta(hours=1)
_EXPERIMENT_DAYS = 2
EXPLORE = {"temperature": 0.5, "head": 10, "share": 0.2}
POLICIES = {"default": {"select": {"explore": EXPLORE}}}
# How many places an estimate is of: with each further one fewer drawn orders are the policy's.
PLACES = 2
_READABLE, _TOO_FEW, _FAULTY = 0, 3, 4


def files_beside(town: Town) -> dict[str, Any]:
    """Content of the files beside the loop's model, by name."""
    return {"value_models.yaml": VALUE_MODELS, "policies.yaml": POLICIES, "experiments.yaml": experiments(town)}


def experiments(town: Town) -> dict[str, Any]:
    """The content of experiments.yaml."""
    start = town.first_day()
    about = {
        "buckets": {"from": 0, "to": 10_000},
        "start": start.isoformat(),
        "end": (start + timedelta(days=_EXPERIMENT_DAYS) - _HORIZON).isoformat(),
        "horizon": f"{_HORIZON // timedelta(hours=1)}h",
        "realised": VALUE,
    }
    better = {"control": {"value_model": "watch_time"}, "treatment": {"value_model": "default"}}
    return {
        "layers": {name: {"salt": f"{name}-{town.seed}", "unit": USER} for name in ("ranking", "nothing")},
        "experiments": [
            {"name": BETTER, "layer": "ranking", **about, "arms": better},
            {"name": EQUAL, "layer": "nothing", **about, "arms": {"control": {}, "treatment": {}}},
        ],
    }


def answer_experiments(files: LoopFiles, town: Town, status: Status) -> dict[str, dict[str, Any]]:
    """Findings of `training experiment` on both, by name, beside the true difference. Raises ChildError."""
    true = {BETTER: _true_difference(files, town), EQUAL: 0.0}
    return {name: {"true": value, **_analysis(files, name, status)} for name, value in true.items()}


def calls_of_experiments(found: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Checks of what was called. The better value model is called so, and nothing of equal arms."""
    better, equal = found[BETTER], found[EQUAL]
    return {
        "better value model called": better["true"] > 0 and better["called"].get("value") == "better",
        "no difference of equal arms called": equal["status"] == _READABLE and not equal["called"],
    }


def answer_exploration(files: LoopFiles, town: Town, days: range, status: Status, seed: int) -> dict[str, Any]:
    """The price of exploration by the town's truth, and estimates of what was not explored, each with its true value.
    `days` are those of which joined labels are to be believed. Raises ChildError."""
    drawn, own, all_own = (Ledger(1, town.users) for _ in range(3))
    explored = requests = others = 0
    for hour in answered_hours(files.impressions, Days(town), days):
        order_RK, is_in_R = hour.order_by(VALUE), hour.explored_R
        value_RK, own_RK = hour.visits.expected(hour.order_RK, VALUE), hour.visits.expected(order_RK, VALUE)
        users_R = hour.visits.users_R
        drawn.take_requests(0, users_R[is_in_R], value_RK.sum(axis=1)[is_in_R])
        own.take_requests(0, users_R[is_in_R], own_RK.sum(axis=1)[is_in_R])
        all_own.take_requests(0, users_R, own_RK[:, :PLACES].sum(axis=1))
        explored, requests = explored + int(is_in_R.sum()), requests + len(is_in_R)
        others += _others(hour, order_RK)
    return {
        "requests": requests,
        "explored": explored,
        "share": EXPLORE["share"],
        "price": relative_difference(drawn, own, seed),
        "other_items": others / explored,
        "places": PLACES,
        "true": float(all_own.value_DU.sum() / all_own.requests_DU.sum()),
        "estimate": _estimate(files, town, days, status),
        "estimate_of_watch_time": _estimate(files, town, days, status, "--value-model", "watch_time"),
    }


def covers(exploration: Mapping[str, Any]) -> bool:
    """True where the interval of the estimate has the true value."""
    found = exploration["estimate"]["doubly_robust"]
    return found is not None and found["low"] <= exploration["true"] <= found["high"]


def _others(hour: AnsweredHour, order_RK: Integers) -> int:
    """Items that explored requests showed and their own order would not have."""
    return sum(
        len(set(one) - set(other))
        for one, other in zip(hour.order_RK[hour.explored_R].tolist(), order_RK[hour.explored_R].tolist(), strict=True)
    )


def _true_difference(files: LoopFiles, town: Town) -> float:
    """Expected value of the treatment's orders over that of the control's, less 1, of the same requests."""
    values = {"treatment": 0.0, "control": 0.0}
    for hour in answered_hours(files.impressions, Days(town), range(_EXPERIMENT_DAYS)):
        for arm, weights in (("treatment", VALUE), ("control", WATCH_TIME)):
            values[arm] += float(hour.visits.expected(hour.order_by(weights), VALUE).sum())
    return values["treatment"] / values["control"] - 1


def _analysis(files: LoopFiles, name: str, status: Status) -> dict[str, Any]:
    out = files.reports / name
    file = files.models / MODEL / "experiments.yaml"
    command = ("training", "experiment", str(files.joined), "--experiments", str(file), "--name", name)
    code = status(*command, "--out", str(out), may=(_READABLE, _TOO_FEW, _FAULTY))
    document = json.loads((out / "experiment.json").read_text(encoding="utf-8"))
    contrasts = document["contrasts"]
    value = next(one for one in contrasts if one["metric"] == "value")
    return {
        "status": code,
        "users": sum(value["users"]),
        "value": value["fixed"],
        "called": {one["metric"]: one["called"] for one in contrasts if one["called"]},
    }


def _estimate(files: LoopFiles, town: Town, days: range, status: Status, *flags: str) -> dict[str, Any]:
    """The estimate of descending score at the first places, by `service replay`."""
    files.reports.mkdir(exist_ok=True)
    found = files.reports / f"estimate{''.join(flags)}.json"
    dates = [f"{town.first_day() + timedelta(days=day):%Y%m%d}" for day in days]
    logs = [str(path) for date in dates for path in sorted(files.impressions.glob(f"impressions-{date}T*"))]
    worth = [text for task, weight in VALUE.items() for text in ("--realised", f"{task}={weight:g}")]
    command = ("service", "replay", *logs, "--models", str(files.models), "--model", MODEL, "--json", str(found))
    status(*command, "--estimate", str(files.joined), *worth, "--places", str(PLACES), *flags)
    estimate: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))["estimate"]
    return estimate
