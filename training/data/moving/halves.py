"""Halves of users: which half of all a user is in, by a hash of who it is.

In: a column that names users. Out: a mask. The half follows from the user alone, so that it is the same on every day,
in every file and process, for 17 and for "17". Rows without a user are in one half together.
"""

import numpy as np
import pyarrow as pa
import xxhash

from training.columns import plain

# No other share of users is drawn by this seed.
_SEED = 0x68616C66


def in_second_half(users: pa.ChunkedArray) -> pa.ChunkedArray:
    """Mask of the rows whose user is in the second half."""
    coded = plain(users).combine_chunks().dictionary_encode(null_encoding="encode")
    is_second = [_is_second(str(user)) for user in coded.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(np.array(is_second, bool)[np.asarray(coded.indices)])])


def _is_second(user: str) -> bool:
    return bool(xxhash.xxh3_64_intdigest(user.encode("utf-8", "surrogatepass"), _SEED) & 1)
