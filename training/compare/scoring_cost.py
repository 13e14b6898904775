"""CPU time to score a request, of all networks of a comparison side by side.

In: a call that scores a request, by network and number of candidates. Out: milliseconds, and the ratio to a reference
network's. Every network runs once in a block, one after another, and blocks go through them in turns of either order:
what else the machine does meets all alike. Milliseconds are a machine's. Ratios travel better.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from training.compare.boosted_trees import is_trees, tree_call
from training.compare.cost import scoring_call
from training.run.run import Run, read_json, write_json

# Candidates of a request.
CANDIDATES = (100, 500)
BLOCKS = 9
BLOCK_SECONDS = 0.02
FILE = "scoring.json"

Json = dict[str, Any]
Call = Callable[[], object]


class ScoringCost(NamedTuple):
    """Median CPU milliseconds of a request, and the median ratio to the reference network's in the same block."""

    ms: float
    ratio: float


def scoring_costs(folder: Path, runs: Mapping[str, Run], reference: str) -> Json:
    """[network][number of candidates] -> `ScoringCost` as a mapping, kept in the reference's folder below `folder` for
    the same networks. The reference is the first network where the one that is asked for has no run."""
    reference = reference if reference in runs else next(iter(runs))
    asked: Json = {"networks": [*runs], "reference": reference}
    path = folder / reference / FILE
    if path.exists() and isinstance(kept := read_json(path), dict) and kept.get("asked") == asked:
        costs: Json = kept["costs"]
        return costs
    torch.set_num_threads(1)
    found: Json = {name: {} for name in runs}
    for candidates in CANDIDATES:
        calls = {
            name: tree_call(run, candidates) if is_trees(run) else scoring_call(run, candidates)
            for name, run in runs.items()
        }
        with torch.no_grad():
            measured = in_blocks(calls, reference)
        for name, cost in measured.items():
            found[name][str(candidates)] = cost._asdict()
    write_json(path, {"asked": asked, "costs": found})
    return found


def in_blocks(
    calls: Mapping[str, Call], reference: str, clock: Callable[[], float] = time.process_time
) -> dict[str, ScoringCost]:
    """The cost of each call, over BLOCKS interleaved blocks of BLOCK_SECONDS a call."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    _block(calls, calls, clock)  # warms up
    for block in range(BLOCKS):
        for name, taken in _block(calls, list(calls)[:: 1 if block % 2 == 0 else -1], clock).items():
            seconds[name].append(taken)
    return {
        name: ScoringCost(
            ms=1000 * statistics.median(taken),
            ratio=statistics.median(one / other for one, other in zip(taken, seconds[reference], strict=True)),
        )
        for name, taken in seconds.items()
    }


def _block(calls: Mapping[str, Call], order: Iterable[str], clock: Callable[[], float]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for name in order:
        call, times = calls[name], 0
        started = clock()
        while (spent := clock() - started) < BLOCK_SECONDS:
            call()
            times += 1
        seconds[name] = spent / times
    return seconds
