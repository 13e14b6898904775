"""Raw values of a request's candidates for its policy, as the ranker has used them.

In: the candidates' columns, and the catalogue where it has some of them. Out: numbers and words of ids by feature, each
made when it is first read. A value is the request's, then the catalogue's, then its default.

Shapes: N candidates, B rows of a column, K single-id features, Q numbers, I items of the catalogue.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.artifact.catalogue_join import NamedCandidates
from model.features.block import block_inputs
from model.features.encoder import Column
from model.features.kinds.inputs import NumberInput
from model.features.raw_values import Words, words_of, words_of_strings
from model.schema import FeedSchema

Floats = NDArray[np.float64]
# What stands for a candidate's own id, unless a feature has this name.
ID = "id"


class Readable(NamedTuple):
    """The candidate features of a schema that policies can read: single ids and numbers, by their places among the
    columns of a block. Of `integers` ids are numbers too."""

    ids: Mapping[str, int]
    numbers: Mapping[str, tuple[int, NumberInput]]
    integers: frozenset[str]

    @classmethod
    def of(cls, schema: FeedSchema) -> "Readable":
        """The readable features of a schema."""
        ids, _, numbers = block_inputs(schema, "candidate")
        single = {feature.name for feature in schema.requested("candidate") if not feature.is_list}
        strings = {name for table in schema.tables if table.dtype == "string" for name in table.features}
        return cls(
            {name: place for place, name in enumerate(ids) if name in single},
            {one.feature: (place, one) for place, one in enumerate(numbers) if one.feature in single},
            frozenset(name for name in ids if name in single and name not in strings),
        )


class CandidateValues:
    """Raw values of the candidates `ids` of one request. `named` is None where no catalogue has any."""

    def __init__(
        self,
        readable: Readable,
        columns: Mapping[str, Column],
        ids: Sequence[str],
        named: NamedCandidates | None = None,
    ) -> None:
        self.ids = ids
        self._readable = readable
        self._columns = columns
        self._named = named if named is not None and named.uses_catalogue else None
        self._words: dict[str, Words] = {}

    def numbers(self, feature: str) -> Floats:
        """number_N of a feature: its values, `missing` where there is none. Of integer ids NaN."""
        if feature in self._readable.ids:
            words = self.words(feature)
            return np.where(words.has_id_B, words.word_B.astype(np.float64), np.nan)
        place, number = self._readable.numbers[feature]
        column = self._columns.get(feature)
        number_N: Floats = np.full(len(self.ids), number.missing) if column is None else number.raw(column)
        if self._named is not None:
            is_taken_N = self._named.is_known_N & ~_given(column, len(self.ids))
            raw_N = self._named.catalogue.raw_numbers(self._named.rows_N, place)
            number_N = np.where(is_taken_N, raw_N, number_N)
        return number_N

    def words(self, feature: str) -> Words:
        """Words of the N ids of a feature, or of the candidates' own (`ID`)."""
        if feature not in self._words:
            self._words[feature] = self._read_words(feature)
        return self._words[feature]

    def _read_words(self, feature: str) -> Words:
        place = self._readable.ids.get(feature)
        if place is None:
            assert feature == ID, feature
            return Words(words_of_strings(self.ids), np.ones(len(self.ids), np.bool_))
        words = words_of(self._columns.get(feature), len(self.ids))
        if self._named is None:
            return words
        item = self._named.catalogue.words(self._named.rows_N, place)
        is_taken_N = self._named.is_known_N & ~words.has_id_B
        return Words(
            np.where(is_taken_N, item.word_B, words.word_B), np.where(is_taken_N, item.has_id_B, words.has_id_B)
        )


def _given(column: Column | None, rows: int) -> NDArray[np.bool_]:
    """Mask of the values that a request has."""
    if column is None:
        return np.zeros(rows, np.bool_)
    return np.ones(rows, np.bool_) if column.missing is None else ~column.missing
