"""The candidate catalogue of a model version: items by id, encoded, with what their columns add to the first layers.

In: a generation and the generations that it names below it (model/artifact/catalogue_layer.py): a base, and overlays
of items that were added, replaced or removed since. Out: `Catalogue`: ids of a request -> rows of items, rows ->
encoded features or sums. The newest layer that has an id decides. Workers share what is mapped. Memory of its own has
24 bytes for each key of an overlay.

Rows are numbered through all layers, the base's first.

Shapes: N candidates, J keys of all overlays, M layers, I items of a layer, K single-id features, Q numbers, F outputs
over the raw row.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artifact.artifact import Artifact, ArtifactError, versions
from model.artifact.catalogue_layer import Layer, LayerKeys, LayerName
from model.artifact.item_source import MOST_OVERLAYS, UNKNOWN, keys_of, rows_by_key
from model.features.distinct import picked, stacked
from model.features.encoder import EncodedBlock
from model.features.kinds.columns import Ids
from model.features.raw_values import Words

_Keys = TypeVar("_Keys", bound=LayerKeys)


def folder_of(artifact: Artifact) -> Path:
    """Folder of the generations of a version's catalogue, if there is one."""
    return artifact.path.parent / "derived" / artifact.version / "catalogue"


def generations(folder: Path) -> list[int]:
    """The published generations, ascending."""
    return versions(folder.parent, folder.name)


class NewestKeys(NamedTuple):
    """Keys of several layers, each once, ascending by their first half. `layer_J` is the newest layer that has it,
    counted from the first, `row_J` its row there, UNKNOWN where it is removed."""

    keys_2J: NDArray[np.uint64]
    layer_J: NDArray[np.intp]
    row_J: Ids

    @classmethod
    def of(cls, layers: Sequence[LayerKeys]) -> "NewestKeys":
        """The keys of layers, oldest first."""
        newest_first = list(enumerate(layers))[::-1]
        keys_2J = np.concatenate([layer.keys_2J for _, layer in newest_first], axis=1)
        layer_J = np.concatenate([np.full(len(layer.rows_J), number) for number, layer in newest_first])
        row_J = np.concatenate([layer.rows_J for _, layer in newest_first])
        # Stable, so that of equal keys the newest comes first.
        order_J = np.argsort(keys_2J[0], kind="stable")
        first_J = keys_2J[0, order_J]
        order_J = order_J[np.concatenate([[True], first_J[1:] != first_J[:-1]])]
        return cls(np.ascontiguousarray(keys_2J[:, order_J]), layer_J[order_J], row_J[order_J])


class Catalogue:
    """Verified layers, base first, mapped. Reading is safe from several threads."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.manifest = layers[-1].manifest
        self._base = layers[0]
        # The number of each layer's first row.
        self._starts_M = np.cumsum([0, *(layer.manifest.items for layer in layers[:-1])])
        self._overlays: tuple[NDArray[np.uint64], Ids] | None = None
        self.items = self._base.manifest.items
        if len(layers) > 1:
            newest = NewestKeys.of(layers[1:])
            is_removed_J = newest.row_J == UNKNOWN
            rows_J = np.where(is_removed_J, UNKNOWN, newest.row_J + self._starts_M[1:][newest.layer_J])
            self._overlays = (newest.keys_2J, rows_J)
            is_below_J = rows_by_key(self._base.keys_2J, self._base.rows_J, newest.keys_2J) != UNKNOWN
            self.items += int(np.count_nonzero(~is_removed_J & ~is_below_J))
            self.items -= int(np.count_nonzero(is_removed_J & is_below_J))

    @classmethod
    def open(cls, path: Path, artifact: Artifact, known: "Catalogue | None" = None) -> "Catalogue":
        """Verify and map a generation and those below it. Layers that `known` has are taken from it. Raises
        ArtifactError."""
        newest = Layer.open(path, artifact)
        below = len(newest.manifest.layers)
        if below > MOST_OVERLAYS:
            raise ArtifactError(f"{path}: stands on {below} generations, at most {MOST_OVERLAYS} are read")
        have = {layer.manifest.checksum: layer for layer in known.layers} if known is not None else {}
        layers: list[Layer] = []
        for name in newest.manifest.layers:
            layer = have.get(name.checksum)
            layers.append(opened_below(Layer, path, name, artifact) if layer is None else layer)
        refuse_other_layers(path, [*layers, newest])
        return cls([*layers, newest])

    def rows_of(self, ids: Sequence[str]) -> Ids:
        """rows_N: each id's item, UNKNOWN where there is none."""
        keys_2N = keys_of(ids)
        rows_N = rows_by_key(self._base.keys_2J, self._base.rows_J, keys_2N)
        if self._overlays is not None:
            keys_2J, rows_J = self._overlays
            place_N = np.minimum(np.searchsorted(keys_2J[0], keys_2N[0]), len(rows_J) - 1)
            # Few: only where half of the hash is equal the rest is looked at.
            found = np.flatnonzero(keys_2J[0][place_N] == keys_2N[0])
            found = found[keys_2J[1][place_N[found]] == keys_2N[1][found]]
            rows_N[found] = rows_J[place_N[found]]
        return rows_N

    def some_rows(self, count: int, besides: "Catalogue | None" = None) -> Ids:
        """`count` rows of every layer that `besides` does not have, evenly spread, all where it has fewer."""
        checked = () if besides is None else besides.layers
        rows = [
            start + layer.some_rows(count)
            for start, layer in zip(self._starts_M, self.layers, strict=True)
            if layer not in checked
        ]
        return np.concatenate([np.empty(0, np.int64), *rows])

    def block(self, rows_N: Ids) -> EncodedBlock:
        """The encoded features of items, as `FeatureEncoder.encode` makes them."""
        parts, place_N = self._by_layer(rows_N)
        blocks = [layer.block(own_N) for layer, own_N in parts]
        return blocks[0] if place_N is None else picked(stacked(*blocks), place_N)

    def sums(self, rows_N: Ids) -> Tensor:
        """sums_NF of items in the dtype that they are stored in."""
        parts, place_N = self._by_layer(rows_N)
        sums = [layer.sums(own_N) for layer, own_N in parts]
        return sums[0] if place_N is None else torch.cat(sums).index_select(0, torch.from_numpy(place_N))

    def ids(self, rows_N: Ids, feature: int) -> Ids:
        """id_N of items by one single-id feature, encoded. An UNKNOWN row gives any."""
        ids_N: Ids = self._values(rows_N, lambda layer: layer.ids_IK, feature).astype(np.int64)
        return ids_N

    def words(self, rows_N: Ids, feature: int) -> Words:
        """Words of items by one single-id feature. An UNKNOWN row gives any."""
        word_N = self._values(rows_N, lambda layer: layer.words_IK, feature)
        return Words(word_N, self._values(rows_N, lambda layer: layer.has_id_IK, feature))

    def raw_numbers(self, rows_N: Ids, number: int) -> NDArray[np.float64]:
        """number_N of items by one number feature. An UNKNOWN row gives any."""
        return self._values(rows_N, lambda layer: layer.raw_numbers_IQ, number)

    def _values(self, rows_N: Ids, array: Callable[[Layer], NDArray[Any]], column: int) -> NDArray[Any]:
        parts, place_N = self._by_layer(np.maximum(rows_N, 0))
        values = [array(layer)[own_N, column] for layer, own_N in parts]
        return values[0] if place_N is None else np.concatenate(values)[place_N]

    def _by_layer(self, rows_N: Ids) -> tuple[list[tuple[Layer, Ids]], NDArray[np.intp] | None]:
        """The layers that have the items, each with its own rows, and where among them each item is. None where one
        layer, asked in their order, has them all."""
        if self._overlays is None or not len(rows_N):
            return [(self._base, rows_N)], None
        layer_N = np.searchsorted(self._starts_M, rows_N, side="right") - 1
        low, high = int(layer_N.min()), int(layer_N.max())
        if low == high:
            return [(self.layers[low], rows_N - self._starts_M[low])], None
        order_N = np.argsort(layer_N, kind="stable")
        ends = np.searchsorted(layer_N[order_N], np.arange(low, high + 1), side="right")
        parts = []
        for number, rows in zip(range(low, high + 1), np.split(rows_N[order_N], ends[:-1]), strict=True):
            if len(rows):
                parts.append((self.layers[number], rows - self._starts_M[number]))
        place_N = np.empty_like(order_N)
        place_N[order_N] = np.arange(len(order_N))
        return parts, place_N


def opened_below(kind: type[_Keys], path: Path, name: LayerName, artifact: Artifact) -> _Keys:
    """A generation that `path` stands on. Raises ArtifactError."""
    try:
        return kind.open(path.parent / str(name.generation), artifact)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: stands on generation {name.generation}, which cannot be used: {error}") from None


def refuse_other_layers(path: Path, layers: Sequence[LayerKeys]) -> None:
    """Raise ArtifactError where `layers` are not those that each of them was written on, or differ in what an item
    has."""
    names = [layer.manifest.as_layer() for layer in layers]
    base = layers[0].manifest
    for number, layer in enumerate(layers):
        manifest = layer.manifest
        if manifest.layers != names[:number]:
            raise ArtifactError(
                f"{path}: generation {manifest.generation} was written on other generations than it stands on here; "
                "build the catalogue again"
            )
        if (manifest.widths.of_an_item(), manifest.sums_dtype, manifest.ids_dtype) != (
            base.widths.of_an_item(),
            base.sums_dtype,
            base.ids_dtype,
        ):
            raise ArtifactError(f"{path}: items of generation {manifest.generation} differ in width or dtype")
    if not base.items:
        raise ArtifactError(f"{path}: the base, generation {base.generation}, has no items")
