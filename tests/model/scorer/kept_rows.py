"""Kept rows of a tiny published version (tests/artifacts.py): drawn by a seed, with labels, in a file of its own.

Shapes: R rows, O outputs.
"""

import json
from pathlib import Path

import numpy as np

from model.artifact.artifact import MANIFEST, file_entry, write_manifest
from model.artifact.quality_rows import QUALITY_ROWS, QualityRows, sets_of
from model.scorer.scorer import Scorer
from tests.artifacts import writable
from tests.items import tiny_items, values_of

ROWS = 150


def tiny_rows(version: Path, rows: int = ROWS) -> QualityRows:
    """Rows of a version's features, with labels of which a fifth does not count."""
    random, encoder = np.random.default_rng(4), Scorer.load(version, "torchscript").encoder
    users = {
        "user_id": random.integers(0, 10**9, rows).tolist(),
        "country": random.choice(["de", "fr", "it"], rows).tolist(),
        "history": [random.integers(0, 50, int(random.integers(4))).tolist() for _ in range(rows)],
        "age_days": random.uniform(0, 900, rows).tolist(),
        "tab": random.integers(0, 4, rows).tolist(),
    }
    items = values_of(tiny_items(rows), list(range(rows)))
    items["duration_ms"] = random.uniform(0, 1e5, rows).tolist()
    items["video_id"] = random.integers(0, 10**9, rows).tolist()
    request = encoder.encode("request", encoder.columns("request", users, rows), rows, as_served=True).block
    candidate = encoder.encode("candidate", encoder.columns("candidate", items, rows), rows, as_served=True).block
    labels = random.integers(0, 2, (rows, 3)).astype(np.float32)
    labels[random.random((rows, 3)) < 0.2] = np.nan
    return QualityRows(request, candidate, labels, sets_of(rows))


def keep_rows(version: Path, content: bytes | None = None, *, labels: bool = True) -> Path:
    """Add the file to a published version, as an export writes it. Returns the version's folder. Without `labels` none
    of a row counts."""
    writable(version)
    rows = tiny_rows(version)
    if not labels:
        rows.labels_RT[:] = np.nan
    (version / QUALITY_ROWS).write_bytes(rows.content() if content is None else content)
    manifest = json.loads((version / MANIFEST).read_text())
    files = {**manifest["files"], QUALITY_ROWS: file_entry(version / QUALITY_ROWS)}
    write_manifest(version, {**{key: value for key, value in manifest.items() if key != "checksum"}, "files": files})
    return version
