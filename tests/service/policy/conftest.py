"""The tiny model with the policies of a test file (POLICIES), and a service of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.artifacts import publish_artifact
from tests.service.in_process import client_of


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    publish_artifact(folder)
    (folder / "tiny" / "policies.yaml").write_text(request.module.POLICIES)
    return folder


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[TestClient]:
    with client_of(models) as client:
        yield client
