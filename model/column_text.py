"""Columns of numbers, from their JSON text to arrays: no Python object is made for a value.

In: the texts of a block's columns as a request holds them, each known to be a well-formed JSON list. Out: the `Column`s
that `model.columns.column_from_values` makes of the decoded values, but none for a column at which that one has to look
(a null, a string, an exponent, a value that does not fit its dtype, another number of rows). What is refused, and in
which words, is decided there alone.

All columns of single values are read by one call: what a call costs is as much as a hundred values.

Shapes: N rows, V list values in all.
"""

from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model.columns import Column, Kind
from model.schema import ID_LIMITS

Number = TypeVar("Number", np.int64, np.float64)

_COMMA, _OPENING, _CLOSING = b",[]"
# Either bracket with the bits in which the two differ set; no other character of a list of numbers becomes the same.
_DIFFERENCE = _OPENING ^ _CLOSING
_BRACKET = _OPENING | _DIFFERENCE


def columns_from_texts(texts: Mapping[str, bytes], kinds: Mapping[str, Kind], rows: int) -> dict[str, Column]:
    """The columns of `rows` plain numbers, or lists of plain integers, among `texts`; `kinds` knows what they hold."""
    columns: dict[str, Column] = {}
    integers: dict[str, bytes] = {}
    numbers: dict[str, bytes] = {}
    for name, text in texts.items():
        kind = kinds.get(name)
        if kind is None or kind.dtype == "string":
            continue
        if kind.is_list:
            column = _lists(text, rows)
            if column is not None:
                columns[name] = column
        elif text.count(b",") == rows - 1:
            (numbers if kind.dtype is None else integers)[name] = text[1:-1]
    columns.update(_together(integers, np.int64, rows))
    columns.update(_together(numbers, np.float64, rows))
    return columns


def _together(texts: Mapping[str, bytes], dtype: type[Number], rows: int) -> Iterator[tuple[str, Column]]:
    """Columns by name; where some are not plain, each is tried by itself."""
    if not texts or (rows == 1 and not all(map(bytes.strip, texts.values()))):
        return
    values = _numbers(b",".join(texts.values()), dtype)
    if values is not None and len(values) == len(texts) * rows:
        yield from zip(texts, map(Column, values.reshape(len(texts), rows)), strict=True)
    elif len(texts) > 1:
        for name, text in texts.items():
            yield from _together({name: text}, dtype, rows)


def _numbers(text: bytes, dtype: type[Number]) -> NDArray[Number] | None:
    """Numbers with commas between them; None for anything else."""
    if not text:
        return np.zeros(0, dtype)
    try:
        values = np.fromstring(text, dtype, sep=",")
    except ValueError:  # something that is not a number of that kind
        return None
    if dtype is np.float64:
        return values if np.isfinite(values).all() else None
    # numpy reads integers beyond 64 bits as the nearest one within: those at the limits are left to Python's integers.
    return values if values.min() > ID_LIMITS[0] and values.max() < ID_LIMITS[1] else None


def _lists(text: bytes, rows: int) -> Column | None:
    """A column of `rows` lists of integers; None for anything else."""
    characters = np.frombuffer(text, np.uint8)
    brackets = np.flatnonzero(characters | _DIFFERENCE == _BRACKET)
    if characters[brackets].tobytes() != b"[" + b"[]" * rows + b"]":
        return None
    comma_at = np.flatnonzero(characters == _COMMA)
    commas = comma_at.searchsorted(brackets)  # how many lie before each bracket
    ends_N = commas[2:-1:2]
    lengths_N = ends_N - commas[1:-1:2] + 1
    firsts_N = characters[brackets[1:-1:2] + 1]
    # One comma between two lists leaves none for other values beside them; between blanks numpy would find a 0.
    if len(comma_at) != lengths_N.sum() - 1 or firsts_N.min() <= ord(" "):
        return None
    numbers = characters.copy()
    numbers[brackets] = ord(" ")
    is_empty_N = firsts_N == _CLOSING
    if is_empty_N.any():
        lengths_N[is_empty_N] = 0
        following = ends_N[is_empty_N]
        numbers[comma_at[following[following < len(comma_at)]]] = ord(" ")
    values_V = _numbers(numbers.tobytes().rstrip(b", \t\n\r"), np.int64)
    return Column(values_V, None, lengths_N) if values_V is not None and len(values_V) == lengths_N.sum() else None
