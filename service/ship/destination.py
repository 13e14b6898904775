"""The place that logs are shipped to: a folder by its fsspec URL.

In: `file://`, `s3://`, `gs://` or any other URL whose client is installed. Out: files there, each whole under its name
or not there, with its sha256 beside it. A URL may hold a secret, so no message repeats it.
"""

import os
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from model.untrusted_files import fingerprint_of, open_regular, sha256_of

CHECKSUM = ".sha256"
_BLOCK = 2**20


class Destination:
    """The folder of one log, below the URL. What fails raises what the client of its store raises."""

    def __init__(self, url: str, name: str) -> None:
        self._system: Any
        self._system, root = url_to_fs(url)
        self._root = f"{root.rstrip('/')}/{name}"
        self._is_local = isinstance(self._system, LocalFileSystem)
        self._has_folder = False

    def has(self, name: str) -> bool:
        """True where a file of that name is there, which is whole."""
        self._system.invalidate_cache()
        found: bool = self._system.exists(f"{self._root}/{name}")
        return found

    def remove_part(self, name: str) -> None:
        """Remove what a copy left that was killed at its end: a store without renames moves by copying and removing."""
        part = self._part(name)
        if self._system.exists(part):
            self._system.rm_file(part)

    def copy(self, file: Path) -> None:
        """Copy a file, its checksum first. A copy of that name that is there is replaced by the same."""
        with open_regular(file) as source:
            size, digest = fingerprint_of(source).size_bytes, sha256_of(source)
            source.seek(0)
            part = self._part(file.name)
            with self._system.open(part, "wb") as sink:
                left = size
                while left and (block := source.read(min(_BLOCK, left))):
                    sink.write(block)
                    left -= len(block)
                if self._is_local:
                    sink.flush()
                    os.fsync(sink.fileno())
        copied = self._system.info(part)["size"]
        if copied != size:
            raise ValueError(f"{file.name}: {copied} bytes arrived of {size}; it is sent again")
        self.write(file.name + CHECKSUM, f"{digest}  {file.name}\n".encode())
        self._system.mv(part, f"{self._root}/{file.name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all."""
        part = self._part(name)
        self._system.pipe_file(part, content)
        self._system.mv(part, f"{self._root}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.has(name):
            self._system.rm_file(f"{self._root}/{name}")

    def _part(self, name: str) -> str:
        if not self._has_folder:
            self._system.makedirs(self._root, exist_ok=True)
            self._has_folder = True
        return f"{self._root}/.{name}.part"


def check_url(url: str) -> None:
    """Raise ValueError for a URL that no installed client opens."""
    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        fsspec.get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        raise ValueError(f"--ship: '{protocol}' cannot be opened ({error})") from None
