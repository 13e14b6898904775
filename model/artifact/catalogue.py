"""The candidate catalogue of a model version: items by id, encoded, with what their columns add to the first layers.

In: a generation and the generations that it names below it (model/artifact/catalogue_layer.py): a base, and overlays
of items that were added, replaced or removed since. Out: `Catalogue`: ids of a request -> rows of items, rows ->
encoded features or sums. The newest layer that has an id decides. Workers share what is mapped. Memory of its own has
48 bytes at most for each key of an overlay, and some megabytes: 2**_PREFIX_BITS and _COPIED_BYTES of sums.

Rows are numbered through all layers, the base's first.

Shapes: N candidates, J keys of all overlays, M overlays and one, I items, K single-id features, L list features, V list
values, Q numbers, F outputs over the raw row.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.artifact.artifact import Artifact, ArtifactError, versions
from model.artifact.catalogue_layer import Layer, LayerKeys, LayerName, rows_of_sums
from model.artifact.item_source import MOST_OVERLAYS, UNKNOWN, keys_of, rows_by_key
from model.features.distinct import places
from model.features.encoder import EncodedBlock
from model.features.kinds.columns import Ids
from model.features.raw_values import Words

# Sums of overlays up to so many bytes are kept side by side too: to gather from each of eight layers takes as long as a
# hundred items of the base.
_COPIED_BYTES = 2**25
# Four megabytes of a worker's own.
_PREFIX_BITS = 22
_NOWHERE: NDArray[np.intp] = np.empty(0, np.intp)

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


class _Overlays:
    """Overlays of a base of `base_rows` items and `base_values` list values, oldest first: the newest row of each key,
    and side by side what is small of an item. Of many items the sums, which are large, stay mapped in their layers."""

    def __init__(self, layers: Sequence[Layer], base_rows: int, base_values: int) -> None:
        self.layers = layers
        newest = NewestKeys.of(layers)
        counts = [layer.manifest.items for layer in layers]
        # The number of each layer's first row, and of the row behind the last.
        self.starts_M = base_rows + np.cumsum([0, *counts])
        self.keys_2J = newest.keys_2J
        self._places_J = np.arange(len(newest.row_J))
        # By the first bits of a key whether any key begins so: a search costs more than that. Few keys have so many
        # bits that hardly a request needs one.
        num_keys = len(newest.row_J)
        bits = max((8 * num_keys - 1).bit_length(), min((512 * num_keys - 1).bit_length(), _PREFIX_BITS))
        self._shift = np.uint64(64 - bits)
        self._has_prefix = np.zeros(2**bits, np.bool_)
        self._has_prefix[(self.keys_2J[0] >> self._shift).view(np.int64)] = True
        self.rows_J = np.where(newest.row_J == UNKNOWN, UNKNOWN, newest.row_J + self.starts_M[newest.layer_J])
        self.ids_IK = np.concatenate([layer.ids_IK for layer in layers])
        self.lengths_IL = np.concatenate([layer.lengths_IL for layer in layers])
        self.numbers_IQ = np.concatenate([layer.numbers_IQ for layer in layers])
        sums = [layer.row_of_sums_I for layer in layers]
        is_small = sum(row_I.nbytes for row_I in sums) <= _COPIED_BYTES
        self.row_of_sums_I = np.concatenate(sums) if is_small else None
        self.values_V = np.concatenate([layer.values_V for layer in layers])
        before = base_values + np.cumsum([0, *(len(layer.values_V) for layer in layers)])
        self.starts_IL = np.concatenate(
            [layer.starts_IL + start for layer, start in zip(layers, before[:-1].tolist(), strict=True)]
        )

    def take_over(self, rows_N: Ids, keys_2N: NDArray[np.uint64]) -> None:
        """Write the rows of the keys that an overlay has into `rows_N`."""
        # Few, of those that no overlay has: one in eight at most, and hardly any where overlays are small.
        maybe = np.flatnonzero(self._has_prefix[(keys_2N[0] >> self._shift).view(np.int64)])
        if len(maybe):
            places = rows_by_key(self.keys_2J, self._places_J, keys_2N[:, maybe])
            found = places != UNKNOWN
            rows_N[maybe[found]] = self.rows_J[places[found]]

    def by_layer(self, rows_N: Ids) -> list[tuple[Layer, NDArray[np.intp], Ids]]:
        """Of each layer that has some of the items, their places and its own rows."""
        place_N = np.flatnonzero(rows_N >= self.starts_M[0])
        rows = rows_N[place_N]
        order = np.argsort(rows)
        rows, place_N = rows[order], place_N[order]
        ends = np.searchsorted(rows, self.starts_M).tolist()
        parts = []
        for number, (begin, end) in enumerate(pairwise(ends)):
            if begin < end:
                parts.append((self.layers[number], place_N[begin:end], rows[begin:end] - self.starts_M[number]))
        return parts


class Catalogue:
    """Verified layers, base first, mapped. Reading is safe from several threads."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.manifest = layers[-1].manifest
        self._base = layers[0]
        base = layers[0].manifest
        self._overlays = _Overlays(layers[1:], base.items, len(layers[0].values_V)) if len(layers) > 1 else None
        self.items = base.items
        if self._overlays is not None:
            is_there_J = self._overlays.rows_J != UNKNOWN
            is_below_J = rows_by_key(self._base.keys_2J, self._base.rows_J, self._overlays.keys_2J) != UNKNOWN
            self.items += int(np.count_nonzero(is_there_J & ~is_below_J))
            self.items -= int(np.count_nonzero(~is_there_J & is_below_J))

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
            self._overlays.take_over(rows_N, keys_2N)
        return rows_N

    def some_rows(self, count: int, besides: "Catalogue | None" = None) -> Ids:
        """`count` rows of every layer that `besides` does not have, evenly spread, all where it has fewer."""
        checked = () if besides is None else besides.layers
        starts = [0] if self._overlays is None else [0, *self._overlays.starts_M[:-1].tolist()]
        rows = [
            start + layer.some_rows(count)
            for start, layer in zip(starts, self.layers, strict=True)
            if layer not in checked
        ]
        return np.concatenate([np.empty(0, np.int64), *rows])

    def block(self, rows_N: Ids) -> EncodedBlock:
        """The encoded features of items, as `FeatureEncoder.encode` makes them."""
        base, overlays = self._base, self._overlays
        base_N, at, own = self._of_overlays(rows_N)
        if overlays is None or not len(at):
            return base.block(rows_N)

        def taken(of_base: NDArray[Any], of_overlays: NDArray[Any]) -> NDArray[Any]:
            values_N = of_base[base_N]
            values_N[at] = of_overlays[own]
            return values_N

        lengths_LN = taken(base.lengths_IL, overlays.lengths_IL).T.astype(np.int64)
        positions_V = places(taken(base.starts_IL, overlays.starts_IL).T, lengths_LN)
        is_base_V = positions_V < len(base.values_V)
        values_V = np.empty(len(positions_V), np.int64)
        values_V[is_base_V] = base.values_V[positions_V[is_base_V]]
        values_V[~is_base_V] = overlays.values_V[positions_V[~is_base_V] - len(base.values_V)]
        return EncodedBlock(
            ids_BK=taken(base.ids_IK, overlays.ids_IK).astype(np.int64),
            list_values_V=values_V,
            list_lengths_LB=lengths_LN,
            numbers_BQ=taken(base.numbers_IQ, overlays.numbers_IQ),
        )

    def sums(self, rows_N: Ids) -> Tensor:
        """sums_NF of items in the dtype that they are stored in."""
        overlays = self._overlays
        if overlays is not None and overlays.row_of_sums_I is not None:
            base_N, at, own = self._of_overlays(rows_N)
            sums_NF = self._base.sums(base_N)
            if len(at):
                rows_of_sums(sums_NF)[at] = overlays.row_of_sums_I[own]
            return sums_NF
        base_N, parts = self._by_layer(rows_N)
        sums_NF = self._base.sums(base_N)
        row_N = rows_of_sums(sums_NF)
        for layer, place, own in parts:
            row_N[place] = layer.row_of_sums_I[own]
        return sums_NF

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
        base_N, parts = self._by_layer(np.maximum(rows_N, 0))
        values_N: NDArray[Any] = array(self._base)[base_N, column]
        for layer, place, own in parts:
            values_N[place] = array(layer)[own, column]
        return values_N

    def _of_overlays(self, rows_N: Ids) -> tuple[Ids, NDArray[np.intp], Ids]:
        """Rows of the base, any where an overlay has the item, the places of those, and their rows among all overlays'
        items."""
        if self._overlays is None:
            return rows_N, _NOWHERE, _NOWHERE
        start = self._overlays.starts_M[0]
        at = np.flatnonzero(rows_N >= start)
        if not len(at):
            return rows_N, at, _NOWHERE
        base_N, own = rows_N.copy(), rows_N[at] - start
        base_N[at] = 0  # any item: it is written over
        return base_N, at, own

    def _by_layer(self, rows_N: Ids) -> tuple[Ids, list[tuple[Layer, NDArray[np.intp], Ids]]]:
        """Rows of the base, any where an overlay has the item, and of each overlay that has some of the items their
        places and its own rows."""
        parts = [] if self._overlays is None else self._overlays.by_layer(rows_N)
        if not parts:
            return rows_N, parts
        assert self._overlays is not None
        return np.where(rows_N >= self._overlays.starts_M[0], 0, rows_N), parts


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
