"""Ids of explored requests that came before, with another request or with the same one again.

In: request ids. Out: whether an id is remembered. Each id has a slot by its hash, which the newest of that slot takes:
memory is bounded, an id is forgotten sooner or later, and one that was never there is all but never taken for another.
"""

import xxhash

_SLOTS = 1 << 16


class RepeatedIds:
    """Ids of one process. Several threads may call it: at worst a repeat at the same moment is not seen."""

    def __init__(self) -> None:
        self._hash_of_slot = [0] * _SLOTS

    def take_id(self, request_id: str, policy_version: str) -> bool:
        """Remember an id. True where it was there, under the same version of a policy: such requests are drawn alike.
        Half of a surrogate pair, which JSON may have, has bytes here."""
        found = xxhash.xxh3_64_intdigest(f"{policy_version}\0{request_id}".encode("utf-8", "surrogatepass"))
        slot = found % _SLOTS
        is_repeated = self._hash_of_slot[slot] == found
        self._hash_of_slot[slot] = found
        return is_repeated
