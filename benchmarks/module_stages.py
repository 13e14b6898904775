"""CPU time of the exported module's user part and look-ups, of this checkout or of another.

    python benchmarks/module_stages.py ARTIFACT     in the root of the checkout

In: lines of JSON, {"request": ..., "calls": ...}. Out: a line of JSON for each, CPU microseconds by stage, medians of
so many calls. Whole requests are computed, one after the other, so that every stage finds the caches as the one before
it left them. One torch thread.

What the module reads is made by numpy, by more of it in one checkout than in another. So the time of a stage stands
beside its sum with that of encoding, from the user's values and from the candidates' columns.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# What a stage computes of the results of those before it, by the name of its result.
Stages = dict[str, Callable[[Mapping[str, Any]], Any]]
ENCODE_USER, USER, ENCODE, LOOK_UPS, NETWORK = "encode user", "user part", "encode candidates", "look-ups", "network"
SHOWN = {
    USER: (USER,),
    "encoding and user part": (ENCODE_USER, USER),
    LOOK_UPS: (LOOK_UPS,),
    "encoding and look-ups": (ENCODE, LOOK_UPS),
}


def stages_of(scorer: Any, request: dict[str, Any]) -> Stages:
    """The stages by this checkout's scorer."""
    encoder, user = scorer.encoder, request["user"]
    rows = len(request["candidates"]["id"])
    columns = encoder.columns("candidate", request["candidates"]["features"], rows)
    return {
        ENCODE_USER: lambda _: encoder.encode_request(user).block,
        ENCODE: lambda _: encoder.encode("candidate", columns, rows, as_served=True).block,
        USER: lambda made: scorer.request_sums(made[ENCODE_USER]),
        LOOK_UPS: lambda made: scorer.candidate_rows(made[ENCODE]),
        NETWORK: lambda made: scorer.module.answer(made[LOOK_UPS], made[USER]),
    }


def stages_by_blocks(scorer: Any, block_tensors: Callable[[Any], Any], request: dict[str, Any]) -> Stages:
    """The stages by a checkout whose module reads encoded blocks as they are."""
    encoder, module = scorer.encoder, scorer.module
    rows = len(request["candidates"]["id"])
    columns = encoder.columns("candidate", request["candidates"]["features"], rows)

    def encoded_user(_: Mapping[str, Any]) -> Any:
        values = encoder.columns("request", {name: [value] for name, value in request["user"].items()}, 1)
        return encoder.encode("request", values, 1, as_served=True).block

    return {
        ENCODE_USER: encoded_user,
        ENCODE: lambda _: encoder.encode("candidate", columns, rows, as_served=True).block,
        USER: lambda made: module.request_sums(*block_tensors(made[ENCODE_USER])),
        LOOK_UPS: lambda made: module.candidate_rows(*block_tensors(made[ENCODE])),
        NETWORK: lambda made: module.answer(made[LOOK_UPS], made[USER]),
    }


def stages_of_checkout(artifact: Path) -> Callable[[dict[str, Any]], Stages]:
    """The stages of a request by the checkout that is the working directory."""
    try:
        from model.scorer.scorer import Scorer
    except ImportError:
        import model.scorer as module

        by_blocks: Any = module
        scorer = by_blocks.Scorer.load(artifact, "torchscript")
        return lambda request: stages_by_blocks(scorer, by_blocks.block_tensors, request)
    loaded = Scorer.load(artifact, "torchscript")
    return lambda request: stages_of(loaded, request)


def main() -> None:
    """Answer until standard input ends."""
    sys.path[0] = os.getcwd()
    import torch

    torch.set_num_threads(1)
    stages_of_request = stages_of_checkout(Path(sys.argv[1]))
    with torch.inference_mode():
        for line in sys.stdin:
            asked = json.loads(line)
            stages = stages_of_request(asked["request"])
            spent = [_spent(stages) for _ in range(asked["calls"])]
            shown = {
                what: statistics.median(sum(map(one.__getitem__, parts)) for one in spent)
                for what, parts in SHOWN.items()
            }
            print(json.dumps(shown), flush=True)


def _spent(stages: Stages) -> dict[str, float]:
    """CPU microseconds of each stage of a request."""
    made: dict[str, Any] = {}
    spent: dict[str, float] = {}
    for name, stage in stages.items():
        started = time.thread_time_ns()
        made[name] = stage(made)
        spent[name] = (time.thread_time_ns() - started) / 1e3
    return spent


if __name__ == "__main__":
    main()
