"""Files of a catalogue's layer, written batch by batch: items of a file as they are encoded, or items of other layers.

In: encoded items and their keys. Out: the files of model.artifact.catalogue_layer.layout and what a manifest says of
them. Of all items no more than the ids' hashes is kept.

Shapes: N items of a batch, J keys (items, then what is removed), B rows of a block, K single-id features, L list
features, V list values, Q numbers, F outputs over the raw row.
"""

from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model.artifact.artifact import file_entry
from model.artifact.catalogue_layer import (
    FORMAT_VERSION,
    KEYS,
    ROWS,
    IdsDtype,
    ItemRows,
    LayerKeys,
    LayerName,
    Source,
    SumsDtype,
    Widths,
    ids_dtype_of,
    layout,
)
from model.artifact.item_source import UNKNOWN, keys_of
from model.features.block import block_inputs
from model.features.raw_values import words_of
from model.scorer.scorer import Scorer
from training.items import ID, ItemBatch, ItemFile
from training.progress_bar import progress_bar

BATCH_ITEMS = 2048
# All files of a layer but the keys.
_BY_BATCH = (
    *("ids.bin", "list_starts.bin", "list_lengths.bin", "list_values.bin", "numbers.bin"),
    *("words.bin", "has_id.bin", "raw_numbers.bin", "sums.bin"),
)


class Content(NamedTuple):
    """A layer's part of its manifest: counts by feature, the files it was made of, the generations below."""

    missing: Counter[str]
    oov: Counter[str]
    sources: list[Source]
    layers: list[LayerName]


class LayerWriter:
    """The files of a layer in a folder."""

    def __init__(self, folder: Path, ids_dtype: IdsDtype, sums_dtype: SumsDtype) -> None:
        self._folder = folder
        self._ids_dtype, self._sums_dtype = ids_dtype, sums_dtype
        self._num_values = 0
        self._widths: Widths | None = None
        self._stack = ExitStack()
        self._files = {name: self._stack.enter_context((folder / name).open("wb")) for name in _BY_BATCH}

    def __enter__(self) -> "LayerWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, items: ItemRows) -> None:
        """Write items behind those before."""
        block, files = items.block, self._files
        lengths = block.list_lengths_LB.reshape(-1)
        starts_LB = (self._num_values + np.cumsum(lengths) - lengths).reshape(block.list_lengths_LB.shape)
        self._num_values += len(block.list_values_V)
        files["ids.bin"].write(block.ids_BK.astype(self._ids_dtype).tobytes())
        files["list_starts.bin"].write(starts_LB.T.astype("<i8").tobytes())
        files["list_lengths.bin"].write(block.list_lengths_LB.T.astype("<i4").tobytes())
        files["list_values.bin"].write(block.list_values_V.astype(self._ids_dtype).tobytes())
        files["numbers.bin"].write(block.numbers_BQ.astype("<f4").tobytes())
        files["sums.bin"].write(_rounded(items.sums_NF, self._sums_dtype))
        files["words.bin"].write(items.words_NK.astype("<i8").tobytes())
        files["has_id.bin"].write(items.has_id_NK.astype("|b1").tobytes())
        files["raw_numbers.bin"].write(items.raw_numbers_NQ.astype("<f8").tobytes())
        self._widths = widths_of(items)

    def finish(
        self,
        scorer: Scorer,
        keys_2J: NDArray[np.uint64],
        rows_J: NDArray[np.int64],
        content: Content,
        widths: Widths | None = None,
    ) -> dict[str, Any]:
        """Write the keys, which ascend, and return the manifest's content but for its generation. `widths` are those of
        a layer without items."""
        self._stack.close()
        widths = self._widths or widths
        assert widths is not None
        widths = widths.model_copy(update={"list_values": self._num_values})
        (self._folder / KEYS).write_bytes(keys_2J.astype("<u8").tobytes())
        (self._folder / ROWS).write_bytes(rows_J.astype("<i8").tobytes())
        removed = int(np.count_nonzero(rows_J == UNKNOWN))
        items = len(rows_J) - removed
        return {
            "format_version": FORMAT_VERSION,
            "kind": "catalogue",
            "name": scorer.manifest.name,
            "version": scorer.manifest.version,
            "parent": scorer.manifest.checksum,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "layers": [name.model_dump() for name in content.layers],
            "sources": [source.model_dump() for source in content.sources],
            "items": items,
            "removed": removed,
            "widths": widths.model_dump(),
            "sums_dtype": self._sums_dtype,
            "ids_dtype": self._ids_dtype,
            "missing": dict(content.missing),
            "oov": dict(content.oov),
            "files": {
                name: file_entry(self._folder / name)
                for name in layout(items, removed, widths, self._sums_dtype, self._ids_dtype)
            },
        }


def widths_of(items: ItemRows) -> Widths:
    """The widths of some items."""
    block = items.block
    return Widths(
        ids=block.ids_BK.shape[1],
        lists=len(block.list_lengths_LB),
        numbers=block.numbers_BQ.shape[1],
        sums=items.sums_NF.shape[1],
        list_values=len(block.list_values_V),
    )


class Removed(NamedTuple):
    """Ids to remove, each in the catalogue, and the file that named them."""

    ids: list[str]
    source: Source


def write_layer(
    scorer: Scorer,
    folder: Path,
    sums_dtype: SumsDtype,
    items: ItemFile | None,
    removed: Removed | None = None,
    below: LayerKeys | None = None,
) -> dict[str, Any]:
    """Write the layer of a file's items, and of ids to remove, above `below`, None for a base. Returns its manifest's
    content. Raises ValueError for ids that are there twice."""
    missing: Counter[str] = Counter()
    oov: Counter[str] = Counter()
    keys: list[NDArray[np.uint64]] = []
    with LayerWriter(folder, ids_dtype_of(scorer.encoder.schema), sums_dtype) as writer:
        if items is not None:
            with progress_bar() as bar:
                task = bar.add_task(f"items, sums in {sums_dtype}", total=items.count)
                for batch in items.batches(BATCH_ITEMS):
                    encoded = scorer.encoder.encode("candidate", batch.columns, len(batch.ids), as_served=True)
                    missing.update(encoded.missing)
                    oov.update(encoded.oov)
                    keys.append(keys_of(batch.ids))
                    with torch.inference_mode():
                        sums_NF = scorer.module.candidate_sums(scorer.candidate_rows(encoded.block))
                    writer.add(ItemRows(encoded.block, sums_NF, *_raw_values(scorer, batch)))
                    bar.advance(task, len(batch.ids))
        num_items = sum(keys_2N.shape[1] for keys_2N in keys)
        if removed is not None:
            keys.append(keys_of(removed.ids))
        keys_2J = np.concatenate(keys, axis=1)
        order_J = np.argsort(keys_2J[0], kind="stable")
        keys_2J = keys_2J[:, order_J]
        if len(twins := np.flatnonzero(keys_2J[0, 1:] == keys_2J[0, :-1])):
            _refuse_twins(items, removed, num_items, [int(order_J[twins[0] + position]) for position in (0, 1)])
        sources = [] if items is None else [source_of(items, removes=False)]
        layers = [] if below is None else [*below.manifest.layers, below.manifest.as_layer()]
        content = Content(missing, oov, [*([] if removed is None else [removed.source]), *sources], layers)
        rows_J = np.where(order_J < num_items, order_J, UNKNOWN)
        return writer.finish(scorer, keys_2J, rows_J, content, None if below is None else below.manifest.widths)


def source_of(items: ItemFile, *, removes: bool) -> Source:
    """A file as a manifest names it."""
    return Source(path=str(items.path.absolute()), sha256=items.sha256, removes=removes)


def _refuse_twins(items: ItemFile | None, removed: Removed | None, num_items: int, pair: list[int]) -> None:
    """Raise ValueError for two keys that are the same, by their numbers in a layer."""
    one, other = pair
    if items is None or one >= num_items:
        assert removed is not None
        both = " and ".join(repr(removed.ids[number - num_items]) for number in pair)
        raise ValueError(f"{removed.source.path}: column '{ID}': {both} have one hash; remove them one after the other")
    if other >= num_items:
        assert removed is not None
        raise ValueError(
            f"{items.path}: column '{ID}': {items.id_at(one)} is also to be removed by {removed.source.path}; leave it "
            "out of one of them"
        )
    raise ValueError(
        f"{items.path}: column '{ID}': {items.id_at(one)} and {items.id_at(other)} are the same; keep one row for each "
        "item"
    )


def _raw_values(scorer: Scorer, batch: ItemBatch) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """words_NK, has_id_NK and raw_numbers_NQ of items."""
    inputs, rows = block_inputs(scorer.encoder.schema, "candidate"), len(batch.ids)
    words = [words_of(batch.columns.get(name), rows) for name in inputs.ids]
    raw = [one.raw(batch.columns[one.feature]) for one in inputs.numbers]
    return (
        np.stack([one.word_B for one in words], axis=1) if words else np.zeros((rows, 0), np.int64),
        np.stack([one.has_id_B for one in words], axis=1) if words else np.zeros((rows, 0), np.bool_),
        np.stack(raw, axis=1) if raw else np.zeros((rows, 0), np.float64),
    )


def _rounded(sums_NF: torch.Tensor, dtype: SumsDtype) -> bytes:
    if dtype == "float32":
        return sums_NF.numpy().astype("<f4").tobytes()
    return sums_NF.to(torch.bfloat16).view(torch.uint16).numpy().astype("<u2").tobytes()
