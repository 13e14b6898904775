"""The folder that preparing writes.

impressions-<split>.parquet have the rows. prepared.json says what they were made from, how many rows each split and day
has, and what was left out.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
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
    # Rows that were read and are in no file, by the reason.
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def rows_by_split(self) -> dict[str, int]:
        return {name: table.num_rows for name, table in self.splits.items()}

    @property
    def rows_by_date(self) -> dict[str, int]:
        """By day, where the rows have one."""
        dates = [table["date"] for table in self.splits.values() if "date" in table.column_names]
        counted = [pair for column in dates for pair in pc.value_counts(column).to_pylist()]
        return {str(pair["values"]): pair["counts"] for pair in sorted(counted, key=lambda pair: int(pair["values"]))}

    def write(self, folder: Path) -> None:
        """Write the Parquet files and the manifest into `folder`."""
        for name, table in self.splits.items():
            pa.parquet.write_table(table, folder / f"impressions-{name}.parquet", compression="zstd")
        manifest = {
            "dataset": self.dataset,
            "licence": self.licence,
            "attribution": self.attribution,
            "rows": self.rows_by_split,
            "rows_by_date": self.rows_by_date,
            "left_out": self.left_out,
            "source_format": self.source_format,
            "sources": [
                {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)} for path in self.sources
            ],
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
