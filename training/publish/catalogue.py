"""Builds the candidate catalogue of a published version: `<models>/<name>/derived/<version>/catalogue/<generation>/`.

In: a version and a file of items (training/items.py) with every candidate feature. Out: the next generation, made
visible by one rename, beside the ones that readers use. The oldest are removed, all but their manifests and what newer
ones stand on (training/publish/catalogue_append.py). Everything comes from the version itself, so items are refreshed
without a new model. One job at a time writes.

Shapes: N items of a batch.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from model.artifact.artifact import MANIFEST, hidden_folder, seal, sync, write_manifest
from model.artifact.catalogue import folder_of, generations
from model.artifact.catalogue_layer import Layer, SumsDtype
from model.artifact.item_source import REMOVED, layers_below
from model.artifact.signature import SigningKey
from model.scorer.scorer import COMPILED_TOLERANCE, Scorer
from training.files import lock_file, replace_file
from training.items import ItemFile
from training.publish.catalogue_files import write_layer
from training.publish.sign import sign

log = logging.getLogger(__name__)

# Enough to find out whether this network bears sums in bfloat16.
CHECKED_ITEMS = 1000
# The newest one, and the one before it: a reader that is just opening that one finds all its files.
KEPT_GENERATIONS = 2
_LOCK = ".lock"


def build_catalogue(version: Path, items: Path, sign_key: SigningKey | None = None) -> Path:
    """Publish the next generation of a version's catalogue, signed if a key is given, and return its folder.

    Raises ValueError for items that do not fit the version's schema, an id that two items have, a full disk, or
    another job that writes."""
    scorer = Scorer.load(version, engine="torchscript")
    family = folder_of(scorer.artifact)
    features = scorer.encoder.schema.requested("candidate")
    with (
        one_writer(family),
        ItemFile.opened(items, features, scorer.encoder.dtype) as source,
        hidden_folder(family) as folder,
    ):
        source.refuse_absent()
        content = _write_checked(scorer, source, folder)
        source.refuse_changed()
        final = publish_layer(family, folder, content, sign_key)
    size = sum(entry["size_bytes"] for entry in content["files"].values())
    log.info(
        "published %s: %d items, sums in %s, %.1f MB mapped and shared by all workers, %.1f MB per 100,000 items",
        final,
        source.count,
        content["sums_dtype"],
        size / 1e6,
        size / source.count / 10,
    )
    return final


@contextmanager
def one_writer(family: Path) -> Iterator[None]:
    """Sole access of this job to a catalogue. What a killed one left is removed. Raises ValueError where another job
    writes."""
    torch.set_num_threads(1)
    taken = ValueError(f"{family}: another job writes this catalogue; try again when it has ended")
    with lock_file(family / _LOCK, taken):
        for left in family.glob(".publishing-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def publish_layer(family: Path, folder: Path, content: dict[str, Any], sign_key: SigningKey | None) -> Path:
    """Make a written layer the next generation, and remove those that nobody needs. Returns its folder."""
    final = family / str(max(generations(family), default=0) + 1)
    write_manifest(folder, {**content, "generation": int(final.name)})
    if sign_key is not None:
        sign(folder, sign_key)
    seal(folder)
    folder.rename(final)
    sync(family)
    _remove_unneeded(family)
    return final


def _remove_unneeded(family: Path) -> None:
    """Remove the generations that are neither among the newest nor below one of them."""
    published = generations(family)
    newest = published[-KEPT_GENERATIONS:]
    try:
        needed = {*newest, *(below for generation in newest for below in layers_below(family / str(generation)))}
    except ValueError as error:
        log.warning("no older generation is removed: %s", error)
        return
    for old in published:
        if old not in needed:
            _remove(family, old)


def _remove(family: Path, generation: int) -> None:
    """Remove a generation. Its manifest stays: a join asks it for the item files."""
    folder = family / str(generation)
    with suppress(FileNotFoundError):  # somebody removes it too
        replace_file(family / REMOVED / f"{generation}.json", [(folder / MANIFEST).read_bytes()])
    shutil.rmtree(folder, ignore_errors=True)


def _write_checked(scorer: Scorer, source: ItemFile, folder: Path) -> dict[str, Any]:
    """Write all files and return the manifest's content, sums in bfloat16 where the scores stay the same by them."""
    dtypes: tuple[SumsDtype, SumsDtype] = ("bfloat16", "float32")
    for dtype in dtypes:
        content = write_layer(scorer, folder, dtype, source)
        _, fault = checked_layer(scorer, folder, content)
        if fault is None:
            return content
        log.warning("sums in %s are left out: %s", dtype, fault)
    raise ValueError(f"{scorer.artifact.path}: sums of items do not answer as their features do; nothing was published")


def checked_layer(scorer: Scorer, folder: Path, content: dict[str, Any]) -> tuple[Layer, str | None]:
    """A written layer as a reader opens it, and how answers by its sums differ from those by features, None where they
    do not."""
    write_manifest(folder, {**content, "generation": 0})
    # Before it is signed: signatures are for those who read what is published.
    layer = Layer.open(folder, scorer.artifact)
    picked_N = layer.some_rows(CHECKED_ITEMS)
    # Half of what a reader allows for: it never refuses what was published, even where its CPU rounds otherwise.
    return layer, scorer.sums_fault(layer.block(picked_N), layer.sums(picked_N), COMPILED_TOLERANCE / 2)
