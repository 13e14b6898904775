"""Tables hashed ahead: what is taken is the hash of the file as it is, and nothing else ever is."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.artifact import prehash
from model.artifact.artifact import Artifact, ArtifactError
from tests.artifacts import publish_artifact

CONTENT = os.urandom(2**22 + 5)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    prehash.forget_hashes()


def table(models: Path, version: str = "1", content: bytes = CONTENT) -> Path:
    path = models / "feed" / version / "table_4.f32"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def taken(path: Path) -> str | None:
    with path.open("rb") as file:
        return prehash.take_hash(file)


def test_the_newest_versions_tables_are_there_once(tmp_path: Path) -> None:
    older, newest = table(tmp_path, "9"), table(tmp_path, "10", CONTENT[::-1])
    prehash.begin_hashing(tmp_path)
    assert taken(newest) == hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert taken(newest) is None
    assert taken(older) is None


def test_a_table_that_is_hashed_at_once_is_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may run the thread to its end, where the file is closed, before its beginner goes on."""

    class AtOnce(threading.Thread):
        def start(self) -> None:
            super().start()
            self.join()

    monkeypatch.setattr(threading, "Thread", AtOnce)
    path = table(tmp_path)
    prehash.begin_hashing(tmp_path)
    assert taken(path) == hashlib.sha256(CONTENT).hexdigest()


def test_a_file_that_was_replaced_or_written_to_is_not_taken(tmp_path: Path) -> None:
    for change in ("replaced", "written"):
        path = table(tmp_path / change)
        prehash.begin_hashing(tmp_path / change)
        if change == "replaced":
            path.unlink()
            path.write_bytes(CONTENT)
        else:
            with path.open("r+b") as file:
                file.write(b"another")
            os.utime(path, ns=(1, 1))
        assert taken(path) is None


def test_folders_that_are_no_models_are_passed_over(tmp_path: Path) -> None:
    prehash.begin_hashing(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    small = table(tmp_path, content=b"1234")
    prehash.begin_hashing(tmp_path)
    assert taken(small) is None


def test_a_damaged_table_is_refused_though_it_was_hashed_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prehash, "_WORTH_BYTES", 1)
    version = publish_artifact(tmp_path)
    prehash.begin_hashing(tmp_path)
    Artifact.open(version)
    path = next(version.glob("table_*.f32"))
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    prehash.begin_hashing(tmp_path)
    with pytest.raises(ArtifactError, match="checksum"):
        Artifact.open(version)
