"""Files of every kind at the door: only a regular file of a bearable size is read, and nothing blocks."""

import errno
import hashlib
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from model import untrusted_files
from model.untrusted_files import PolledFile, fingerprint, fingerprints, open_regular, read_bytes, sha256_of


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_fifo, "a FIFO"),
        (_socket, "a socket"),
        (_device, "a device"),
        (Path.mkdir, "a folder"),
        (_link_to_fifo, "FIFO"),
    ],
)
def test_only_regular_files_are_opened(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    make(tmp_path / "file")
    for read in (open_regular, read_bytes):
        with pytest.raises(OSError, match="not a regular file") as caught:
            read(tmp_path / "file")
        assert words in str(caught.value.strerror)


def test_a_regular_file_swapped_for_a_fifo_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    status = os.stat(file)
    file.unlink()
    os.mkfifo(file)
    # As if the swap had come between stat and open: the opened descriptor decides.
    monkeypatch.setattr("model.untrusted_files.os.stat", lambda _: status)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="a FIFO"):
        open_regular(file)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_link_that_leads_nowhere_or_round(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "dangling")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        read_bytes(tmp_path / "one")
    (tmp_path / "content").write_bytes(b"linked")
    (tmp_path / "good").symlink_to("content")
    assert read_bytes(tmp_path / "good") == b"linked"


def test_a_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(OSError, match=f"{1 << 40} bytes, at most 1048576 are read"):
        read_bytes(file)
    file.write_bytes(b"x" * 100)
    assert read_bytes(file, 100) == b"x" * 100
    with pytest.raises(OSError, match="100 bytes, at most 99 are read"):
        read_bytes(file, 99)


@pytest.mark.parametrize("change", [b"longer than it was", b"cut"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: bytes) -> None:
    file, fingerprint_of = tmp_path / "file", untrusted_files.fingerprint_of
    taken: list[untrusted_files.Fingerprint] = []

    def fingerprint_then_write(opened: BinaryIO) -> untrusted_files.Fingerprint:
        found = fingerprint_of(opened)
        if not taken:
            file.write_bytes(change)
        taken.append(found)
        return found

    file.write_bytes(b"content")
    monkeypatch.setattr(untrusted_files, "fingerprint_of", fingerprint_then_write)
    with pytest.raises(OSError, match="changed while it was read"):
        read_bytes(file)
    assert read_bytes(file) == change


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_errors_of_the_disk_come_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    (tmp_path / "file").write_bytes(b"content")
    polled = PolledFile(tmp_path / "file")
    assert polled.poll()
    monkeypatch.setattr("model.untrusted_files.os.open", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        read_bytes(tmp_path / "file")
    assert polled.poll()
    assert polled.content == b"content"
    assert os.strerror(number) in (polled.error or "")
    monkeypatch.undo()
    assert polled.poll()
    assert polled.error is None


def test_hashing_survives_a_file_that_is_cut(tmp_path: Path) -> None:
    file, content = tmp_path / "table", os.urandom(3 << 20)
    file.write_bytes(content)
    with open_regular(file) as opened:
        assert sha256_of(opened) == hashlib.sha256(content).hexdigest()
    with open_regular(file) as opened:
        opened.read(1)
        os.truncate(file, mmap.PAGESIZE)
        assert sha256_of(opened) != hashlib.sha256(content[1:]).hexdigest()


def test_a_fingerprint_knows_what_size_and_mtime_do_not(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for file, content in ((one, b"aaa"), (two, b"bbb")):
        file.write_bytes(content)
        os.utime(file, ns=(0, 0))
    assert fingerprint(one) != fingerprint(two)
    before = fingerprint(one)
    one.write_bytes(b"ccc")
    os.utime(one, ns=(0, 0))
    assert fingerprint(one) != before
    assert fingerprint(tmp_path / "absent") is None
    assert fingerprints([two, tmp_path / "absent", one]) == (("one", fingerprint(one)), ("two", fingerprint(two)))


def test_a_polled_file_is_compared_by_its_bytes(tmp_path: Path) -> None:
    """A ConfigMap's swap: the same name, size and time, another file behind a link."""
    for version, content in (("1", b"weight: 1"), ("2", b"weight: 2")):
        (tmp_path / version).write_bytes(content)
        os.utime(tmp_path / version, ns=(0, 0))
    link = tmp_path / "file.yaml"
    polled = PolledFile(link)
    assert not polled.poll()  # it never was there
    assert (polled.content, polled.error) == (None, None)
    link.symlink_to("1")
    assert polled.poll()
    assert not polled.poll()
    link.unlink()
    link.symlink_to("2")
    assert polled.poll()
    assert polled.content == b"weight: 2"
    (tmp_path / "2").unlink()
    assert polled.poll()
    assert polled.content == b"weight: 2"
    assert polled.error == f"{link}: missing"
    assert not polled.poll()  # told once


def test_a_polled_link_that_dangles_from_the_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to("nothing")
    polled = PolledFile(tmp_path / "file")
    assert polled.poll()
    assert polled.error == f"{tmp_path / 'file'}: missing"


def test_no_descriptor_is_inherited(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with open_regular(tmp_path / "file") as file:
        number = file.fileno()
        code = f"import os, sys; sys.exit(os.path.exists('/proc/self/fd/{number}'))"
        assert subprocess.run([sys.executable, "-S", "-c", code], close_fds=False, check=False).returncode == 0
