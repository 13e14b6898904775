"""Published folders whose files only checksums are read of: quick to make, for tests of publishing and reading.

In: a models folder, and what differs from an empty manifest. Out: `<models>/small/<version>/`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.artifact.artifact import FITTED, GOLDEN, RANKER, REFERENCE, REFERENCE_FEATURES, publish
from tests.artifacts import tiny_schema, writable

FILES = (RANKER, FITTED, GOLDEN, REFERENCE, REFERENCE_FEATURES)
SMALL = {RANKER: b"a ranker", FITTED: b"{}", GOLDEN: b"{}", REFERENCE: b"[1]", REFERENCE_FEATURES: b"{}"}


def write_small(folder: Path) -> None:
    for name, content in SMALL.items():
        (folder / name).write_bytes(content)


def publish_small(
    models: Path,
    write_files: Callable[[Path], None] = write_small,
    check: Callable[[Path], None] = lambda _: None,
    **changes: Any,
) -> Path:
    """Publish files that only their checksums are read of: quick."""
    content: dict[str, Any] = {
        "network": {}, "training": {}, "metrics": {}, "libraries": {}, "name": "small", **changes
    }  # fmt: skip
    return writable(publish(models, write_files=write_files, schema=tiny_schema(), check=check, **content))
