"""Several requests of one version -> their encoded blocks, for less than one after another.

In: requests as they were read. Out: what `FeatureEncoder.encode_both` makes of each. Candidates of requests with the
same columns are encoded as one block, of which each has its rows: a call costs as much as a hundred values.

Shapes: B rows of a block, K single-id features, L list features, V list values in all, R requests.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from model.features.block import Encoded, EncodedBlock, inputs_of, some
from model.features.distinct import by_list, unstacked
from model.features.encoder import FeatureEncoder
from model.features.hashing import hash_integers
from model.features.kinds.columns import Column, Values
from model.features.request_row import ReadRow


class ReadBlocks(NamedTuple):
    """User and context of a request as read, and the columns of its candidates, `rows` of each."""

    request: ReadRow | Encoded
    candidates: Mapping[str, Column]
    rows: int


def encode_together(encoder: FeatureEncoder, requests: Sequence[ReadBlocks]) -> list[tuple[Encoded, Encoded]]:
    """Both blocks of each request, as they are served."""
    with_equal: dict[frozenset[str], list[int]] = {}
    for number, one in enumerate(requests):
        with_equal.setdefault(frozenset(one.candidates), []).append(number)
    candidates: dict[int, Encoded] = {}
    for numbers in with_equal.values():
        candidates |= zip(numbers, _candidates(encoder, [requests[number] for number in numbers]), strict=True)
    users = _users([one.request for one in requests])
    return [(user, candidates[number]) for number, user in enumerate(users)]


def _users(requests: Sequence[ReadRow | Encoded]) -> list[Encoded]:
    """The encoded rows, all their integers hashed in one go."""
    rows = [one for one in requests if isinstance(one, ReadRow)]
    if not rows:
        return [one for one in requests if isinstance(one, Encoded)]
    words_V = hash_integers(np.concatenate([row.integers_V for row in rows]))
    words = iter(np.split(words_V, np.cumsum([len(row.integers_V) for row in rows])[:-1]))
    return [one if isinstance(one, Encoded) else one.encoded(next(words)) for one in requests]


def _candidates(encoder: FeatureEncoder, requests: Sequence[ReadBlocks]) -> list[Encoded]:
    """The candidates' blocks of requests with the same columns."""
    columns = {name: _joined([one.candidates[name] for one in requests]) for name in requests[0].candidates}
    sizes = [one.rows for one in requests]
    encoded = encoder.encode("candidate", columns, sum(sizes), as_served=True)
    blocks = unstacked(encoded.block, sizes)
    if not (encoded.missing or encoded.oov):
        return [Encoded(block, {}, {}) for block in blocks]
    return [_counted(encoder, encoded, block, one) for block, one in zip(blocks, requests, strict=True)]


def _joined(columns: Sequence[Column]) -> Column:
    """The rows of columns of one feature, one column's after another's."""
    given = [column.values for column in columns]
    values: Values = [*chain.from_iterable(given)] if isinstance(given[0], list) else np.concatenate(given)
    missing = None
    if any(column.missing is not None for column in columns):
        missing = np.concatenate(
            [np.zeros(len(column.values), np.bool_) if column.missing is None else column.missing for column in columns]
        )
    lengths = [column.lengths_B for column in columns if column.lengths_B is not None]
    return Column(values, missing, np.concatenate(lengths) if lengths else None)


def _counted(encoder: FeatureEncoder, of_all: Encoded, block: EncodedBlock, request: ReadBlocks) -> Encoded:
    """A request's block with its own counts. `of_all` names the features that any request counts."""
    ids, lists, _ = inputs_of(encoder.schema.block("candidate"))
    ids_of = dict(zip(ids, block.ids_BK.T, strict=True))
    lengths_of = dict(zip([one.name for one in lists], block.list_lengths_LB, strict=True))
    values_of = dict(zip(lengths_of, by_list(block), strict=True))
    missing = {}
    for name in of_all.missing:
        column = request.candidates.get(name)
        if name in lengths_of:
            missing[name] = int(np.count_nonzero(lengths_of[name] == 0))
        else:
            missing[name] = request.rows if column is None else column.num_missing
    oov = {}
    for name in of_all.oov:
        if name in values_of:
            oov[name] = int(np.count_nonzero(values_of[name] == 0))
        else:
            oov[name] = int(np.count_nonzero(ids_of[name] == 0)) - missing.get(name, 0)
    return Encoded(block, some(missing), some(oov))
