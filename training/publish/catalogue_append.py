"""Appends to the catalogue of a published version: an overlay of items that are new, replaced or removed.

In: a version with a catalogue, a file of items (training/items.py), a file of ids to remove. Out: the next generation,
which names those below it. Its cost is that of what it brings: nothing below is encoded, hashed or copied, but for the
keys. Where it would be one overlay too many, the newest layers are merged into it. A layer is merged when those above
it have as many keys together, so that each item is copied a few times, not once an append.

Shapes: N items of a batch, J keys of the merged layers.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.artifact.artifact import Artifact, ArtifactError, hidden_folder
from model.artifact.catalogue import NewestKeys, folder_of, generations, opened_below, refuse_other_layers
from model.artifact.catalogue_layer import Layer, LayerKeys
from model.artifact.item_source import MOST_OVERLAYS, UNKNOWN, keys_of, rows_by_key
from model.artifact.signature import SigningKey
from model.scorer.scorer import Scorer
from training.items import ID, ItemFile
from training.publish.catalogue import checked_layer, one_writer, publish_layer
from training.publish.catalogue_files import Content, LayerWriter, Removed, source_of, write_layer

log = logging.getLogger(__name__)

_MERGED_ITEMS = 8192


class _Counts(NamedTuple):
    """Ids of an append: new to the catalogue, already in it, removed from it, and to be removed but not in it."""

    new: int
    replaced: int
    removed: int
    absent: int


def append_to_catalogue(
    version: Path, items: Path | None, removed: Path | None = None, sign_key: SigningKey | None = None
) -> Path:
    """Publish the next generation of a version's catalogue, with the items of one file and without the ids of another,
    signed if a key is given. Returns its folder, the newest one's where there is nothing to do.

    Raises ValueError as `build_catalogue` does, and where the version has no catalogue to append to, or items need
    sums in another dtype than its."""
    scorer = Scorer.load(version, engine="torchscript")
    family = folder_of(scorer.artifact)
    with one_writer(family), ExitStack() as stack:
        below = _layers(family, scorer.artifact)
        source = None if items is None else stack.enter_context(_opened(items, scorer))
        gone = None if removed is None else stack.enter_context(ItemFile.opened(removed, [], scorer.encoder.dtype))
        removal, absent = (None, 0) if gone is None else _to_remove(gone, below)
        if absent:
            log.warning("%s: ids to remove that are not in the catalogue: %d", removed, absent)
        if source is None and removal is None:
            return family / str(below[-1].manifest.generation)
        if source is not None:
            source.refuse_absent()
        folder = stack.enter_context(hidden_folder(family))
        dtype = below[-1].manifest.sums_dtype
        content = write_layer(scorer, folder, dtype, source, removal, below[-1])
        layer, fault = checked_layer(scorer, folder, content)
        if fault is not None:
            raise ValueError(
                f"{items}: sums in {dtype}, as the catalogue has them, do not answer as the items' features do "
                f"({fault}); build the catalogue again of all items"
            )
        for file in (source, gone):
            if file is not None:
                file.refuse_changed()
        _refuse_collisions(family, layer, below)
        counts = _counted(layer, below, absent)
        first = first_merged([len(one.rows_J) for one in (*below, layer)])
        if first < len(below):
            merged = stack.enter_context(hidden_folder(family))
            folders = [family / str(one.manifest.generation) for one in below[first:]]
            content = _merge(scorer, below[:first], folders, layer, merged)
            _, fault = checked_layer(scorer, merged, content)
            if fault is not None:
                raise ArtifactError(f"{family}: items that were merged do not answer as their features do: {fault}")
            folder = merged
        final = publish_layer(family, folder, content, sign_key)
    log.info(
        "published %s: items new %d, replaced %d, removed %d; overlays %d, items of the newest %d",
        final,
        counts.new,
        counts.replaced,
        counts.removed,
        len(content["layers"]),
        content["items"],
    )
    return final


def first_merged(keys: Sequence[int]) -> int:
    """The oldest layer that is merged into the newest, by the keys of each layer, the base's first. The newest itself
    where there are not too many."""
    first = len(keys) - 1
    if first <= MOST_OVERLAYS:
        return first
    total = keys[first]
    while first > 0 and (first == len(keys) - 1 or keys[first - 1] <= total):
        first -= 1
        total += keys[first]
    return first


def _layers(family: Path, artifact: Artifact) -> list[LayerKeys]:
    """The keys of the newest generation and of those below, base first. Raises ValueError."""
    published = generations(family)
    if not published:
        raise ValueError(f"{family}: has no catalogue to append to; build one without --append")
    place = family / str(published[-1])
    newest = LayerKeys.open(place, artifact)
    layers = [opened_below(LayerKeys, place, name, artifact) for name in newest.manifest.layers]
    layers.append(newest)
    refuse_other_layers(place, layers)
    return layers


def _opened(items: Path, scorer: Scorer) -> Any:
    return ItemFile.opened(items, scorer.encoder.schema.requested("candidate"), scorer.encoder.dtype)


def _to_remove(file: ItemFile, below: Sequence[LayerKeys]) -> tuple[Removed | None, int]:
    """The ids of a file that the catalogue has, None without any, and how many it does not have."""
    if file.absent:
        raise ValueError(f"{file.path}: no column {ID!r}; it names the items to remove")
    ids = list(dict.fromkeys(one for batch in file.batches(65_536) for one in batch.ids))
    is_there_N = _are_there(keys_of(ids), below)
    found = [one for one, is_there in zip(ids, is_there_N.tolist(), strict=True) if is_there]
    removed = Removed(found, source_of(file, removes=True)) if found else None
    return removed, len(ids) - len(found)


def _are_there(keys_2N: NDArray[np.uint64], layers: Sequence[LayerKeys]) -> NDArray[np.bool_]:
    """True for the keys that layers have, by the newest one that says anything of them."""
    is_there_N: NDArray[np.bool_] = rows_by_key(layers[0].keys_2J, layers[0].rows_J, keys_2N) != UNKNOWN
    if len(layers) > 1:
        newest = NewestKeys.of(layers[1:])
        everything_J = np.arange(len(newest.row_J))
        place_N = rows_by_key(newest.keys_2J, everything_J, keys_2N)
        is_there_N = np.where(place_N == UNKNOWN, is_there_N, newest.row_J[place_N] != UNKNOWN)
    return is_there_N


def _refuse_collisions(family: Path, layer: LayerKeys, below: Sequence[LayerKeys]) -> None:
    """Raise ValueError where half of an id's hash is another id's of a layer below, by which it would hide it."""
    keys_2J = layer.keys_2J
    for other in below:
        place_J = np.minimum(np.searchsorted(other.keys_2J[0], keys_2J[0]), len(other.rows_J) - 1)
        if ((other.keys_2J[0][place_J] == keys_2J[0]) & (other.keys_2J[1][place_J] != keys_2J[1])).any():
            raise ValueError(
                f"{family}: an id that is appended has the hash of another one, of generation "
                f"{other.manifest.generation}; rename the item"
            )


def _counted(layer: LayerKeys, below: Sequence[LayerKeys], absent: int) -> _Counts:
    is_item_J = layer.rows_J != UNKNOWN
    replaced = int(np.count_nonzero(_are_there(layer.keys_2J[:, is_item_J], below)))
    items = int(np.count_nonzero(is_item_J))
    return _Counts(items - replaced, replaced, len(is_item_J) - items, absent)


def _merge(
    scorer: Scorer, kept: Sequence[LayerKeys], merged: Sequence[Path], newest: Layer, folder: Path
) -> dict[str, Any]:
    """Write the layer of the generations `merged` and of `newest`, above `kept`, and return its manifest's content. A
    new base names no id that is removed."""
    layers = [*(Layer.open(path, scorer.artifact) for path in merged), newest]
    keys = NewestKeys.of(layers)
    row_J = np.full(len(keys.row_J), UNKNOWN, np.int64)
    num_items = 0
    with LayerWriter(folder, newest.manifest.ids_dtype, newest.manifest.sums_dtype) as writer:
        for number, layer in enumerate(layers):
            mine_J = np.flatnonzero((keys.layer_J == number) & (keys.row_J != UNKNOWN))
            mine_J = mine_J[np.argsort(keys.row_J[mine_J])]
            row_J[mine_J] = num_items + np.arange(len(mine_J))
            num_items += len(mine_J)
            for start in range(0, len(mine_J), _MERGED_ITEMS):
                writer.add(layer.items(keys.row_J[mine_J[start : start + _MERGED_ITEMS]]))
        is_said_J = row_J != UNKNOWN if not kept else np.ones(len(row_J), np.bool_)
        if not is_said_J.any():
            raise ValueError(f"{merged[0].parent}: nothing would be left of the catalogue; build it again")
        missing: Counter[str] = Counter()
        oov: Counter[str] = Counter()
        for layer in layers:
            missing.update(layer.manifest.missing)
            oov.update(layer.manifest.oov)
        content = Content(
            missing,
            oov,
            [source for layer in layers for source in layer.manifest.sources],
            [one.manifest.as_layer() for one in kept],
        )
        return writer.finish(scorer, keys.keys_2J[:, is_said_J], row_J[is_said_J], content, newest.manifest.widths)
