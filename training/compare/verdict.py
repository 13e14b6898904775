"""Verdicts: what may be said of a network against the baseline, and when nothing may be said.

A verdict needs `min_seeds` seeds that both networks finished. It rests on one interval and test over seeds and users
together, corrected for the number of networks: whether another training, on other users, would show the same. The
words "better" and "worse" are used only where that interval excludes 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from training.compare.experiment import Verdict
from training.compare.measures import METRICS
from training.compare.resampling import MEAN

Json = dict[str, Any]


def verdicts(verdict: Verdict, tasks: Sequence[str], baseline: str, tables: Mapping[str, Json]) -> dict[str, Json]:
    """network -> {verdict: better | worse | no difference shown | refused, text}. `tables` are the test split's.
    `cautions` are added by the analysis."""
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
    """The network that validation would choose: the best mean over seeds of the verdict's metric over its tasks.
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
    difference = f"{what}: {found['difference']:+.5f} against {baseline}"
    if found["percent"] is not None:
        difference += f" ({found['percent']:+.3f} %)"
    if found["both_p_holm"] is None:
        why = (
            "no spread over seeds" if not found["sd"] else "no interval over users (fewer than 2, or too few positives)"
        )
        return {"verdict": "no difference shown", "text": f"{difference}; {why}, so no test"}
    shown = (
        f"{difference}, 95 % over seeds and users {found['both_low']:+.5f}..{found['both_high']:+.5f}, "
        f"corrected p {found['both_p_holm']:.2g}"
    )
    if found["both_p_holm"] < verdict.alpha:
        is_better = (found["difference"] > 0) == (metric.better == "higher")
        return {"verdict": "better" if is_better else "worse", "text": shown}
    text = shown + _seeds_alone(verdict, found)
    if found["minimum_detectable"] is not None:
        text += (
            f"; {found['seeds']} seeds on these users find a difference of {found['minimum_detectable']:.5f} or more "
        )
        text += f"with power {verdict.power:g}"
    return {"verdict": "no difference shown", "text": text + _needed(verdict, found)}


def _needed(verdict: Verdict, found: Json) -> str:
    if found["sd"] is None:
        return "; how many would show a difference is not known from one seed"
    wanted = found["difference_wanted"]
    which = "one of the size observed" if verdict.difference is None else "the difference that matters"
    which = f"to find {which}, {wanted:.5f}, with power {verdict.power:g}"
    if found["seeds_needed"] is None:
        reason = "more users are needed, not more seeds" if found["users_sd"] else "no number of seeds would do"
        return f"; {which}, {reason}"
    seeds = max(found["seeds_needed"], verdict.min_seeds)
    return f"; {which}, about {seeds} seeds are needed (from the spread of {found['seeds']})"


def _seeds_alone(verdict: Verdict, found: Json) -> str:
    """Seeds that agree where the users do not: a reader of seeds alone would have found a difference."""
    if found["p_holm"] is None or found["p_holm"] >= verdict.alpha:
        return ""
    return f" (another training would show it, corrected p {found['p_holm']:.2g}; other users may not)"
