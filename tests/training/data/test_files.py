"""The files of a log: a folder that cannot be listed is refused, temporary faults are tried again, hidden and other
ignored names are counted."""

import errno
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.training.data.log_files import SCHEMA, data_config, numbered, numbers_of, stream, write_groups
from training.data import retries
from training.data.files import LogFiles
from training.data.rows import read_splits


class Flaky(MemoryFileSystem):  # type: ignore[misc]
    """A file system whose calls on some paths fail so many times first."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[dict[str, list[OSError]]] = {}
    read_faults: ClassVar[dict[str, list[OSError]]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://")))

    def _fail(self, path: str) -> None:
        if left := self.faults.get(self._strip_protocol(path)):
            raise left.pop()

    def ls(self, path: str, **options: Any) -> Any:
        self._fail(path)
        return super().ls(path, **options)

    def info(self, path: str, **options: Any) -> Any:
        self._fail(path)
        return super().info(path, **options)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        return _FlakyFile(file.getvalue(), self._strip_protocol(path)) if mode == "rb" else file


class _FlakyFile(io.BytesIO):
    """A file whose pages fail to be read so many times, while its footer is read."""

    def __init__(self, content: bytes, path: str) -> None:
        super().__init__(content)
        self._path = path

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() < len(self.getbuffer()) // 2 and (left := Flaky.read_faults.get(self._path)):
            raise left.pop()
        return super().read(size)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(retries, "PAUSES", (0.0,) * 4)
    system = Flaky()
    for day in (1, 2):
        with system.open(f"/log/day={day}/part.parquet", "wb") as file:
            pq.write_table(numbered(range(10)), file)
    yield system
    system.store.clear()
    system.faults.clear()
    system.read_faults.clear()


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def an_ordinary_user() -> Iterator[None]:
    """Permissions count inside: root becomes somebody else."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("closed", ["", "day=2"])
def test_a_folder_that_may_not_be_listed_is_refused_by_name(shared_folder: Path, closed: str) -> None:
    log = shared_folder / "log"
    for day in (1, 2):
        write_groups(log / f"day={day}", [[10]])
    assert len(LogFiles(log).files) == 2
    (log / closed).chmod(0)
    try:
        with an_ordinary_user(), pytest.raises(ValueError, match=r"cannot be listed \(.*Permission denied") as refusal:
            LogFiles(log)
    finally:
        (log / closed).chmod(0o755)
    assert str(refusal.value).startswith(f"{log / closed}: ")


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "no"), FileNotFoundError(errno.ENOENT, "gone"), OSError(errno.ENOTCONN, "")]
)
def test_a_partition_that_a_remote_system_does_not_list_is_refused_at_once(flaky: Flaky, error: OSError) -> None:
    flaky.faults["/log/day=2"] = [error]
    with pytest.raises(ValueError, match=r"^flaky:///log/day=2: cannot be listed"):
        LogFiles("flaky:///log")
    assert not flaky.faults["/log/day=2"]


@pytest.mark.parametrize(
    "error", [*(OSError(code, "for a while") for code in (errno.ESTALE, errno.EIO, errno.EAGAIN)), TimeoutError()]
)
def test_a_temporary_fault_is_tried_again(flaky: Flaky, error: OSError, caplog: pytest.LogCaptureFixture) -> None:
    flaky.faults["/log/day=2"] = [error] * 4
    files = LogFiles("flaky:///log")
    assert [file.name for file in files.files] == ["day=1/part.parquet", "day=2/part.parquet"]
    assert caplog.text.count("flaky:///log/day=2: ") == 4
    flaky.faults["/log/day=1/part.parquet"] = [error] * 4
    assert files.size_and_time(files.files[0])[0] > 0
    flaky.faults["/log/day=1/part.parquet"] = [error] * 2
    with files.opened(files.files[0]) as parquet:
        assert parquet.metadata.num_rows == 10


def test_a_fault_that_does_not_pass_is_refused_after_so_many_tries(flaky: Flaky) -> None:
    flaky.faults["/log"] = [OSError(errno.ESTALE, "Stale file handle")] * 9
    with pytest.raises(ValueError, match=r"^flaky:///log: cannot be listed \(.*Stale file handle"):
        LogFiles("flaky:///log")
    assert len(flaky.faults["/log"]) == 9 - 5


def test_hidden_names_are_no_part_of_a_log_and_are_counted(tmp_path: Path) -> None:
    write_groups(tmp_path, [[10]])
    for name in (".log.parquet", "_log.parquet", "README.md"):
        (tmp_path / name).write_bytes((tmp_path / "part-000.parquet").read_bytes())
    for folder in (".tmp=1", "_temporary", "truth"):
        write_groups(tmp_path / folder, [[10]])
    files = LogFiles(tmp_path)
    assert [file.name for file in files.files] == ["part-000.parquet"]
    assert {kind: sorted(names) for kind, names in files.passed_over.items()} == {
        "hidden": [".log.parquet", ".tmp=1", "_log.parquet", "_temporary"],
        "neither *.parquet nor a partition": ["README.md", "truth"],
    }


def test_a_partition_whose_key_begins_with_an_underscore_is_read_and_an_empty_one_counted(tmp_path: Path) -> None:
    write_groups(tmp_path / "_version=1", [[10]])
    (tmp_path / "_version=2").mkdir()
    files = LogFiles(tmp_path)
    assert [file.partition for file in files.files] == [{"_version": 1}]
    assert files.passed_over == {"empty": ["_version=2"]}


def test_a_hidden_file_that_is_named_itself_is_read(tmp_path: Path) -> None:
    write_groups(tmp_path, [[10]])
    (tmp_path / "part-000.parquet").rename(tmp_path / "_log.parquet")
    files = LogFiles(tmp_path / "_log.parquet")
    assert [files.shown(file) for file in files.files] == [str(tmp_path / "_log.parquet")]
    with pytest.raises(ValueError, match=r"no \*\.parquet file here; 1 hidden: _log\.parquet"):
        LogFiles(tmp_path)


def test_a_partition_that_is_a_link_is_followed_and_a_dangling_one_refused(tmp_path: Path) -> None:
    write_groups(tmp_path / "elsewhere", [[10]])
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "day=1").symlink_to(tmp_path / "elsewhere")
    assert [file.partition for file in LogFiles(tmp_path / "log").files] == [{"day": 1}]
    (tmp_path / "log" / "day=2").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"log/day=2: a link that leads nowhere"):
        LogFiles(tmp_path / "log")


def test_a_file_that_may_not_be_read_is_not_called_damaged(shared_folder: Path) -> None:
    write_groups(shared_folder, [[10]])
    files = LogFiles(shared_folder)
    (shared_folder / "part-000.parquet").chmod(0)
    with (
        an_ordinary_user(),
        pytest.raises(ValueError, match=r"part-000\.parquet: cannot be read \(.*Permission denied"),
        files.opened(files.files[0]),
    ):
        pass


@pytest.mark.parametrize("read", ["memory", "stream"])
def test_a_fault_midway_through_a_file_is_tried_again(flaky: Flaky, read: str) -> None:
    split = {"column": "digit", "train": {"max": 7}, "validation": 9}
    config = data_config("flaky:///log", split=split, lanes=2, max_bad_rows=1)
    name = "/log/day=1/part.parquet"

    def rows() -> list[int]:
        flaky.read_faults[name] = [OSError(errno.ESTALE, "Stale file handle")] * 2
        if read == "memory":
            found: list[int] = read_splits(config, SCHEMA, ("train",))["train"].column("number").to_pylist()
            return found
        source = stream(config)
        flaky.read_faults[name] = [OSError(errno.EIO, "Input/output error")] * 2
        return sorted(row for batch in source.batches(0, 0) for row in numbers_of(batch))

    assert sorted(rows()) == sorted([*range(8)] * 2)
    assert not flaky.read_faults[name]
    flaky.read_faults[name] = [OSError(errno.ESTALE, "Stale file handle")] * 20
    with pytest.raises(ValueError, match=r"part\.parquet: cannot be read \(.*Stale file handle"):
        read_splits(config, SCHEMA, ("train",))
    assert len(flaky.read_faults[name]) == 20 - 5
