"""Quality beside cost: the networks that none beats in both, and the cheapest one that is as good under a budget.

In: milliseconds to score a request, and a metric's value of every seed on the validation split, by network. The test
split has no part in a choice.
"""

import statistics
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from model.strict_yaml import StrictModel
from training.compare.statistics import spread

Json = dict[str, Any]
Values = Mapping[str, Mapping[str, float]]
Better = Literal["higher", "lower"]


class Budget(StrictModel):
    """The most CPU milliseconds that a network may take for a request of so many candidates, on this machine."""

    ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    candidates: Literal[100, 500] = 500


def pareto_front(ms: Mapping[str, float], means: Mapping[str, float], better: Better) -> list[str]:
    """The networks that no other one equals or beats in both cost and mean, cheapest first."""
    sign = 1.0 if better == "higher" else -1.0
    front: list[str] = []
    for name in sorted(means, key=lambda name: (ms[name], -sign * means[name])):
        if not front or sign * means[name] > sign * means[front[-1]]:
            front.append(name)
    return front


def under_budget(budget: Budget, ms: Mapping[str, float], values: Values, better: Better) -> Json:
    """The best network under the budget, and the cheapest whose paired interval over seeds against it includes 0.

    `values` is network -> seed -> value. Of each network under the budget `against_best` has its difference and
    interval, None where it shares fewer than two seeds with the best."""
    within = [name for name in values if ms[name] <= budget.ms]
    result: Json = {**budget.model_dump(), "over": [name for name in values if ms[name] > budget.ms], "best": None}
    if not within:
        return result | {"chosen": None, "against_best": {}}
    means = {name: statistics.fmean(values[name].values()) for name in within}
    best = (max if better == "higher" else min)(within, key=means.__getitem__)
    against: dict[str, Json | None] = {}
    level = [best]
    for name in within:
        pairs = [values[name][seed] - values[best][seed] for seed in values[name] if seed in values[best]]
        if name == best or len(pairs) < 2:
            against[name] = None
            continue
        found = spread(pairs)
        assert found.low is not None
        assert found.high is not None
        against[name] = {"difference": found.mean, "low": found.low, "high": found.high}
        if found.low <= 0 <= found.high:
            level.append(name)
    return result | {"best": best, "chosen": min(level, key=ms.__getitem__), "against_best": against}
