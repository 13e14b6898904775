"""The stages of a policy before its selection, as policies.yaml has them: filter, seen, dedup, boost, decay.

In: the parsed mapping, then arrays of a request. Out: frozen models, then masks and utilities. Every fault of the file
is a ValueError that names the key, the rule and what to do.

Candidates stand by descending score, ties by request order: the first of equal ones is the one to keep. Utilities are
scores less the request's least score, so that a factor below 1 never raises a negative one.

Shapes: N candidates, by descending score, M of them that have a creator. E entries of a history, B rows of a
column.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from model.features.kinds.columns import ID_LIMITS
from model.features.raw_values import Words, words_of_strings
from model.join_file import Duration
from model.strict_yaml import Name, StrictModel
from model.value_models.formula import Condition

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# So that all factors of a request stay within a float64.
MOST_FACTOR = 1e6
MOST_CONDITIONS = 20
_INTEGER = re.compile(r"-?[0-9]{1,19}")


def _condition(text: str) -> str:
    if not Condition(text).names:
        raise ValueError("reads no feature and no answer, so it is the same for all candidates")
    return text


ConditionText = Annotated[str, Field(min_length=1), AfterValidator(_condition)]
Factor = Annotated[float, Field(ge=0, le=MOST_FACTOR, allow_inf_nan=False)]


class Entry(Protocol):
    """An entry of a user's history: a value, and its time in seconds of Unix."""

    @property
    def value(self) -> object:
        """An id, as events have it."""

    @property
    def time(self) -> float:
        """When it was appended."""


class Seen(StrictModel):
    """Drop candidates whose id of the feature `by` is in the history `field` and not older than `within`."""

    field: Name
    by: Name
    within: Duration

    def drops(self, words_N: Words, entries: Sequence[Entry], now: float, *, is_text: bool) -> Mask:
        """is_dropped_N. `is_text` is for ids that are strings."""
        since = now - self.within.total_seconds()
        values = {_id_of(entry.value, is_text) for entry in entries if entry.time >= since} - {None}
        if not values:
            return np.zeros(len(words_N.word_B), np.bool_)
        seen_E = words_of_strings(list(map(str, values))) if is_text else np.array(list(values), np.int64)
        is_dropped_N: Mask = np.isin(words_N.word_B, seen_E) & words_N.has_id_B
        return is_dropped_N


class Boost(StrictModel):
    """Multiply the utility of candidates for which a condition is true."""

    when: ConditionText
    multiply: Factor


class Decay(StrictModel):
    """Multiply the utility of the k-th best of a creator (from 0) by max(floor, factor^k)."""

    per: Name
    factor: float = Field(ge=0, le=1, allow_inf_nan=False)
    floor: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)

    def factors(self, utility_N: Floats, words_N: Words) -> Floats:
        """factor_N. 1 where a candidate has no creator."""
        factor_N = np.ones(len(utility_N))
        with_id_M = np.flatnonzero(words_N.has_id_B)
        if not len(with_id_M):
            return factor_N
        by_utility_M = with_id_M[(-utility_N[with_id_M]).argsort(kind="stable")]
        word_M = words_N.word_B[by_utility_M]
        by_word_M = word_M.argsort(kind="stable")
        sorted_M = word_M[by_word_M]
        place_M = np.arange(len(sorted_M))
        is_best_M = np.append(True, sorted_M[1:] != sorted_M[:-1])
        number_M = place_M - np.maximum.accumulate(np.where(is_best_M, place_M, 0))
        # Powers of a few numbers: as many as the largest creator has candidates.
        powers = np.maximum(self.floor, np.power(self.factor, np.arange(number_M.max() + 1.0)))
        factor_N[by_utility_M[by_word_M]] = powers[number_M]
        return factor_N


def first_of_each(words: Sequence[Words]) -> Mask:
    """is_kept_N: the first candidate of those that agree in all ids, and each that lacks one."""
    code_N = words[0].word_B
    has_all_N = words[0].has_id_B
    for one in words[1:]:
        code_N = _codes(code_N) * len(code_N) + _codes(one.word_B)
        has_all_N = has_all_N & one.has_id_B
    is_kept_N = ~has_all_N
    with_all_N = np.flatnonzero(has_all_N)
    is_kept_N[with_all_N[np.unique(code_N[with_all_N], return_index=True)[1]]] = True
    return is_kept_N


def _codes(word_N: NDArray[np.int64]) -> NDArray[np.int64]:
    code_N: NDArray[np.int64] = np.unique(word_N, return_inverse=True)[1]
    return code_N


def _id_of(value: object, is_text: bool) -> str | int | None:
    """An id as the feature has it, None where it is none. 17 and "17" are one where ids are integers."""
    if is_text:
        return value if isinstance(value, str) else None
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if ID_LIMITS[0] <= value <= ID_LIMITS[1] else None
