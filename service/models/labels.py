"""Labels and samples on the way of a request: the share that a sample takes, and labels as JSON.

In: a request id and a share, or the JSON of an admin. Out: True for a request in the share, or the object.
"""

from typing import Any

import xxhash

from model.rollout.labels import CANARY, SHADOW, STABLE

_KEYS = (STABLE, CANARY, SHADOW, "version", "share")
# Seeds of the hash of a request id, so that being in one sample says nothing about being in another.
IMPRESSION_SEED, SHADOW_SEED = 0, 2
_HASHES = 2**64


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text, for json.loads. Raises ValueError for a key that is given twice, of which readers of
    JSON take either: a pin may be one that is set, or one that is removed."""
    given = dict(pairs)
    if len(given) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in given if keys.count(key) > 1)
        raise ValueError(f"key '{twice}' is given twice" if twice in _KEYS else "a key is given twice")
    return given


def falls_within(request_id: str, share: float, seed: int) -> bool:
    """True for a request in the share [0, 1] of all: the same id decides alike in every process, for good."""
    return xxhash.xxh3_64_intdigest(request_id.encode(), seed) < round(share * _HASHES)
