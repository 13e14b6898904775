"""The folder that preparing writes.

impressions-<split>.parquet hold the rows; prepared.json says what they were made from.
"""

import hashlib
import json
from collections.abc import Sequence
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
