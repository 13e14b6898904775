"""Builds the candidate catalogue of a published version: `<models>/<name>/derived/<version>/catalogue/<generation>/`.

In: a version and a file of items (training/items.py) with every candidate feature. Out: the next generation, made
visible by one rename, beside the ones that readers use. The oldest are removed, all but their manifests. Everything
comes from the version itself, so items are refreshed without a new model. Items are read and written batch by batch: of
the whole file no more than the ids' hashes is kept.

Shapes: N items of a batch, I items in all, B rows of a block, K single-id features, L list features, V list values, Q
numbers, F outputs over the raw row.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.artifact.artifact import MANIFEST, file_entry, hidden_folder, seal, sync, write_manifest
from model.artifact.catalogue import (
    FORMAT_VERSION,
    Catalogue,
    SumsDtype,
    Widths,
    folder_of,
    generations,
    ids_dtype_of,
    layout,
)
from model.artifact.item_source import REMOVED, keys_of
from model.artifact.signature import SigningKey
from model.features.block import block_inputs
from model.features.raw_values import words_of
from model.scorer.scorer import COMPILED_TOLERANCE, Scorer
from training.files import replace_file
from training.items import ID, ItemFile
from training.progress_bar import progress_bar
from training.publish.sign import sign

log = logging.getLogger(__name__)

BATCH_ITEMS = 2048
# Enough to find out whether this network bears sums in bfloat16.
CHECKED_ITEMS = 1000
# The newest one, and the one before it: a reader that is just opening that one finds all its files.
KEPT_GENERATIONS = 2


# Written batch by batch, as model.artifact.catalogue.layout has them.
_BY_BATCH = (
    *("ids.bin", "list_starts.bin", "list_lengths.bin", "list_values.bin", "numbers.bin", "sums.bin"),
    *("words.bin", "has_id.bin", "raw_numbers.bin"),
)


def build_catalogue(version: Path, items: Path, sign_key: SigningKey | None = None) -> Path:
    """Publish the next generation of a version's catalogue, signed if a key is given, and return its folder.

    Raises ValueError for items that do not fit the version's schema, an id that two items have, or a full disk."""
    torch.set_num_threads(1)
    scorer = Scorer.load(version, engine="torchscript")
    family = folder_of(scorer.artifact)
    features = scorer.encoder.schema.requested("candidate")
    with ItemFile.opened(items, features, scorer.encoder.dtype) as source, hidden_folder(family) as folder:
        source.refuse_absent()
        manifest = _write_checked(scorer, source, folder)
        source.refuse_changed()
        final = family / str(max(generations(family), default=0) + 1)
        write_manifest(folder, {**manifest, "generation": int(final.name)})
        if sign_key is not None:
            sign(folder, sign_key)
        seal(folder)
        folder.rename(final)  # over the generation of a faster build this fails, for that folder is not empty
        sync(family)
    for old in generations(family)[:-KEPT_GENERATIONS]:
        _remove(family, old)
    size = sum(entry["size_bytes"] for entry in manifest["files"].values())
    log.info(
        "published %s: %d items, sums in %s, %.1f MB mapped and shared by all workers, %.1f MB per 100,000 items",
        final,
        source.count,
        manifest["sums_dtype"],
        size / 1e6,
        size / source.count / 10,
    )
    return final


def _remove(family: Path, generation: int) -> None:
    """Remove a generation. Its manifest stays: a join asks it for the item file."""
    folder = family / str(generation)
    with suppress(FileNotFoundError):  # another build removes it too
        replace_file(family / REMOVED / f"{generation}.json", [(folder / MANIFEST).read_bytes()])
    shutil.rmtree(folder, ignore_errors=True)


def _write_checked(scorer: Scorer, source: ItemFile, folder: Path) -> dict[str, Any]:
    """Write all files and return the manifest's content, sums in bfloat16 where the scores stay the same by them."""
    picked_N = np.unique(np.linspace(0, source.count - 1, CHECKED_ITEMS).astype(np.int64))
    dtypes: tuple[SumsDtype, SumsDtype] = ("bfloat16", "float32")
    for dtype in dtypes:
        content = _write(scorer, source, folder, dtype)
        write_manifest(folder, {**content, "generation": 0})
        catalogue = Catalogue.open(folder, scorer.artifact)
        # Half of what a reader allows for: it never refuses what was published, even where its CPU rounds otherwise.
        fault = scorer.sums_fault(catalogue.block(picked_N), catalogue.sums(picked_N), COMPILED_TOLERANCE / 2)
        if fault is None:
            return content
        log.warning("sums in %s are left out: %s", dtype, fault)
    raise ValueError(f"{scorer.artifact.path}: sums of items do not answer as their features do; nothing was published")


def _write(scorer: Scorer, source: ItemFile, folder: Path, sums_dtype: SumsDtype) -> dict[str, Any]:
    module = scorer.module
    ids_dtype = ids_dtype_of(scorer.encoder.schema)
    inputs = block_inputs(scorer.encoder.schema, "candidate")
    missing: Counter[str] = Counter()
    oov: Counter[str] = Counter()
    keys: list[NDArray[np.uint64]] = []
    num_values = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in _BY_BATCH}
        bar = stack.enter_context(progress_bar())
        task = bar.add_task(f"items, sums in {sums_dtype}", total=source.count)
        for batch in source.batches(BATCH_ITEMS):
            encoded = scorer.encoder.encode("candidate", batch.columns, len(batch.ids), as_served=True)
            missing.update(encoded.missing)
            oov.update(encoded.oov)
            keys.append(keys_of(batch.ids))
            block = encoded.block
            lengths = block.list_lengths_LB.reshape(-1)
            starts_LB = (num_values + np.cumsum(lengths) - lengths).reshape(block.list_lengths_LB.shape)
            num_values += len(block.list_values_V)
            with torch.inference_mode():
                sums_NF = module.candidate_sums(scorer.candidate_rows(block))
            files["ids.bin"].write(block.ids_BK.astype(ids_dtype).tobytes())
            files["list_starts.bin"].write(starts_LB.T.astype("<i8").tobytes())
            files["list_lengths.bin"].write(block.list_lengths_LB.T.astype("<i4").tobytes())
            files["list_values.bin"].write(block.list_values_V.astype(ids_dtype).tobytes())
            files["numbers.bin"].write(block.numbers_BQ.astype("<f4").tobytes())
            files["sums.bin"].write(_rounded(sums_NF, sums_dtype))
            words = [words_of(batch.columns.get(name), len(batch.ids)) for name in inputs.ids]
            files["words.bin"].write(_side_by_side([one.word_B for one in words], "<i8"))
            files["has_id.bin"].write(_side_by_side([one.has_id_B for one in words], "|b1"))
            raw = [one.raw(batch.columns[one.feature]) for one in inputs.numbers]
            files["raw_numbers.bin"].write(_side_by_side(raw, "<f8"))
            bar.advance(task, len(batch.ids))
    keys_2I = np.concatenate(keys, axis=1)
    order_I = np.argsort(keys_2I[0], kind="stable")
    keys_2I = keys_2I[:, order_I]
    if len(twins := np.flatnonzero(keys_2I[0, 1:] == keys_2I[0, :-1])):
        one, other = (source.id_at(int(order_I[twins[0] + position])) for position in (0, 1))
        raise ValueError(f"{source.path}: column '{ID}': {one} and {other} are the same; keep one row for each item")
    (folder / "keys.bin").write_bytes(keys_2I.astype("<u8").tobytes())
    (folder / "rows.bin").write_bytes(order_I.astype("<i8").tobytes())
    widths = Widths(
        ids=block.ids_BK.shape[1],
        lists=len(block.list_lengths_LB),
        numbers=block.numbers_BQ.shape[1],
        sums=sums_NF.shape[1],
        list_values=num_values,
    )
    return {
        "format_version": FORMAT_VERSION,
        "kind": "catalogue",
        "name": scorer.manifest.name,
        "version": scorer.manifest.version,
        "parent": scorer.manifest.checksum,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": source.path.name,
        "source_path": os.path.abspath(source.path),
        "source_sha256": source.sha256,
        "items": source.count,
        "widths": widths.model_dump(),
        "sums_dtype": sums_dtype,
        "ids_dtype": ids_dtype,
        "missing": dict(missing),
        "oov": dict(oov),
        "files": {name: file_entry(folder / name) for name in layout(source.count, widths, sums_dtype, ids_dtype)},
    }


def _side_by_side(columns: Sequence[NDArray[Any]], dtype: str) -> bytes:
    """Columns as the rows of a file."""
    return np.stack(columns, axis=1).astype(dtype).tobytes() if columns else b""


def _rounded(sums_NF: torch.Tensor, dtype: SumsDtype) -> bytes:
    if dtype == "float32":
        return sums_NF.numpy().astype("<f4").tobytes()
    return sums_NF.to(torch.bfloat16).view(torch.uint16).numpy().astype("<u2").tobytes()
