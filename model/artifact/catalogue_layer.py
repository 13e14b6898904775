"""A layer of a catalogue: the items that one build or one append wrote, encoded, in the folder of its generation.

In: `<models>/<name>/derived/<version>/catalogue/<generation>/`, published by training.publish for this very version,
checksums and all. Out: `Layer`: rows -> encoded features, sums and raw values, all memory-mapped. A *base* has no layer
below it. An *overlay* names the generations below it, base first, each by its number and its manifest's checksum.

Ids are found by the XXH3-128 hash of their UTF-8 bytes: 16 bytes an item, sorted, no string kept. An id that an overlay
removes has a key whose row is UNKNOWN.

Shapes: I items of the layer, J keys (items, then what is removed), N items of a request, K single-id features, L list
features, V list values, Q numbers, F outputs over the raw row (model/export/scoring_network.py).
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

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
)
from model.artifact.item_source import UNKNOWN
from model.features.distinct import places
from model.features.encoder import EncodedBlock
from model.features.kinds.columns import Ids
from model.schema import FeedSchema
from model.strict_yaml import StrictModel
from model.untrusted_files import changed, fingerprint_of, sha256_of

FORMAT_VERSION = 3
SumsDtype = Literal["bfloat16", "float32"]
# Rows of tables fit int32. Pairs of rows, of tables with two hashes (model/features/id_lookup.py), need int64.
IdsDtype = Literal["int32", "int64"]
KEYS, ROWS = "keys.bin", "rows.bin"


class Widths(StrictModel):
    """Columns of a layer's arrays: single ids, lists, numbers and sums of an item, and list values of all items."""

    ids: int
    lists: int
    numbers: int
    sums: int
    list_values: int

    def of_an_item(self) -> tuple[int, int, int, int]:
        """The widths that all layers of a catalogue share."""
        return self.ids, self.lists, self.numbers, self.sums


class LayerName(StrictModel):
    """A generation by its number and the checksum of its manifest."""

    generation: int
    checksum: str


class Source(StrictModel):
    """A file that a layer was made of: items, or ids to remove (`removes`). The path is absolute."""

    path: str
    sha256: str
    removes: bool


class CatalogueManifest(DerivedManifest):
    """A generation's manifest. `layers` are the generations below, base first. `sources` are the files of its own
    layer, oldest first, which a join needs. `missing` and `oov` count, by feature, items without a value and ids that
    are not in their table, as the files had them."""

    kind: Literal["catalogue"]
    generation: int
    layers: list[LayerName]
    sources: list[Source]
    items: int
    removed: int
    widths: Widths
    sums_dtype: SumsDtype
    ids_dtype: IdsDtype
    missing: dict[str, int]
    oov: dict[str, int]

    def as_layer(self) -> LayerName:
        """This generation, as those above name it."""
        return LayerName(generation=self.generation, checksum=self.checksum)


def layout(
    items: int, removed: int, widths: Widths, sums_dtype: SumsDtype, ids_dtype: IdsDtype
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every file of a layer: its dtype and shape, little-endian and row by row."""
    ids = np.dtype(ids_dtype).newbyteorder("<").str
    return {
        KEYS: ("<u8", (2, items + removed)),  # halves of the ids' hashes, ascending by the first
        ROWS: ("<i8", (items + removed,)),  # the row of the item behind each key
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


class ItemRows(NamedTuple):
    """Items as a layer stores them: encoded features, sums_NF, and raw values."""

    block: EncodedBlock
    sums_NF: Tensor
    words_NK: NDArray[np.int64]
    has_id_NK: NDArray[np.bool_]
    raw_numbers_NQ: NDArray[np.float64]


class LayerKeys:
    """The keys of a verified layer, mapped: enough to know which ids it has."""

    def __init__(self, manifest: CatalogueManifest, arrays: dict[str, NDArray[Any]]) -> None:
        self.manifest = manifest
        self.keys_2J, self.rows_J = arrays[KEYS], arrays[ROWS]

    @classmethod
    def open(cls, path: Path, artifact: Artifact) -> Self:
        """Verify the manifest and map the files of this class. Raises ArtifactError: damaged, made for another model
        version, or not signed where the version has to be."""
        return cls._mapped_from(path, artifact, (KEYS, ROWS))

    @classmethod
    def _mapped_from(cls, path: Path, artifact: Artifact, names: Collection[str] | None) -> Self:
        """`names` are the files to map, all for None."""
        manifest = _read_manifest(path, artifact)
        files = layout(manifest.items, manifest.removed, manifest.widths, manifest.sums_dtype, manifest.ids_dtype)
        arrays = {
            name: _mapped(path / name, manifest, *file)
            for name, file in files.items()
            if names is None or name in names
        }
        keys_J, rows_J = arrays[KEYS][0], arrays[ROWS]
        if (keys_J[1:] <= keys_J[:-1]).any():
            raise ArtifactError(f"{path / KEYS}: the keys do not ascend")
        lowest = UNKNOWN if manifest.removed else 0
        if rows_J.min() < lowest or rows_J.max() >= manifest.items:
            raise ArtifactError(f"{path / ROWS}: has rows beyond the {manifest.items} items of the layer")
        return cls(manifest, arrays)


class Layer(LayerKeys):
    """One verified layer, mapped. Reading is safe from several threads. A folder that is deleted stays until the last
    reader lets go."""

    def __init__(self, manifest: CatalogueManifest, arrays: dict[str, NDArray[Any]]) -> None:
        super().__init__(manifest, arrays)
        self.ids_IK = arrays["ids.bin"]
        self.starts_IL, self.lengths_IL = arrays["list_starts.bin"], arrays["list_lengths.bin"]
        self.values_V = arrays["list_values.bin"]
        self.numbers_IQ = arrays["numbers.bin"]
        self.words_IK, self.has_id_IK = arrays["words.bin"], arrays["has_id.bin"]
        self.raw_numbers_IQ = arrays["raw_numbers.bin"]
        self._sums_IF = torch.from_numpy(arrays["sums.bin"]).view(getattr(torch, manifest.sums_dtype))
        self.row_of_sums_I = rows_of_sums(self._sums_IF)

    @classmethod
    def open(cls, path: Path, artifact: Artifact) -> Self:
        return cls._mapped_from(path, artifact, None)

    def some_rows(self, count: int) -> Ids:
        """`count` rows, evenly spread, all where there are fewer."""
        items = self.manifest.items
        return np.unique(np.linspace(0, max(items - 1, 0), count).astype(np.int64))[:items]

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

    def items(self, rows_N: Ids) -> ItemRows:
        """All that is stored of items."""
        return ItemRows(
            self.block(rows_N),
            self.sums(rows_N),
            self.words_IK[rows_N],
            self.has_id_IK[rows_N],
            self.raw_numbers_IQ[rows_N],
        )


def rows_of_sums(sums_NF: Tensor) -> NDArray[np.void]:
    """row_N: the bytes of each row of sums, of the same memory. numpy copies them whole, numbers one by one, and it has
    no bfloat16."""
    words_NF = (sums_NF.view(torch.int16) if sums_NF.dtype == torch.bfloat16 else sums_NF).numpy()
    return words_NF.view(f"V{words_NF.shape[1] * words_NF.itemsize}").reshape(len(words_NF))


def _read_manifest(path: Path, artifact: Artifact) -> CatalogueManifest:
    remedy = f", whose features may mean something else; build it again for {artifact.manifest.name} {artifact.version}"
    manifest = read_derived_manifest(CatalogueManifest, path, FORMAT_VERSION, artifact, remedy)
    if path.name.isdecimal() and path.name != str(manifest.generation):
        raise ArtifactError(f"{path}: the manifest says generation {manifest.generation}; the folder was renamed")
    counts = (manifest.items, manifest.removed, *manifest.widths.model_dump().values())
    if min(counts) < 0 or not manifest.items + manifest.removed or (manifest.removed and not manifest.layers):
        raise ArtifactError(
            f"{path}: the manifest counts {manifest.items} items, {manifest.removed} removed and {manifest.widths}"
        )
    return manifest


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
