"""Catalogues: which item an id is, whose feature counts, and what is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artifact.artifact import MANIFEST, ArtifactError, write_manifest
from model.artifact.catalogue import Catalogue
from model.artifact.item_source import UNKNOWN
from model.features.encoder import EncodedBlock
from model.scorer.scorer import Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact, writable
from tests.items import tiny_items, write_items
from training.publish.catalogue import build_catalogue

COUNT = 60
ITEMS = tiny_items(COUNT)
FEATURES = [name for name in ITEMS if name != "id"]


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with a catalogue of ITEMS."""
    folder = tmp_path_factory.mktemp("models")
    version = publish_artifact(folder)
    build_catalogue(version, write_items(folder / "items.parquet", ITEMS))
    return version


@pytest.fixture(scope="module")
def scorer(version: Path) -> Scorer:
    scorer = Scorer.load(version)
    [place] = scorer.catalogue_generations()
    scorer.catalogue = scorer.open_catalogue(place)
    return scorer


def catalogue_of(scorer: Scorer) -> Catalogue:
    assert scorer.catalogue is not None
    return scorer.catalogue


def assert_same_block(got: EncodedBlock, expected: EncodedBlock) -> None:
    for name, array in expected._asdict().items():
        np.testing.assert_array_equal(getattr(got, name), array, err_msg=name)
        assert getattr(got, name).dtype == array.dtype


@given(st.lists(st.sampled_from(ITEMS["id"]) | st.text(max_size=8), max_size=20))
@settings(max_examples=60, deadline=None)
def test_ids_are_found_as_in_a_dict(scorer: Scorer, ids: list[str]) -> None:
    row_of = {identifier: row for row, identifier in enumerate(ITEMS["id"])}
    expected = [row_of.get(identifier, UNKNOWN) for identifier in ids]
    assert catalogue_of(scorer).rows_of(ids).tolist() == expected


# What a request says of one feature: nothing, null, or a value.
_ABSENT = object()
_SAID: dict[str, list[Any]] = {
    "video_id": [None, 3, -9],
    "tag": [None, "", "y"],
    "topics": [None, [], [8], [7, 7, 9, 9, 8]],
    "duration_ms": [None, 0, 77.5],
}


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_the_request_comes_before_the_catalogue_and_the_catalogue_before_the_default(
    scorer: Scorer, data: st.DataObject
) -> None:
    known = st.integers(0, COUNT - 1)
    named: list[int | None] = data.draw(st.lists(st.none() | known, min_size=1, max_size=8))
    rows = len(named)
    columns_said = {
        name: data.draw(st.lists(st.sampled_from(values), min_size=rows, max_size=rows))
        for name, values in _SAID.items()
        if data.draw(st.booleans())
    }
    merged: dict[str, list[Any]] = {}
    for name in FEATURES:
        said = columns_said.get(name, [None] * rows)
        behind = [None if item is None else ITEMS[name][item] for item in named]
        merged[name] = [a if a is not None else b for a, b in zip(said, behind, strict=True)]
    encoder = scorer.encoder

    def encoded(positions: list[int]) -> EncodedBlock:
        values = {name: [column[n] for n in positions] for name, column in merged.items()}
        columns = encoder.columns("candidate", values, len(positions))
        return encoder.encode("candidate", columns, len(positions), as_served=True).block

    is_said = [any(column[n] is not None for column in columns_said.values()) for n in range(rows)]

    ids = ["nobody" if item is None else f"item-{item}" for item in named]
    nulls = {name: np.array([value is None for value in column]) for name, column in columns_said.items()}
    got = scorer.name(ids, encoder.columns("candidate", columns_said, rows), nulls)
    assert got is not None
    others = [n for n in range(rows) if is_said[n] or named[n] is None]
    assert got.is_encoded_N.tolist() == [n in others for n in range(rows)]
    if others:
        assert got.encoded is not None
        assert_same_block(got.encoded, encoded(others))
    assert list(got.unknown) == [n for n in range(rows) if named[n] is None and not is_said[n]]
    # Scores: sums in bfloat16 or not, they are those of the merged features.
    direct = scorer.score_values(TINY_REQUEST["user"], merged, rows)
    joined = scorer.score(encoder.encode_request(TINY_REQUEST["user"]), got).answers_NO
    np.testing.assert_allclose(joined, direct, rtol=1e-3, atol=1e-3)


def changed(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / MANIFEST).read_text())
        del content["checksum"]
        write_manifest(folder, {**content, key: value})

    return change


def flipped(folder: Path) -> None:
    content = bytearray((folder / "ids.bin").read_bytes())
    content[5] ^= 1
    (folder / "ids.bin").write_bytes(content)


def cut(folder: Path) -> None:
    content = (folder / "sums.bin").read_bytes()
    (folder / "sums.bin").write_bytes(content[:-2])


def edited(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"removes": false', '"removes": true'))


def with_other_sums(folder: Path) -> None:
    """Files and manifest agree, but the sums are not those of the features."""
    path = folder / "sums.bin"
    content = bytes(reversed(path.read_bytes()))
    path.write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    changed("files", {**manifest["files"], "sums.bin": entry})(folder)


@pytest.mark.parametrize(("change", "reason"), [
    (flipped, r"ids.bin: checksum differs"),
    (cut, r"sums.bin: \d+ bytes, the manifest says \d+"),
    (edited, "the manifest was changed"),
    (with_other_sums, "its sums are not those of its features"),
    (changed("parent", "0" * 64), "made for another model version"),
    (changed("name", "other"), r"made for another model version \(other 1\)"),
    (changed("format_version", 9), "format version 9"),
    (changed("kind", "compiled"), "kind"),
    (changed("items", 0), "counts 0 items"),
    (changed("items", COUNT - 1), "bytes, .* are needed"),
    (changed("files", {}), "keys.bin: the manifest lists None"),
    (changed("surprise", 1), "surprise"),
    (lambda folder: (folder / "rows.bin").unlink(), "rows.bin: cannot be read"),
    (lambda folder: (folder / MANIFEST).unlink(), "cannot be read"),
])  # fmt: skip
def test_a_generation_that_does_not_hold_is_refused_with_the_reason(
    version: Path, scorer: Scorer, tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    copy = writable(shutil.copytree(scorer.catalogue_generations()[0], tmp_path / "1"))
    change(copy)
    with pytest.raises(ArtifactError, match=reason):
        scorer.open_catalogue(copy)


def test_a_catalogue_of_another_version_is_refused(version: Path, scorer: Scorer, tmp_path: Path) -> None:
    other = Scorer.load(publish_artifact(tmp_path, seed=1))
    with pytest.raises(ArtifactError, match="build it again for tiny 1"):
        other.open_catalogue(scorer.catalogue_generations()[0])


def test_a_generation_that_is_deleted_is_read_on(version: Path, scorer: Scorer, tmp_path: Path) -> None:
    copy = writable(shutil.copytree(scorer.catalogue_generations()[0], tmp_path / "1"))
    catalogue = scorer.open_catalogue(copy)
    shutil.rmtree(copy)
    rows_N = np.arange(COUNT)
    assert_same_block(catalogue.block(rows_N), catalogue_of(scorer).block(rows_N))
