"""The folder that preparing writes: its contents, and how it appears all at once.

impressions-<split>.parquet hold the rows; prepared.json says what they were made from.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

MANIFEST = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset, before it is written."""

    dataset: str
    splits: dict[str, pa.Table]
    source_format: str
    sources: Sequence[Path]
    licence: str
    attribution: str

    @property
    def rows_by_split(self) -> dict[str, int]:
        return {name: table.num_rows for name, table in self.splits.items()}

    def write(self, folder: Path) -> None:
        """Write the Parquet files and the manifest into `folder`."""
        for name, table in self.splits.items():
            pa.parquet.write_table(table, folder / f"impressions-{name}.parquet", compression="zstd")
        manifest = {
            "dataset": self.dataset,
            "licence": self.licence,
            "attribution": self.attribution,
            "rows": self.rows_by_split,
            "source_format": self.source_format,
            "sources": [
                {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)} for path in self.sources
            ],
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def publish(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` that takes the place of `out` on success and is removed on failure.

    An existing `out` is replaced if it is empty or itself a prepared folder; anything else is a ValueError.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; --out names a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise ValueError(f"{out}: is not empty and has no {MANIFEST}, so it is not replaced; name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        new = staging / "new"
        new.mkdir()
        yield new
        for path in new.iterdir():
            _flush(path)
        if out.exists():
            os.rename(out, staging / "old")
        try:
            os.rename(new, out)
        except OSError:
            if (staging / "old").exists():
                os.rename(staging / "old", out)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
