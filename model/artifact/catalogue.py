"""The candidate catalogue of a model version: items by id, encoded, with what their columns add to the first layers.

In: a generation, `<models>/<name>/derived/<version>/catalogue/<generation>/`, published by training.publish.catalogue
for this very version, checksums and all. Out: `Catalogue`: ids of a request -> rows of items, rows -> encoded features
or sums. Everything is memory-mapped: workers share it, and a generation that is deleted stays until its last reader
lets go.

Ids are found by the XXH3-128 hash of their UTF-8 bytes: 16 bytes an item, sorted, no string kept.

Shapes: I items, N candidates, K single-id features, L list features, V list values, Q numbers, F outputs over the raw
row (model/export/scoring_network.py).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artifact.artifact import (
    Artifact,
    ArtifactError,
    DerivedManifest,
    check_sha256,
    opened,
    read_derived_manifest,
    versions,
)
from model.artifact.item_source import rows_by_key
from model.features.distinct import places
from model.features.encoder import EncodedBlock
from model.features.kinds.columns import Ids
from model.schema import FeedSchema
from model.strict_yaml import StrictModel
from model.untrusted_files import changed, fingerprint_of, sha256_of

FORMAT_VERSION = 2
SumsDtype = Literal["bfloat16", "float32"]
# Rows of tables fit int32. Pairs of rows, of tables with two hashes (model/features/id_lookup.py), need int64.
IdsDtype = Literal["int32", "int64"]


class Widths(StrictModel):
    """Columns of a catalogue's arrays: single ids, lists, numbers and sums of an item, and list values of all items."""

    ids: int
    lists: int
    numbers: int
    sums: int
    list_values: int


class CatalogueManifest(DerivedManifest):
    """A generation's manifest. `source` is the name of the item file, whose path and bytes a join needs. `missing` and
    `oov` count, by feature, the items without a value and the ids that are not in their table."""

    kind: Literal["catalogue"]
    generation: int
    source: str
    source_path: str | None = None
    source_sha256: str | None = None
    items: int
    widths: Widths
    sums_dtype: SumsDtype
    ids_dtype: IdsDtype
    missing: dict[str, int]
    oov: dict[str, int]


def layout(
    items: int, widths: Widths, sums_dtype: SumsDtype, ids_dtype: IdsDtype
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every file of a generation: its dtype and shape, little-endian and row by row."""
    ids = np.dtype(ids_dtype).newbyteorder("<").str
    return {
        "keys.bin": ("<u8", (2, items)),  # halves of the ids' hashes, ascending by the first
        "rows.bin": ("<i8", (items,)),  # the row of the item behind each key
        "ids.bin": (ids, (items, widths.ids)),
        "list_starts.bin": ("<i8", (items, widths.lists)),
        "list_lengths.bin": ("<i4", (items, widths.lists)),
        "list_values.bin": (ids, (widths.list_values,)),
        "numbers.bin": ("<f4", (items, widths.numbers)),
        # As the items have them: what is compared with other candidates and not embedded.
        "words.bin": ("<i8", (items, widths.ids)),
        "has_id.bin": ("|b1", (items, widths.ids)),
        "raw_numbers.bin": ("<f8", (items, widths.numbers)),
        # numpy has no bfloat16: the words are torch's to read
        "sums.bin": ("<u2" if sums_dtype == "bfloat16" else "<f4", (items, widths.sums)),
    }


def ids_dtype_of(schema: FeedSchema) -> IdsDtype:
    """Storage type of a feed's candidate ids."""
    pairs = {name for table in schema.tables if table.half_rows for name in table.features}
    return "int64" if any(feature.name in pairs for feature in schema.block("candidate")) else "int32"


def folder_of(artifact: Artifact) -> Path:
    """Folder of the generations of a version's catalogue, if there is one."""
    return artifact.path.parent / "derived" / artifact.version / "catalogue"


def generations(folder: Path) -> list[int]:
    """The published generations, ascending."""
    return versions(folder.parent, folder.name)


class Catalogue:
    """One verified generation, mapped. Reading is safe from several threads."""

    def __init__(self, manifest: CatalogueManifest, arrays: dict[str, NDArray[Any]]) -> None:
        self.manifest = manifest
        self._keys, self._rows = arrays["keys.bin"], arrays["rows.bin"]
        self.ids_IK = arrays["ids.bin"]
        self.starts_IL, self.lengths_IL = arrays["list_starts.bin"], arrays["list_lengths.bin"]
        self.values_V = arrays["list_values.bin"]
        self.numbers_IQ = arrays["numbers.bin"]
        self.words_IK, self.has_id_IK = arrays["words.bin"], arrays["has_id.bin"]
        self.raw_numbers_IQ = arrays["raw_numbers.bin"]
        self._sums_IF = torch.from_numpy(arrays["sums.bin"]).view(getattr(torch, manifest.sums_dtype))

    @classmethod
    def open(cls, path: Path, artifact: Artifact) -> "Catalogue":
        """Verify and map a generation. Raises ArtifactError: damaged, made for another model version, or not
        signed where the version has to be."""
        remedy = (
            f", whose features may mean something else; build it again for {artifact.manifest.name} {artifact.version}"
        )
        manifest = read_derived_manifest(CatalogueManifest, path, FORMAT_VERSION, artifact, remedy)
        if path.name.isdecimal() and path.name != str(manifest.generation):
            raise ArtifactError(f"{path}: the manifest says generation {manifest.generation}; the folder was renamed")
        if manifest.items < 1 or min(manifest.widths.model_dump().values()) < 0:
            raise ArtifactError(f"{path}: the manifest counts {manifest.items} items and {manifest.widths}")
        files = layout(manifest.items, manifest.widths, manifest.sums_dtype, manifest.ids_dtype)
        return cls(manifest, {name: _mapped(path / name, manifest, *file) for name, file in files.items()})

    def rows_of(self, ids: Sequence[str]) -> Ids:
        """rows_N: each id's item, UNKNOWN where there is none."""
        return rows_by_key(self._keys, self._rows, ids)

    def block(self, rows_N: Ids) -> EncodedBlock:
        """The encoded features of items, as `FeatureEncoder.encode` makes them."""
        lengths_LN = self.lengths_IL[rows_N].T.astype(np.int64)
        positions_V = places(self.starts_IL[rows_N].T, lengths_LN)
        return EncodedBlock(
            ids_BK=self.ids_IK[rows_N].astype(np.int64),
            list_values_V=self.values_V[positions_V].astype(np.int64),
            list_lengths_LB=lengths_LN,
            numbers_BQ=self.numbers_IQ[rows_N],
        )

    def sums(self, rows_N: Ids) -> Tensor:
        """sums_NF of items in the dtype that they are stored in."""
        return self._sums_IF.index_select(0, torch.from_numpy(rows_N))


def _mapped(path: Path, manifest: CatalogueManifest, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of one file, whose bytes have the manifest's sha256."""
    entry = manifest.files.get(path.name)
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    if entry is None or entry.size_bytes != wanted:
        raise ArtifactError(f"{path}: the manifest lists {entry and entry.size_bytes} bytes, {wanted} are needed")
    array: NDArray[Any]
    with opened(path, entry) as file:
        before = fingerprint_of(file)
        check_sha256(path, entry, sha256_of(file))
        # Private pages that are not written to: torch would warn of an array that it may not write to.
        array = np.memmap(file, dtype, "c", shape=shape) if wanted else np.zeros(shape, dtype)
        if fingerprint_of(file) != before:
            raise changed(path)
    return np.asarray(array)
