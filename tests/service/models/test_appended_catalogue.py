"""Appends to the catalogue of a model that serves: taken up without a restart, and what keeps one from it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.artifact.artifact import MANIFEST, write_manifest
from model.artifact.signature import SigningKey
from service.metrics.metrics import Metrics
from service.models.store import ModelStore
from tests.artifacts import TINY_REQUEST, publish_artifact, writable
from tests.items import tiny_items, write_items
from tests.key_pairs import key_pair
from tests.service.running import RunningService
from training.publish.catalogue import build_catalogue
from training.publish.catalogue_append import append_to_catalogue
from training.publish.sign import sign

Changed = Callable[[Path], None]


def items_at(path: Path, first: int, count: int) -> Path:
    """A file of the items numbered from `first`."""
    items = tiny_items(count, seed=first)
    return write_items(path, {**items, "id": [f"item-{first + n}" for n in range(count)]})


def store_of(models: Path, verify_key: Path | None = None) -> ModelStore:
    store = ModelStore(models, Metrics(), poll_seconds=3600, torch_threads=1, verify_key=verify_key)
    store.refresh()
    return store


def entry_of(store: ModelStore) -> dict[str, Any]:
    entry: dict[str, Any] = store.entry("tiny")["catalogue"]
    return entry


def test_an_appended_item_is_ranked_and_a_removed_one_is_unknown_without_a_restart(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path / "models")
    build_catalogue(version, items_at(tmp_path / "items.parquet", 0, 4))
    with RunningService(tmp_path / "models", "--workers", "2") as service:
        service.wait_ready()

        def status(*ids: str) -> int:
            request = {"user": TINY_REQUEST["user"], "candidates": {"id": list(ids)}}
            return int(service.client.post("/v1/rank", json=request).status_code)

        assert (status("item-0", "item-3"), status("item-4")) == (200, 422)
        pq.write_table(pa.table({"id": ["item-0"]}), tmp_path / "gone.parquet")
        append_to_catalogue(version, items_at(tmp_path / "more.parquet", 4, 2), tmp_path / "gone.parquet")
        # One worker may have polled and the other not: both have when no answer of many is of before.
        service.wait_for(lambda: {status("item-3", "item-4", "item-5") for _ in range(20)} == {200})
        service.wait_for(lambda: {status("item-0") for _ in range(20)} == {422})
        [model] = service.client.get("/v1/models").json()["models"]
        assert {key: model["catalogue"][key] for key in ("generation", "items", "overlays", "reason")} == {
            "generation": 2, "items": 5, "overlays": 1, "reason": None
        }  # fmt: skip


def rewritten(place: Path, **changes: Any) -> None:
    """Write a manifest with other values, and the checksum of those."""
    content = json.loads((place / MANIFEST).read_text())
    del content["checksum"]
    write_manifest(place, {**content, **changes})


def cut(name: str) -> Changed:
    def change(place: Path) -> None:
        content = (place / name).read_bytes()
        (place / name).write_bytes(content[:-1])

    return change


def on_itself(place: Path) -> None:
    manifest = json.loads((place / MANIFEST).read_text())
    rewritten(place, layers=[{"generation": 2, "checksum": manifest["checksum"]}])


def on_another_base(place: Path) -> None:
    rewritten(place, layers=[{"generation": 1, "checksum": "0" * 64}])


def on_too_many(place: Path) -> None:
    manifest = json.loads((place / MANIFEST).read_text())
    rewritten(place, layers=manifest["layers"] * 9)


@pytest.mark.parametrize(("change", "reason"), [
    (cut("sums.bin"), "sums.bin"),
    (cut("keys.bin"), "keys.bin"),
    (on_itself, "was written on other generations"),
    (on_another_base, "was written on other generations than it stands on here"),
    (on_too_many, "stands on 9 generations"),
    (lambda place: rewritten(place, sums_dtype="float32"), "bytes, .* are needed"),
])  # fmt: skip
def test_an_overlay_that_does_not_verify_leaves_what_serves(tmp_path: Path, change: Changed, reason: str) -> None:
    version = publish_artifact(tmp_path / "models")
    build_catalogue(version, items_at(tmp_path / "items.parquet", 0, 4))
    store = store_of(tmp_path / "models")
    change(writable(append_to_catalogue(version, items_at(tmp_path / "more.parquet", 4, 2))))
    store.refresh()
    entry = entry_of(store)
    assert (entry["generation"], entry["items"], entry["overlays"]) == (1, 4, 0)
    assert re.search(reason, entry["reason"])


def test_an_overlay_waits_for_its_base_and_outlives_it(tmp_path: Path) -> None:
    """A copy brings the overlay before the base, and the base is removed by hand."""
    version = publish_artifact(tmp_path / "models")
    base = build_catalogue(version, items_at(tmp_path / "items.parquet", 0, 4))
    away = Path(shutil.copytree(base, tmp_path / "away"))
    append_to_catalogue(version, items_at(tmp_path / "more.parquet", 4, 2))
    shutil.rmtree(base)
    store = store_of(tmp_path / "models")
    assert "stands on generation 1, which cannot be used" in entry_of(store)["reason"]
    shutil.copytree(away, base)
    store.refresh()  # the copy may still be under way
    store.refresh()
    assert (entry_of(store)["generation"], entry_of(store)["items"], entry_of(store)["reason"]) == (2, 6, None)
    shutil.rmtree(base)
    store.refresh()
    assert entry_of(store)["reason"] == "generation 1: missing; it serves on from memory"
    catalogue = store.find("tiny", None).scorer.catalogue
    assert catalogue is not None
    assert (catalogue.rows_of(["item-0", "item-5", "item-6"]) >= 0).tolist() == [True, True, False]


def test_an_overlay_is_signed_as_its_base_is(tmp_path: Path) -> None:
    (mine, trusted), (other, _) = key_pair(tmp_path), key_pair(tmp_path, "other")
    version = publish_artifact(tmp_path / "models")
    sign(version, SigningKey(mine))
    build_catalogue(version, items_at(tmp_path / "items.parquet", 0, 4), SigningKey(mine))
    store = store_of(tmp_path / "models", trusted)
    assert entry_of(store)["items"] == 4
    overlay = append_to_catalogue(version, items_at(tmp_path / "more.parquet", 4, 2))
    store.refresh()
    assert "manifest.sig: missing" in entry_of(store)["reason"]
    sign(overlay, SigningKey(other))
    for _ in range(2):
        store.refresh()
    assert "no trusted key" in entry_of(store)["reason"]
    assert entry_of(store)["generation"] == 1
    append_to_catalogue(version, items_at(tmp_path / "more.parquet", 6, 2), sign_key=SigningKey(mine))
    store.refresh()
    # What it stands on has to be signed too.
    assert "generation 2, which cannot be used" in entry_of(store)["reason"]
    sign(overlay, SigningKey(mine))
    for _ in range(2):
        store.refresh()
    assert (entry_of(store)["generation"], entry_of(store)["items"], entry_of(store)["reason"]) == (3, 8, None)
