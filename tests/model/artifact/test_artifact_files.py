"""Changes by others to the files of a version: other kinds of files, cuts at bad moments, copies under other names."""

import os
import platform
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from model.artifact import prehash
from model.artifact.artifact import MANIFEST, RANKER, Artifact, ArtifactError, file_entry, publish, write_manifest
from model.artifact.compiled import FORMAT_VERSION, PACKAGE, folder_of
from model.artifact.signature import SIGNATURE
from model.scorer.scorer import Scorer
from model.untrusted_files import sha256_of
from tests.artifacts import publish_artifact, tiny_schema
from tests.items import tiny_items, write_items
from tests.key_pairs import key_pair
from tests.model.small_artifact import write_small
from training.publish.catalogue import build_catalogue

TABLE = "table_8.f32"
HUGE_BYTES = 1 << 40


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return publish_artifact(tmp_path)


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(HUGE_BYTES)


@pytest.mark.parametrize("name", [MANIFEST, RANKER, TABLE])
@pytest.mark.parametrize(("spoil", "words"), [(as_fifo, "not a regular file but a FIFO"), (as_huge, f"{HUGE_BYTES} b")])
def test_a_fifo_does_not_block_and_a_huge_file_is_not_read(
    version: Path, name: str, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(version / name)
    with pytest.raises(ArtifactError, match=words) as raised:
        Artifact.open(version)
    assert str(version / name) in str(raised.value)


@pytest.mark.parametrize("spoil", [as_fifo, as_huge])
def test_a_signature_and_a_key_are_small_regular_files(
    version: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    _, trusted = key_pair(tmp_path)
    (version / SIGNATURE).write_text("")
    spoil(version / SIGNATURE)
    with pytest.raises(ArtifactError, match=SIGNATURE):
        Artifact.open(version, trusted)
    spoil(trusted)
    with pytest.raises(ArtifactError, match=trusted.name):
        Artifact.open(version, trusted)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("moment", ["before hashing", "after hashing"])
def test_a_table_that_is_cut_while_it_is_verified_is_refused(
    version: Path, monkeypatch: pytest.MonkeyPatch, moment: str, ahead: bool
) -> None:
    """A second `cp -r` over a version cuts its files first. Reading a mapping of one would end the process."""

    def cut_meanwhile(file: BinaryIO) -> str:
        if moment == "before hashing":
            os.truncate(version / TABLE, 4096)
        sha256 = sha256_of(file)
        if moment == "after hashing":
            os.truncate(version / TABLE, 0)
        return sha256

    artifact = Artifact(version, Artifact.open(version).manifest)
    if ahead:
        monkeypatch.setattr(prehash, "_WORTH_BYTES", 1)
        monkeypatch.setattr("model.artifact.prehash.sha256_of", cut_meanwhile)
        prehash.begin_hashing(version.parent.parent)
    else:
        monkeypatch.setattr("model.artifact.artifact.sha256_of", cut_meanwhile)
    try:
        with pytest.raises(ArtifactError, match=TABLE):
            artifact.map(TABLE)
    finally:
        prehash.forget_hashes()


def test_a_table_of_the_same_size_that_is_written_after_hashing_is_refused(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_after(file: BinaryIO) -> str:
        sha256 = sha256_of(file)
        (version / TABLE).write_bytes(bytes((version / TABLE).stat().st_size))
        return sha256

    artifact = Artifact(version, Artifact.open(version).manifest)
    monkeypatch.setattr("model.artifact.artifact.sha256_of", write_after)
    with pytest.raises(ArtifactError, match="changed while it was read"):
        artifact.map(TABLE)


def test_a_version_is_served_under_its_own_name_alone(version: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(version, tmp_path / "other" / "1")
    assert Scorer.load(copy).version == "1"  # a copy elsewhere is read by whoever names it
    with pytest.raises(ArtifactError, match="is a version of model 'tiny', but its folder is of model 'other'"):
        Scorer.load(copy, model="other")
    assert Scorer.load(version, model="tiny").version == "1"


def test_published_files_are_read_only(tmp_path: Path) -> None:
    path = publish(
        tmp_path, "small", write_small, schema=tiny_schema(), network={}, training={}, metrics={}, libraries={}
    )
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o444}
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_without_room_for_a_compiled_package_torchscript_serves(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Artifact.open(version)
    folder = folder_of(artifact)
    folder.mkdir(parents=True)
    (folder / PACKAGE).write_bytes(b"machine code")
    content = {
        "format_version": FORMAT_VERSION,
        "kind": "compiled",
        "created": "2026-11-30T00:00:00+00:00",
        "name": "tiny",
        "version": 1,
        "parent": artifact.manifest.checksum,
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "instructions": [],
        "dtype": "float32",
        "acceptance": "tolerance",
        "tolerance": 1.0,
        "quality": {},
        "cpu_ms": {},
        "against_torchscript": {},
        "files": {PACKAGE: file_entry(folder / PACKAGE)},
    }
    write_manifest(folder, content)
    # As on a full disk: the folder of temporary files takes nothing.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    scorer = Scorer.load(version)
    assert scorer.engine == "torchscript"
    assert "No such file or directory" in (scorer.engine_reason or "")
    with pytest.raises(ArtifactError, match="No such file or directory"):
        Scorer.load(version, "compiled")


def test_a_generation_of_a_catalogue_is_taken_under_its_own_number_alone(version: Path, tmp_path: Path) -> None:
    """An older generation, signed and whole, that was copied to a higher number would be served for good."""
    place = build_catalogue(version, write_items(tmp_path / "items.parquet", tiny_items(5)))
    scorer = Scorer.load(version)
    scorer.open_catalogue(place)
    with pytest.raises(ArtifactError, match="the manifest says generation 1; the folder was renamed"):
        scorer.open_catalogue(shutil.copytree(place, place.with_name("2")))


@pytest.mark.parametrize("moment", ["before hashing", "after hashing"])
def test_a_catalogue_that_is_cut_while_it_is_verified_is_refused(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    place = build_catalogue(version, write_items(tmp_path / "items.parquet", tiny_items(5)))
    scorer = Scorer.load(version)

    def cut_meanwhile(file: BinaryIO) -> str:
        is_before = moment == "before hashing"
        sha256 = "" if is_before else sha256_of(file)
        (place / "sums.bin").chmod(0o644)
        os.truncate(place / "sums.bin", 0)
        return sha256_of(file) if is_before else sha256

    monkeypatch.setattr("model.artifact.catalogue_layer.sha256_of", cut_meanwhile)
    with pytest.raises(ArtifactError, match="bin: "):
        scorer.open_catalogue(place)
