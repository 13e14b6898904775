"""A columnar scoring request without a fault: its bytes -> `Question`, columns of numbers straight into arrays.

In: the body of POST /v1/rank, or of a batch. Out: a Question, or those of the batch. Their plain columns (numbers
alone, or lists of integers, no null) are `Column`s, the others are lists of values. None for any other body, which
service.rank.question reads key by key, to take it or to name its faults. So nothing is refused here.

simdjson parses the whole body once and copies numbers into arrays. It flattens nested lists on the way. That none of
what is flattened was nested deeper than it may be is seen in the number of opening brackets of the body: those that a
right body has are known, and a bracket more, if only in a string, leaves the body to service.rank.read.

Shapes: N candidates, V list values in all, B rows of a column.
"""

import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np
import simdjson

from model.features.encoder import Column
from service.rank.question import Question
from service.rank.wire import Options

# A parser keeps about fourteen times the largest body that it has seen. One for a large body is dropped after it.
_KEPT_BODY = 2**20
# simdjson finds a key by looking at all before it.
_MOST_COLUMNS = 1000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BRACKET = np.uint8(ord("["))
_PARTS = frozenset({"user", "candidates"})
_ROWS = re.compile(rb'"candidates"\s*:\s*\[')
_kept = threading.local()
_len: Callable[[Any], int] = len
Read = TypeVar("Read")


def read_columnar(body: bytes) -> Question | None:
    """The question of a columnar body of the right shape, with however many candidates. None for any other body."""
    # Only not to parse rows in vain, so the first place that looks like them is enough.
    if _ROWS.match(body, body.find(b'"candidates"')):
        return None

    def read(document: Any) -> tuple[Question, int]:
        return _question(document, lambda: body)

    return _read(body, read)


def read_columnar_batch(body: bytes, most: int, text_of: Callable[[int], bytes]) -> list[Question] | None:
    """The questions of a batch of at most so many, each of the right shape. None for any other body. `text_of` gives
    the body of one of them."""

    def read(document: Any) -> tuple[list[Question], int] | None:
        requests = document["requests"]
        if len(document) != 1 or type(requests) is not simdjson.Array or not 1 <= len(requests) <= most:
            return None
        read_each = [_question(request, partial(text_of, number)) for number, request in enumerate(requests)]
        return [question for question, _ in read_each], 1 + sum(brackets for _, brackets in read_each)

    return _read(body, read)


def _read(body: bytes, read: Callable[[Any], tuple[Read, int] | None]) -> Read | None:
    """What `read` makes of a document, which returns it with the number of brackets of its body."""
    if body.startswith(_BYTE_ORDER_MARK):  # simdjson would skip it
        return None
    try:
        found = read(_parser(body).parse(body))
    except (ValueError, TypeError, KeyError, RuntimeError, RecursionError):
        return None
    # numpy compares bytes several times as fast as bytes.count finds many.
    if found is None or np.count_nonzero(np.frombuffer(body, np.uint8) == _BRACKET) != found[1]:
        return None
    return found[0]


def _parser(body: bytes) -> simdjson.Parser:
    if len(body) > _KEPT_BODY:
        return simdjson.Parser()
    parser: simdjson.Parser | None = getattr(_kept, "parser", None)
    if parser is None:
        parser = _kept.parser = simdjson.Parser()
    return parser


def _question(document: Any, body: Callable[[], bytes]) -> tuple[Question, int]:
    """A question and the number of opening brackets that it has. Raises TypeError, ValueError or KeyError for what is
    not of the right shape."""
    keys = list(document)
    user, candidates = document["user"], document["candidates"]
    # A key that is none, or a value of a wrong type, is a ValueError.
    options = msgspec.convert({key: document[key] for key in keys if key not in _PARTS}, Options)
    if len(set(keys)) != len(keys) or type(user) is not simdjson.Object or type(candidates) is not simdjson.Object:
        raise TypeError("not a request")
    ids, features = _columns(candidates)
    featureless = "candidates.features" if features is None else None
    features = features or {}
    user = user.as_dict()
    # In loops that call nothing: this is a good part of what a small request costs.
    brackets = 1 + len(features) + list(map(type, user.values())).count(list)
    for column in features.values():
        if isinstance(column, list):
            brackets += list(map(type, column)).count(list)
        elif column.lengths_B is not None:
            brackets += len(column.lengths_B)
    "".join(ids)  # a TypeError where one is no string
    if not ids:
        raise TypeError("no candidates")
    return Question(options, user, ids, features, featureless=featureless, body=body), brackets


def _columns(candidates: Any) -> tuple[list[Any], dict[str, Column | list[Any]] | None]:
    """The candidates' ids and their columns by name, if there are any. Raises TypeError for something else."""
    keys = list(candidates)
    if keys not in (["id", "features"], ["features", "id"], ["id"]):
        raise TypeError("not columns")
    ids = candidates["id"]
    if type(ids) is not simdjson.Array:
        raise TypeError("not a column of ids")
    if len(keys) == 1:
        return ids.as_list(), None
    features = candidates["features"]
    names = list(features.keys())
    if len(names) > _MOST_COLUMNS or len(set(names)) != len(names):
        raise TypeError("not a column for each feature")
    return ids.as_list(), {name: _column(features[name]) for name in names}


def _column(given: object) -> Column | list[Any]:
    """A column of numbers or of lists of integers. The values of any other. Raises TypeError for what is no list."""
    if type(given) is not simdjson.Array:
        raise TypeError("not a column")
    first: object = given[0] if len(given) else None
    try:
        if type(first) is int:
            try:
                return Column(np.frombuffer(given.as_buffer(of_type="i"), np.int64))
            except TypeError:  # a fraction among them, or something else that the next line finds
                return Column(np.frombuffer(given.as_buffer(of_type="d"), np.float64))
        if type(first) is float:
            return Column(np.frombuffer(given.as_buffer(of_type="d"), np.float64))
        if type(first) is simdjson.Array:
            lengths_N = np.fromiter(map(_len, given), np.int64, len(given))
            values_V = np.frombuffer(given.as_buffer(of_type="i"), np.int64)
            if len(values_V) == np.add.reduce(lengths_N):
                return Column(values_V, None, lengths_N)
    except TypeError:  # a null, a string
        pass
    values: list[Any] = given.as_list()
    return values
