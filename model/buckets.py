"""Buckets of units: the same unit falls into the same of 10,000 buckets in every process, for good.

In: a salt and a unit, which is the canonical text of a user or a request id. Out: XXH3-64 of the salt, a zero byte and
the unit, modulo 10,000. Shares are counted in buckets from 0, so that a larger share contains every smaller one.
Another salt deals the same units otherwise. docs/serving.md has the rule for others, with test vectors.
"""

import xxhash

BUCKETS = 10_000


def bucket_of(salt: str, unit: str) -> int:
    """The bucket of a unit, from 0 to 9,999. The salt has no zero byte. Half of a surrogate pair, which JSON may have,
    has bytes here."""
    return int(xxhash.xxh3_64_intdigest(f"{salt}\0{unit}".encode("utf-8", "surrogatepass")) % BUCKETS)


def buckets_within(share: float) -> int:
    """Number of buckets that a share in [0, 1] of the units has: those below it."""
    return round(share * BUCKETS)
