"""The feed and the network that request costs are stated for, and random requests for them.

24 sparse features of 16 columns (10 of the user, 4 of the context, 10 of the candidate, one list of 10 ids on either
side), 8 numbers a request. AdaTT-sp with levels of 256 and 128, 3 binary tasks of 2 experts, towers of 64.
"""

from typing import Any

import numpy as np

from model.features.block import inputs_of
from model.schema import Block, FeedSchema

BUCKETS = 20_000
DIM = 16
LIST_LENGTH = 10
TASKS = ("click", "like", "long_view")
NETWORK: dict[str, Any] = {
    "fusion": {"kind": "adatt_sp", "levels": [256, 128], "experts_per_task": 2},
    "tower": [64],
}


def _sparse(side: str, prefix: str, ids: int, lists: int) -> list[dict[str, Any]]:
    table = {"side": side, "buckets": BUCKETS, "dim": DIM}
    return [
        *({"name": f"{prefix}_{n}", "kind": "id", **table} for n in range(ids)),
        *(
            {"name": f"{prefix}_list_{n}", "kind": "id_list", "max_length": LIST_LENGTH, "pooling": "mean", **table}
            for n in range(lists)
        ),
    ]


SCHEMA = FeedSchema.from_mapping(
    {
        "name": "reference",
        "features": [
            *_sparse("user", "user", 9, 1),
            *_sparse("context", "context", 4, 0),
            *_sparse("candidate", "candidate", 9, 1),
            *({"name": f"number_{n}", "side": "user", "kind": "number"} for n in range(8)),
        ],
        "tasks": [{"name": task, "kind": "binary", "label": f"is_{task}"} for task in TASKS],
    },
    "the reference feed",
)


def names_of(block: Block) -> tuple[list[str], list[str], list[str]]:
    """The ids, the lists and the numbers of a block, in the order of the module's tensors."""
    ids, lists, numbers = inputs_of(SCHEMA.requested(block))
    return ids, [one.name for one in lists], [one.name for one in numbers]


def columnar_request(candidates: int, seed: int) -> dict[str, Any]:
    """A scoring request with random values, every feature given. Its candidates are in no other request."""
    random = np.random.default_rng(seed)

    def ids(*shape: int) -> Any:
        return random.integers(0, 2**40, shape).tolist()

    user_ids, user_lists, numbers = names_of("request")
    candidate_ids, candidate_lists, _ = names_of("candidate")
    return {
        "user": {
            **{name: ids() for name in user_ids},
            **{name: ids(LIST_LENGTH) for name in user_lists},
            **{name: float(random.normal()) for name in numbers},
        },
        "candidates": {
            "id": [f"v{seed}-{candidates}-{n}" for n in range(candidates)],
            "features": {
                **{name: ids(candidates) for name in candidate_ids},
                **{name: ids(candidates, LIST_LENGTH) for name in candidate_lists},
            },
        },
    }


def as_rows(request: dict[str, Any]) -> dict[str, Any]:
    """The same request with its candidates as rows."""
    candidates = request["candidates"]
    features = candidates["features"]
    rows = [
        {"id": identifier, "features": {name: column[n] for name, column in features.items()}}
        for n, identifier in enumerate(candidates["id"])
    ]
    return {**request, "candidates": rows}
