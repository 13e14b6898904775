"""Verdicts: what may be said of a network against the baseline, and when nothing may be said.

A verdict needs `min_seeds` seeds that both networks finished. It rests on the paired test over seeds, corrected for
the number of networks: whether another training would show the same. The interval over users answers another question,
whether other users would show the same, and stands beside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from training.compare.experiment import Verdict
from training.compare.measures import METRICS
from training.compare.resampling import MEAN

Json = dict[str, Any]


def verdicts(verdict: Verdict, tasks: Sequence[str], baseline: str, tables: Mapping[str, Json]) -> dict[str, Json]:
    """network -> {verdict: better | worse | no difference shown | refused, text}; `tables` are the test split's."""
    table = tables.get(verdict.metric, {})
    used = [task for task in tasks if task in table]
    if not used:
        return {}
    return {
        name: _verdict(verdict, used, baseline, entry["against_baseline"])
        for name, entry in table[MEAN].items()
        if "against_baseline" in entry
    }


def choice(verdict: Verdict, table: Mapping[str, Json]) -> str | None:
    """The network that validation would choose: the best mean over seeds of the verdict's metric over its tasks;
    `table` is the validation split's. None where the metric is undefined there."""
    means = {name: entry["mean"] for name, entry in table.get(MEAN, {}).items()}
    if not means:
        return None
    return (max if METRICS[verdict.metric].better == "higher" else min)(means, key=means.__getitem__)


def _verdict(verdict: Verdict, tasks: Sequence[str], baseline: str, found: Json) -> Json:
    metric = METRICS[verdict.metric]
    what = f"{metric.title} of {tasks[0]}" if len(tasks) == 1 else f"mean {metric.title} over {len(tasks)} tasks"
    if found["seeds"] < verdict.min_seeds:
        seeds = "1 seed" if found["seeds"] == 1 else f"{found['seeds']} seeds"
        text = f"no verdict from {seeds}; a verdict needs {verdict.min_seeds} or more"
        return {"verdict": "refused", "text": text + _needed(verdict, found)}
    if found["p_holm"] is None:
        return {"verdict": "no difference shown", "text": f"{what}: no spread over seeds, so no test"}
    shown = (
        f"{what}: {found['difference']:+.5f} against {baseline} ({found['percent']:+.3f} %), "
        f"95 % over seeds {found['low']:+.5f}..{found['high']:+.5f}, corrected p {found['p_holm']:.2g}"
    )
    if found["p_holm"] < verdict.alpha:
        is_better = (found["difference"] > 0) == (metric.better == "higher")
        return {"verdict": "better" if is_better else "worse", "text": shown + _users(found)}
    text = f"{shown}; {found['seeds']} seeds find a difference of {found['minimum_detectable']:.5f} or more with power "
    return {"verdict": "no difference shown", "text": f"{text}{verdict.power:g}" + _needed(verdict, found)}


def _needed(verdict: Verdict, found: Json) -> str:
    if found["sd"] is None:
        return "; how many would show a difference is not known from one seed"
    wanted = found["difference_wanted"]
    if found["seeds_needed"] is None:
        return "; no number of seeds within reason would show the observed difference"
    which = "one of the size observed" if verdict.difference is None else "the difference that matters"
    return (
        f"; to find {which}, {wanted:.5f}, with power {verdict.power:g}, about {found['seeds_needed']} seeds are needed"
        f" (from the spread of {found['seeds']})"
    )


def _users(found: Json) -> str:
    if found["users_low"] is None:
        return ""
    outside = found["users_low"] > 0 or found["users_high"] < 0
    interval = f"{found['users_low']:+.5f}..{found['users_high']:+.5f}"
    if outside:
        return f"; other users would show it too (95 % over users {interval})"
    return f"; for other users it may vanish (95 % over users {interval})"
