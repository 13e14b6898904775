"""Hashes of ids, stable across machines and versions.

Strings hash by XXH3 of their UTF-8 bytes, integers by SplitMix64's finaliser.
"""

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

# SplitMix64's constants. They are made once: numpy makes a scalar more slowly than it shifts a hundred words.
_GAMMA, _FIRST, _SECOND = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
_30, _27, _31 = np.array([30, 27, 31], np.uint64)


def hash_strings(values: Sequence[str]) -> NDArray[np.uint64]:
    """XXH3-64 of each string's UTF-8 bytes."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, map(str.encode, values)), np.uint64, len(values))


def take_buckets(words: NDArray[np.uint64], buckets: np.uint64) -> None:
    """Replace each word by its remainder. numpy divides by one number several times as fast as it takes remainders."""
    quotients = words // buckets
    quotients *= buckets
    words -= quotients


def hash_integers(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser over the two's-complement bits: a bijection of 64-bit words that spreads low bits."""
    word: NDArray[np.uint64] = np.ascontiguousarray(values).view(np.uint64) + _GAMMA
    shifted = word >> _30
    for factor, shift in ((_FIRST, _27), (_SECOND, _31)):
        word ^= shifted
        word *= factor
        np.right_shift(word, shift, out=shifted)
    word ^= shifted
    return word
