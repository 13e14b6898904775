"""Publishing: a version is whole or invisible, with any failure, and no version is overwritten."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.artifact.artifact import MANIFEST, RANKER, Artifact, ArtifactError, model_names, versions
from model.export.scoring_module import write_torchscript
from tests.artifacts import tiny_schema
from tests.model.small_artifact import FILES, SMALL, publish_small, write_small

ROOT = Path(__file__).resolve().parents[3]


def test_every_user_may_read_what_is_published(tmp_path: Path) -> None:
    """The service runs as another user than training."""
    path = publish_small(tmp_path)
    assert path.stat().st_mode & 0o055 == 0o055
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in path.iterdir())


def test_versions_count_up_and_are_sorted_as_numbers(tmp_path: Path) -> None:
    assert versions(tmp_path, "small") == []
    for expected in (1, 2, 3):
        assert publish_small(tmp_path).name == str(expected)
    shutil.copytree(tmp_path / "small" / "3", tmp_path / "small" / "11")
    for other in ("derived", ".publishing-x", "01", "1.5", "latest", "-1", "0"):
        (tmp_path / "small" / other).mkdir()
    (tmp_path / "small" / "99").write_text("a file")
    assert versions(tmp_path, "small") == [1, 2, 3, 11]
    assert publish_small(tmp_path).name == "12"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert model_names(tmp_path) == ["small"]


def hidden_and_visible(models: Path) -> tuple[list[str], list[int]]:
    names = [entry.name for entry in (models / "small").iterdir() if not entry.name.isdigit()]
    return names, versions(models, "small")


class PublisherError(Exception):
    """Error of a publisher's own code."""


@pytest.mark.parametrize("step", ["write_files", "check"])
def test_a_failed_publication_leaves_nothing(tmp_path: Path, step: str) -> None:
    publish_small(tmp_path)

    def fail(folder: Path) -> None:
        if step == "write_files":
            write_small(folder)
        raise PublisherError

    with pytest.raises(PublisherError):
        publish_small(tmp_path, **{step: fail})
    assert hidden_and_visible(tmp_path) == ([], [1])


def test_the_check_sees_the_whole_version_before_anyone_else(tmp_path: Path) -> None:
    seen: list[tuple[str, list[int]]] = []
    publish_small(
        tmp_path, check=lambda folder: seen.append((Artifact.open(folder).version, versions(tmp_path, "small")))
    )
    assert seen == [("1", [])]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 64, "\ud800"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="model name"):
        publish_small(tmp_path / "models", name=name)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("failing", ["write_files", "manifest", "first sync", "last sync", "rename"])
def test_a_full_disk_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    publish_small(tmp_path)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    calls = 0

    def fail(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        # Four files, the manifest and their folder are synced before the rename.
        if failing != "last sync" or calls == 6:
            raise full

    write_files = write_small
    match failing:
        case "write_files":
            write_files = fail
        case "manifest":
            monkeypatch.setattr(Path, "write_text", fail)
        case "rename":
            monkeypatch.setattr(Path, "rename", fail)
        case _:
            monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ValueError, match=r"small: nothing was published, No space left on device"):
        publish_small(tmp_path, write_files)
    assert calls == (6 if failing == "last sync" else 1)
    monkeypatch.undo()
    assert hidden_and_visible(tmp_path) == ([], [1])
    assert publish_small(tmp_path).name == "2"


def test_all_is_on_disk_before_the_version_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(
            ("folder" if path.name.startswith(".publishing-") else path.name, bool(versions(tmp_path, "small")))
        )
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    publish_small(tmp_path)
    assert set(synced[:-2]) == {(name, False) for name in (*FILES, MANIFEST)}
    assert synced[-2:] == [("folder", False), ("small", True)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root and the right to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_real_full_disk_publishes_nothing(small_disk: Path) -> None:
    publish_small(small_disk)
    scripted = torch.jit.script(torch.nn.Linear(300, 300))

    def write_large(folder: Path) -> None:
        write_small(folder)
        write_torchscript(scripted, folder / RANKER)

    with pytest.raises(ValueError, match="nothing was published, No space left on device"):
        publish_small(small_disk, write_large)
    assert hidden_and_visible(small_disk) == ([], [1])
    assert Artifact.open(small_disk / "small" / "1").read(RANKER) == SMALL[RANKER]
    assert publish_small(small_disk).name == "2"


def test_a_models_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ValueError, match="models"):
        publish_small(tmp_path / "models")


def test_publishers_at_once_get_versions_of_their_own(tmp_path: Path) -> None:
    """All of them count the versions before any of them renames."""
    publishers = 8
    ready = threading.Barrier(publishers)
    done: list[tuple[str, int]] = []
    first = threading.local()

    def wait(_: Path) -> None:
        if not getattr(first, "passed", False):
            first.passed = True
            ready.wait(timeout=30)

    def publish_one(number: int) -> None:
        done.append((publish_small(tmp_path, check=wait, training={"number": number}).name, number))

    threads = [threading.Thread(target=publish_one, args=(number,)) for number in range(publishers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hidden_and_visible(tmp_path) == ([], list(range(1, publishers + 1)))
    for version, number in done:
        manifest = Artifact.open(tmp_path / "small" / version).manifest
        assert (str(manifest.version), manifest.training) == (version, {"number": number})


def test_readers_see_whole_versions_alone(tmp_path: Path) -> None:
    stop = threading.Event()
    faults: list[str] = []
    seen = set()

    def read() -> None:
        while not stop.is_set():
            for version in versions(tmp_path, "small"):
                try:
                    Artifact.open(tmp_path / "small" / str(version))
                    seen.add(version)
                except ArtifactError as error:
                    faults.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            publish_small(tmp_path)
    finally:
        stop.set()
        reader.join()
    assert faults == []
    assert seen


PUBLISH_AND_HANG = """
import sys, time
from pathlib import Path
from model.artifact.artifact import publish
from model.schema import FeedSchema

def write_files(folder):
    (folder / "ranker.pt").write_bytes(b"a ranker")

def hang(folder):
    print("ready", flush=True)
    time.sleep(600)

schema = FeedSchema.model_validate_json(sys.argv[2])
publish(Path(sys.argv[1]), "small", write_files, schema=schema, network={}, training={}, metrics={}, libraries={},
        check=hang)
"""


def test_a_publisher_killed_halfway_leaves_only_a_hidden_folder(tmp_path: Path) -> None:
    schema = tiny_schema().model_dump_json(exclude_none=True)
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISH_AND_HANG, str(tmp_path), schema], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
        finally:
            process.kill()
    hidden, visible = hidden_and_visible(tmp_path)
    assert visible == []
    assert [name.startswith(".publishing-") for name in hidden] == [True]
    assert model_names(tmp_path) == []
    assert publish_small(tmp_path).name == "1"
    assert model_names(tmp_path) == ["small"]
