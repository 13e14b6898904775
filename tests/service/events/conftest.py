"""A published model and the folder of an event log."""

from pathlib import Path

import pytest

from tests.artifacts import publish_artifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    publish_artifact(tmp_path / "models")
    folder = tmp_path / "events"
    folder.mkdir()
    return folder
