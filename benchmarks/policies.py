"""CPU time of a ranking policy with all stages, for 500 candidates: `make bench-policies`.

In: drawn requests whose candidates have few creators, many, or a skewed share of them. Out: microseconds of this thread
a request, medians and 95th percentiles, of all stages together and of each stage by itself. Integer ids, vectors of 16
columns, a history of 50 entries. Every request explores, which is the expensive case. Then the same of whole requests
to services with and without policies (benchmarks/policies_served.py), in a file of its own.

Shapes: N candidates, D columns of a vector.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.policies_served import WAYS, WITHOUT, costs
from benchmarks.ratio import Ratio
from model.features.kinds.columns import Column
from model.policies.candidates import CandidateValues
from model.policies.place import Placing
from model.policies.policies import Policies, Policy
from model.schema import FeedSchema
from model.value_models.answer_domain import AnswerDomain

NAME = "policies"
CANDIDATES = 500
HEAD = 50
WIDTH = 16
HISTORY = 50
NOW = 1.8e9
FEATURES = [
    {"name": "user_id", "side": "user", "kind": "id", "buckets": 1000, "dim": 16},
    {"name": "item_id", "side": "candidate", "kind": "id", "buckets": 10_000, "dim": 16},
    {"name": "creator", "side": "candidate", "kind": "id", "buckets": 1000, "dim": 16},
    {"name": "duration_ms", "side": "candidate", "kind": "number"},
]
TASKS = [{"name": name, "kind": "binary", "label": f"is_{name}"} for name in ("click", "like")]
STAGES: dict[str, Any] = {
    "filter": ["duration_ms >= 3000 and click > 0.01"],
    "seen": {"field": "seen", "by": "item_id", "within": "24h"},
    "dedup": ["item_id"],
    "boost": [{"when": "duration_ms < 20000", "multiply": 1.2}],
    "decay": {"per": "creator", "factor": 0.8, "floor": 0.3},
}
SELECT: dict[str, Any] = {
    "cap": {"per": "creator", "count": 2, "within": 10, "else": "relax"},
    "mmr": {"lambda": 0.7, "head": HEAD, "by": "item_id"},
    "explore": {"temperature": 0.5, "head": 20, "share": 1.0},
}
POLICIES: dict[str, dict[str, Any]] = {
    "all stages": {**STAGES, "select": SELECT},
    **{stage: {stage: definition} for stage, definition in STAGES.items()},
    **{f"select: {part}": {"select": {part: definition}} for part, definition in SELECT.items()},
    "none, which sorts": {},
}
CREATORS = ("of 250 creators", "of 250 creators, skewed", "of 5 creators")


class Seen(NamedTuple):
    """An entry of a history."""

    value: int
    time: float


class Feed(NamedTuple):
    """Content of a request."""

    score_N: NDArray[np.float64]
    answers: dict[str, NDArray[np.float32]]
    columns: dict[str, Column]
    ids: list[str]
    seen: list[Seen]
    vector_ND: NDArray[np.float32]


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(prog="make bench-policies")
    parser.add_argument("--requests", type=int, default=1000, help="requests of each policy (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("placing", "served"), help="measure this alone (default: both)")
    parser.add_argument("--turns", type=int, default=12, help="turns of the services (default 12)")
    parser.add_argument("--served", type=int, default=300, help="whole requests of each way, in a turn (default 300)")
    options = parser.parse_args()
    if options.part != "served":
        print(_placing(options.requests, options.seed))
    if options.part != "placing":
        print(_served(options.turns, options.served))


def _placing(requests: int, seed: int) -> Path:
    schema = FeedSchema.from_mapping({"name": "policies", "features": FEATURES, "tasks": TASKS}, "schema")
    domain = AnswerDomain.of_answers({"click": [1.0], "like": [1.0]})
    policies = Policies.from_bytes(yaml.safe_dump(POLICIES).encode(), "policies", schema, domain)
    rng = np.random.default_rng(seed)
    found = {
        creators: {name: _measure(policies[name], creators, requests, rng) for name in policies.names}
        for creators in CREATORS
    }
    body = [
        f"Requests of {CANDIDATES} candidates, {requests} of each kind. Median (95th percentile) of the CPU",
        "microseconds from scores to the order, reading of the candidates' values included. What a request without a",
        "policy pays is in policies_served.md.",
        "",
        *report.table(
            ["policy", *(f"candidates {creators}" for creators in CREATORS)],
            [
                [
                    name,
                    *(
                        f"{found[creators][name]['median']:.0f} ({found[creators][name]['p95']:.0f})"
                        for creators in CREATORS
                    ),
                ]
                for name in policies.names
            ],
        ),
    ]
    return report.write(NAME, "CPU time of ranking policies", body, found, "make bench-policies")


def _served(turns: int, requests: int) -> Path:
    served = costs(turns, requests)
    body = [
        f"Whole requests of {CANDIDATES} candidates to services of the reference feed, over HTTP, {turns} turns of",
        f"{requests} requests. The ratio is within a turn, with its 95 % interval.",
        "",
        *report.table(
            ["service and request", "CPU ms a request, median", f"against {WITHOUT}"],
            [[way, f"{np.median(served[way]):.3f}", str(Ratio.of(served[way], served[WITHOUT]))] for way in WAYS],
        ),
    ]
    data = {"served_ms": served}
    return report.write(f"{NAME}_served", "CPU time of requests with policies", body, data, "make bench-policies")


def _measure(policy: Policy, creators: str, requests: int, rng: np.random.Generator) -> dict[str, float]:
    spent = []
    for number in range(requests + 20):
        feed = _drawn(creators, rng)
        started = time.thread_time_ns()
        policy.place(
            Placing(
                feed.score_N,
                feed.answers,
                CandidateValues(policy.readable, feed.columns, feed.ids),
                {"seen": feed.seen},
                lambda _, feed=feed: feed.vector_ND,  # type: ignore[misc]
                NOW,
                None,
                f"r-{number}",
            )
        )
        spent.append((time.thread_time_ns() - started) / 1000)
    return {"median": float(np.median(spent[20:])), "p95": float(np.percentile(spent[20:], 95))}


def _drawn(creators: str, rng: np.random.Generator) -> Feed:
    item_N = rng.integers(0, 50_000, CANDIDATES)
    if creators == "of 5 creators":
        creator_N = rng.integers(0, 5, CANDIDATES)
    elif creators == "of 250 creators":
        creator_N = rng.integers(0, 250, CANDIDATES)
    else:
        creator_N = rng.zipf(1.5, CANDIDATES) % 250
    columns = {
        "item_id": Column(item_N),
        "creator": Column(creator_N.astype(np.int64)),
        "duration_ms": Column(rng.uniform(0, 60_000, CANDIDATES)),
    }
    answers = {name: rng.random(CANDIDATES).astype(np.float32) for name in ("click", "like")}
    seen = [Seen(int(item), NOW - 3000 * number) for number, item in enumerate(item_N[:HISTORY])]
    vector_ND = rng.standard_normal((CANDIDATES, WIDTH)).astype(np.float32)
    ids = [f"v{item}" for item in item_N.tolist()]
    return Feed(rng.standard_normal(CANDIDATES), answers, columns, ids, seen, vector_ND)


if __name__ == "__main__":
    run_benchmark(main)
