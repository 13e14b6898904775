"""Disks that are full: a file system in memory of a few pages, where this user may mount one."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.deploy.programs import program


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """`folder` as a disk of that size. Skips where it cannot be mounted."""
    folder.mkdir()
    command = [program("mount", "mount"), "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a file system in memory cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run([program("umount", "mount"), "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all room that is left. Returns the file that takes it."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):  # the disk is full
        while True:
            file.write(b"x" * 4096)
    return filler
