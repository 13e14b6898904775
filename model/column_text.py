"""A column of numbers, from its JSON text to arrays: no Python object is made for a value.

In: the text of one column as a request holds it, known to be well-formed JSON. Out: the `Column` that
`model.columns.column_from_values` makes of the decoded values, or None where that one has to look: at a null, a string,
an exponent, a value that does not fit its dtype. What is refused, and in which words, is decided there alone.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model.columns import Column, Ids
from model.schema import Dtype, Feature, IdListFeature, NumberFeature

Number = TypeVar("Number", np.int64, np.float64)

# numpy reads integers beyond 64 bits as the nearest one within, so those near the limits are left to Python's integers.
_SAFE = 10**18
_COMMA, _OPENING, _CLOSING = b",[]"
# Either bracket with the bits in which the two differ set: no other character of a well-formed list of numbers.
_DIFFERENCE = _OPENING ^ _CLOSING
_BRACKET = _OPENING | _DIFFERENCE


def column_from_text(feature: Feature, dtype: Dtype | None, text: bytes) -> Column | None:
    """A column of plain numbers, or of lists of plain integers; None for any other."""
    try:
        if isinstance(feature, IdListFeature):
            return _lists(text) if dtype == "int64" else None
        if isinstance(feature, NumberFeature):
            numbers = _numbers(text[1:-1], np.float64)
            return Column(numbers) if np.isfinite(numbers).all() else None
        return Column(_integers(text[1:-1])) if dtype == "int64" else None
    except ValueError:  # something that is not a number of that kind
        return None


def _numbers(text: bytes, dtype: type[Number]) -> NDArray[Number]:
    """Numbers with commas between them. Raises ValueError."""
    text = text.strip()  # numpy would take a blank without a number for one
    return np.fromstring(text, dtype, sep=",") if text else np.zeros(0, dtype)


def _integers(text: bytes) -> Ids:
    ids = _numbers(text, np.int64)
    if len(ids) and not (ids.min() > -_SAFE and ids.max() < _SAFE):
        raise ValueError("beyond what is read exactly")
    return ids


def _lists(text: bytes) -> Column | None:
    characters = np.frombuffer(text, np.uint8)
    brackets = np.flatnonzero(characters | _DIFFERENCE == _BRACKET)
    kinds = characters[brackets]
    # A list of lists and nothing else: [ [ ] [ ] ... ], one comma between the inner lists, none outside them.
    if len(brackets) < 4 or len(brackets) % 2 or (kinds[1:-1:2] != _OPENING).any() or (kinds[2::2] != _CLOSING).any():
        return None
    commas = np.diff(np.searchsorted(np.flatnonzero(characters == _COMMA), brackets))
    if commas[0] or commas[-1] or (commas[2:-1:2] != 1).any():
        return None
    firsts = characters[brackets[1:-1:2] + 1]
    if (firsts <= ord(" ")).any():  # as in [ ], where numpy would find a 0
        return None
    lengths_B = commas[1::2] + 1
    is_empty_B = firsts == _CLOSING
    if is_empty_B.any():
        lengths_B[is_empty_B] = 0
        text = text.replace(b"[],", b"").replace(b"[]", b"")
    values_V = _integers(text.translate(None, b"[]"))
    return Column(values_V, None, lengths_B) if len(values_V) == lengths_B.sum() else None
