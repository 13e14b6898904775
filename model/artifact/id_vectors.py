"""Vectors of candidates by one of their ids: rows of the artifact's own tables, for similarities between candidates.

In: the encoded ids of a single-id feature. Out: the row of each id in the tables of every owner, side by side. An id
without a row of its own says nothing of its candidate, so that its vector is 0, which is similar to none.

Shapes: N candidates, B rows of a block, K single-id features, I items, D columns of a vector, R rows of all tables of a
width, W columns of a table.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.artifact.attention import rows_of_ids
from model.artifact.catalogue_join import NamedCandidates
from model.features.block import EncodedBlock, block_inputs
from model.features.encoder import Encoded
from model.features.id_lookup import OOV_ROW
from model.features.kinds.columns import Ids
from model.schema import FeedSchema


class IdVectors:
    """Vectors by candidate ids. `owners` are, for each owner of tables, the first stacked row of each table."""

    def __init__(
        self, schema: FeedSchema, owners: Sequence[Mapping[str, int]], stacked_RW: Mapping[int, Tensor]
    ) -> None:
        tables = {name: table for table in schema.tables for name in table.features}
        self._places = {name: place for place, name in enumerate(block_inputs(schema, "candidate").ids)}
        self._tables = {name: tables[name] for name in self._places}
        self._owners = owners
        self._stacked_RW = stacked_RW

    def of_candidates(self, feature: str, candidates: Encoded | NamedCandidates) -> NDArray[np.float32]:
        """vector_ND of candidates as they are scored, by a feature with one id a candidate."""
        place = self._places[feature]
        if isinstance(candidates, Encoded):
            return self.of_ids(feature, candidates.block.ids_BK[:, place])
        ids_N = candidates.catalogue.ids(candidates.rows_N, place)
        encoded: EncodedBlock | None = candidates.encoded
        if encoded is not None:
            ids_N[candidates.is_encoded_N] = encoded.ids_BK[:, place]
        return self.of_ids(feature, ids_N)

    def of_ids(self, feature: str, ids_N: Ids) -> NDArray[np.float32]:
        """vector_ND of ids as they travel: rows of the table, or pairs of rows."""
        table = self._tables[feature]
        stacked_RW = self._stacked_RW[table.dim]
        found = [rows_of_ids(stacked_RW, table, starts[table.name], ids_N).numpy() for starts in self._owners]
        vector_ND: NDArray[np.float32] = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
        vector_ND[ids_N == OOV_ROW] = 0
        return vector_ND
