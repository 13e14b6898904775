"""Rows that a compiled package is accepted by: `quality_rows.npz`, encoded validation rows in sets of candidates.

In: a file that the manifest may list. Out: rows as a scorer encodes them, with the labels of each, and sets of rows
whose candidates are ranked for the request of their first one. Ids are encoded: none stands as the log has it.

Shapes: R rows, S sets, N candidates of a set, T tasks, B rows of a block, K single-id features, L list
features, V list values, Q numbers.
"""

import io
import zipfile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.artifact.artifact import Artifact, ArtifactError
from model.features.block import BLOCKS, EncodedBlock, block_inputs
from model.schema import Block, FeedSchema

QUALITY_ROWS = "quality_rows.npz"
SETS, CANDIDATES = 500, 100
MOST_ROWS = 20_000
MOST_BYTES = 16 * 2**20

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


class QualityRows(NamedTuple):
    """Encoded rows, each a request and its candidate. Labels are NaN where they do not count. `sets_SN` are rows: the
    request is the first one's."""

    request: EncodedBlock
    candidate: EncodedBlock
    labels_RT: Floats
    sets_SN: Indices

    def content(self) -> bytes:
        """Bytes of the file. Integers take 4 bytes each where all of an array fit."""
        arrays = {"labels_RT": self.labels_RT, "sets_SN": _small(self.sets_SN)}
        for block, encoded in zip(BLOCKS, (self.request, self.candidate), strict=True):
            for name, array in encoded._asdict().items():
                arrays[f"{block}.{name}"] = array if array.dtype == np.float32 else _small(array)
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def of_artifact(cls, artifact: Artifact) -> "QualityRows | None":
        """Rows of a version, None where it has none. Raises ArtifactError for a file that is not of its schema."""
        if QUALITY_ROWS not in artifact.manifest.files:
            return None
        place = artifact.path / QUALITY_ROWS
        try:
            # Arrays are stored as they are: nothing unfolds to more than the file that the manifest has the size of.
            with np.load(io.BytesIO(artifact.read(QUALITY_ROWS)), allow_pickle=False) as arrays:
                rows = cls(
                    _block(arrays, "request"),
                    _block(arrays, "candidate"),
                    np.asarray(arrays["labels_RT"], np.float32),
                    np.asarray(arrays["sets_SN"], np.int64),
                )
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{place}: no encoded rows ({error})") from None
        if (fault := rows._fault(artifact.manifest.feed)) is not None:
            raise ArtifactError(f"{place}: {fault}; export the run again")
        return rows

    def _fault(self, schema: FeedSchema) -> str | None:
        count = len(self.labels_RT)
        if self.labels_RT.shape != (count, len(schema.tasks)):
            return f"labels of shape {self.labels_RT.shape}, and the schema has {len(schema.tasks)} tasks"
        if self.sets_SN.ndim != 2 or ((self.sets_SN < 0) | (self.sets_SN >= count)).any():
            return f"sets of other rows than the {count:,} that are there"
        for name, encoded in zip(BLOCKS, (self.request, self.candidate), strict=True):
            ids, lists, numbers = block_inputs(schema, name)
            lengths_LR = encoded.list_lengths_LB
            if encoded.ids_BK.shape != (count, len(ids)) or encoded.numbers_BQ.shape != (count, len(numbers)):
                return f"the {name} block has not the schema's features"
            if lengths_LR.shape != (len(lists), count) or (lengths_LR < 0).any():
                return f"the {name} block has not the schema's lists"
            if encoded.list_values_V.shape != (int(lengths_LR.sum()),):
                return f"the {name} block has other list values than its lengths say"
        return None


def most_rows(row_bytes: float) -> int:
    """Number of rows that are kept, each of `row_bytes` in memory."""
    # In the file as in memory at worst: ids of two hashes take their 8 bytes.
    return int(min(MOST_ROWS, max(CANDIDATES, MOST_BYTES // max(1.0, row_bytes))))


def sets_of(rows: int, seed: int = 0) -> Indices:
    """sets_SN of `rows` rows: each first one in turn, the others drawn without replacement."""
    generator = np.random.default_rng(seed)
    count = min(CANDIDATES, rows)
    firsts = np.resize(generator.permutation(rows), SETS)
    sets = [np.concatenate([[first], _others(generator, rows, first, count - 1)]) for first in firsts]
    return np.stack(sets).astype(np.int64)


def _others(generator: np.random.Generator, rows: int, first: np.int64, count: int) -> Indices:
    drawn = generator.choice(rows - 1, count, replace=False)
    return np.asarray(drawn + (drawn >= first), np.int64)


def _block(arrays: "np.lib.npyio.NpzFile", block: Block) -> EncodedBlock:
    def integers(name: str) -> Indices:
        return np.asarray(arrays[f"{block}.{name}"], np.int64)

    numbers_BQ = np.asarray(arrays[f"{block}.numbers_BQ"], np.float32)
    return EncodedBlock(integers("ids_BK"), integers("list_values_V"), integers("list_lengths_LB"), numbers_BQ)


def _small(array: Indices) -> NDArray[np.signedinteger]:
    limits = np.iinfo(np.int32)
    return array.astype(np.int32) if not array.size or limits.min <= array.min() <= array.max() <= limits.max else array
