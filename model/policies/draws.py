"""Random numbers of a request that anybody can compute again: a coin, then one number a place.

In: the request's id and the policy's version. Out: numbers in [0, 1), multiples of 2^-52. Each is XXH3-64 of its
number as four bytes, least first, less its last 12 bits. The seed of all is XXH3-64 of the version, a zero byte and the
id. Another version draws otherwise.
"""

import xxhash

_COIN = 2**32 - 1


class Draws:
    """The numbers of one request. Half of a surrogate pair, which JSON may have, has bytes here."""

    def __init__(self, request_id: str, policy_version: str) -> None:
        text = f"{policy_version}\0{request_id}".encode("utf-8", "surrogatepass")
        self._seed = xxhash.xxh3_64_intdigest(text)

    def wins_coin(self, share: float) -> bool:
        """True for this share of all requests."""
        return self.number_of(_COIN) < share

    def number_of(self, place: int) -> float:
        """The number of a place from 0."""
        return float((xxhash.xxh3_64_intdigest(place.to_bytes(4, "little"), self._seed) >> 12) * 2.0**-52)
