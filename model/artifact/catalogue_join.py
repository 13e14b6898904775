"""Candidates of a request joined with a catalogue: each feature from the request, then the catalogue, then its default.

In: ids and what the request says of them. Out: `NamedCandidates`: those of which the request says nothing but their id,
whose sums are gathered, and the others' encoded features, put together from both sources.

Shapes: N candidates, S of them with features to encode, K single-id features, L list features, V list values, Q
numbers, I items, B rows of a block.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.artifact.catalogue import Catalogue
from model.artifact.item_source import UNKNOWN
from model.features.block import block_inputs
from model.features.distinct import Positions, places, stacked, starts_of
from model.features.encoder import EncodedBlock, FeatureEncoder
from model.features.kinds.columns import Column, Ids

Mask = NDArray[np.bool_]

# What became of a candidate: its id is known, known with features of the request before the catalogue's, unknown with
# features of its own, unknown and nothing more.
KNOWN, OVERRIDDEN, INLINE, NOT_FOUND = RESULTS = ("known", "overridden", "inline", "unknown")


class NamedCandidates(NamedTuple):
    """Candidates of a request as items of `catalogue`. `rows_N` are the items, UNKNOWN where there is none. `encoded`
    has the features of candidates that the request describes or that are unknown, those of `is_encoded_N`. It is None
    without any. Then come the number of candidates with each of RESULTS, and the positions of the unknown ones."""

    catalogue: Catalogue
    rows_N: Ids
    is_encoded_N: Mask
    encoded: EncodedBlock | None
    missing: dict[str, int]
    oov: dict[str, int]
    results: dict[str, int]
    unknown: Sequence[int]

    @property
    def uses_catalogue(self) -> bool:
        """True where a candidate takes features from the catalogue."""
        return self.results[KNOWN] + self.results[OVERRIDDEN] > 0

    @property
    def is_known_N(self) -> Mask:
        """The candidates that the catalogue has."""
        is_known_N: Mask = self.rows_N != UNKNOWN
        return is_known_N

    def whole(self) -> tuple[EncodedBlock, Ids, Positions]:
        """The features of all candidates: those of the catalogue first (items `rows_K`), then the encoded ones.
        `place_N` is where each candidate's stand."""
        known_K, encoded_S = np.flatnonzero(~self.is_encoded_N), np.flatnonzero(self.is_encoded_N)
        rows_K = self.rows_N[known_K]
        block = self.catalogue.block(rows_K)
        place_N = np.empty(len(self.rows_N), np.intp)
        place_N[known_K] = np.arange(len(known_K))
        if self.encoded is not None:
            place_N[encoded_S] = np.arange(len(known_K), len(self.rows_N))
            block = stacked(block, self.encoded)
        return block, rows_K, place_N


def resolve(
    encoder: FeatureEncoder,
    catalogue: Catalogue,
    ids: Sequence[str],
    columns: Mapping[str, Column],
    nulls: Mapping[str, Mask],
) -> NamedCandidates:
    """Find the candidates in the catalogue and put the features of `columns` before the catalogue's.

    A null takes the catalogue's value. `nulls` says where lists are null: their columns have empty lists there. An
    unknown candidate takes defaults."""
    rows = len(ids)
    given = {name: _given(column, nulls.get(name)) for name, column in columns.items()}
    asked = encoder.schema.requested("candidate")
    if all(feature.name in given and given[feature.name].all() for feature in asked):
        encoded = encoder.encode("candidate", columns, rows, as_served=True)
        nobody_N = np.full(rows, UNKNOWN, np.int64)
        everyone_N = np.ones(rows, np.bool_)
        results = {**dict.fromkeys(RESULTS, 0), INLINE: rows}
        return NamedCandidates(
            catalogue, nobody_N, everyone_N, encoded.block, encoded.missing, encoded.oov, results, ()
        )
    rows_N = catalogue.rows_of(ids)
    is_known_N = rows_N != UNKNOWN
    is_given_N = np.zeros(rows, np.bool_)
    for is_given_here_N in given.values():
        is_given_N |= is_given_here_N
    unknown: list[int] = np.flatnonzero(~(is_known_N | is_given_N)).tolist()
    is_encoded_N = is_given_N | ~is_known_N
    results = {
        KNOWN: rows - int(np.count_nonzero(is_encoded_N)),
        OVERRIDDEN: int(np.count_nonzero(is_known_N & is_given_N)),
        INLINE: int(np.count_nonzero(is_given_N & ~is_known_N)),
        NOT_FOUND: len(unknown),
    }
    if not is_encoded_N.any():
        return NamedCandidates(catalogue, rows_N, is_encoded_N, None, {}, {}, results, unknown)
    encoded = encoder.encode("candidate", columns, rows, as_served=True)
    nowhere_N = np.zeros(rows, np.bool_)
    # Where the catalogue's value is taken, by feature.
    taken = {feature.name: is_known_N & ~given.get(feature.name, nowhere_N) for feature in asked}
    # Every value that is taken from the catalogue is one that the encoder counted as missing.
    left = {name: count - int(np.count_nonzero(taken[name])) for name, count in encoded.missing.items()}
    missing = {name: count for name, count in left.items() if count}
    block = _merged(encoder, catalogue, encoded.block, rows_N, taken, np.flatnonzero(is_encoded_N))
    return NamedCandidates(catalogue, rows_N, is_encoded_N, block, missing, encoded.oov, results, unknown)


def _given(column: Column, is_null_N: Mask | None) -> Mask:
    """Mask of the values that a request has."""
    if column.lengths_B is None:
        is_null_N = column.missing
    return np.ones(column.rows, np.bool_) if is_null_N is None else ~is_null_N


def _merged(
    encoder: FeatureEncoder,
    catalogue: Catalogue,
    block: EncodedBlock,
    rows_N: Ids,
    taken: Mapping[str, Mask],
    picked_S: NDArray[np.intp],
) -> EncodedBlock:
    """The picked candidates' features, the catalogue's where `taken`."""
    ids, lists, numbers = block_inputs(encoder.schema, "candidate")

    def masks(features: Sequence[str]) -> Mask:
        of_kind = [taken[name][picked_S] for name in features]
        return np.stack(of_kind, axis=1) if of_kind else np.zeros((len(picked_S), 0), np.bool_)

    # Of an unknown one nothing is taken, whichever item is looked at.
    item = catalogue.block(np.maximum(rows_N[picked_S], 0))
    ids_SK = np.where(masks(ids), item.ids_BK, block.ids_BK[picked_S])
    is_taken_SQ = masks([number.feature for number in numbers])
    numbers_SQ = np.where(is_taken_SQ, item.numbers_BQ, block.numbers_BQ[picked_S])
    values_V, lengths_LS = _merged_lists(item, block, masks([one.name for one in lists]).T, picked_S)
    return EncodedBlock(ids_SK, values_V, lengths_LS, numbers_SQ)


def _merged_lists(
    item: EncodedBlock, block: EncodedBlock, is_taken_LS: Mask, picked_S: NDArray[np.intp]
) -> tuple[Ids, Ids]:
    lengths_LS = np.where(is_taken_LS, item.list_lengths_LB, block.list_lengths_LB[:, picked_S])
    starts_LS = np.where(is_taken_LS, starts_of(item), starts_of(block)[:, picked_S])
    positions_V = places(starts_LS, lengths_LS)
    is_taken_V = np.repeat(is_taken_LS.reshape(-1), lengths_LS.reshape(-1))
    values_V = np.empty(len(positions_V), np.int64)
    values_V[is_taken_V] = item.list_values_V[positions_V[is_taken_V]]
    values_V[~is_taken_V] = block.list_values_V[positions_V[~is_taken_V]]
    return values_V, lengths_LS
