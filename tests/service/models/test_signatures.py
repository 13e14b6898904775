"""--verify-key: what the service serves, refuses and takes up later, and what a bad file of keys does."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.artifact.artifact import MANIFEST, Artifact, write_manifest
from model.artifact.compiled import FORMAT_VERSION, folder_of
from model.artifact.signature import SigningKey
from service.settings import read_settings
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.items import tiny_items, write_items
from tests.key_pairs import key_pair
from tests.service.in_process import client_of, sample
from tests.service.running import RunningService
from training.publish.catalogue import build_catalogue
from training.publish.sign import sign


def entry_of(client: httpx.Client) -> dict[str, Any]:
    (entry,) = client.get("/v1/models").json()["models"]
    found: dict[str, Any] = entry
    return found


def test_only_signed_versions_serve_and_a_later_signature_or_key_is_taken_up(tmp_path: Path) -> None:
    (mine, mine_public), (other, other_public) = key_pair(tmp_path), key_pair(tmp_path, "other")
    models = tmp_path / "models"
    sign(publish_artifact(models), SigningKey(mine))
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(mine_public.read_bytes())

    with RunningService(models, "--verify-key", str(trusted)) as service:
        service.wait_ready()
        second = publish_artifact(models, seed=1)
        service.wait_for(lambda: entry_of(service.client)["versions"][0]["state"] == "quarantined")
        assert entry_of(service.client)["versions"][0]["reason"].startswith("tiny/2/manifest.sig: missing")
        assert service.client.post("/v1/rank", json=TINY_REQUEST).json()["model_version"] == "1"

        sign(second, SigningKey(other))
        service.wait_for(lambda: "no trusted key" in str(entry_of(service.client)["versions"][0]["reason"]))
        trusted.write_bytes(mine_public.read_bytes() + other_public.read_bytes())  # a rotation, without a restart
        service.wait_for(lambda: entry_of(service.client)["default_version"] == "2")

        # The signing key is no longer trusted: what verified when it was loaded serves on, nothing new does.
        trusted.write_bytes(mine_public.read_bytes())
        sign(publish_artifact(models, seed=2), SigningKey(other))
        service.wait_for(lambda: entry_of(service.client)["versions"][0]["state"] == "quarantined")
        assert service.client.post("/v1/rank", json=TINY_REQUEST).json()["model_version"] == "2"


def test_an_unsigned_compiled_package_and_catalogue_are_left_out_with_the_reason(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    models = tmp_path / "models"
    version = publish_artifact(models)
    sign(version, SigningKey(private))
    build_catalogue(version, write_items(tmp_path / "items.parquet", tiny_items(10)), SigningKey(private))
    build_catalogue(version, write_items(tmp_path / "items.parquet", tiny_items(12)))
    folder = folder_of(Artifact.open(version))
    folder.mkdir()
    write_manifest(folder, {"format_version": FORMAT_VERSION, "files": {}})
    with client_of(models, verify_key=public) as client:
        entry = entry_of(client)
        assert entry["versions"][0]["state"] == "ready"
        assert entry["versions"][0]["engine"] == "torchscript"
        assert entry["versions"][0]["reason"].startswith("tiny/derived/1/compiled/manifest.sig: missing")
        assert (entry["catalogue"]["generation"], entry["catalogue"]["items"]) == (1, 10)
        assert entry["catalogue"]["reason"].startswith("tiny/derived/1/catalogue/2/manifest.sig: missing")
        assert sample(client, "ranking_model_load_total", result="compiled_refused") == 1
        assert sample(client, "ranking_model_load_total", result="catalogue_refused") == 1


def test_a_manifest_changed_with_its_checksum_is_refused(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    version = publish_artifact(tmp_path / "models")
    sign(version, SigningKey(private))
    content = json.loads((version / MANIFEST).read_text())
    del content["checksum"]
    write_manifest(version, {**content, "metrics": {}})  # a checksum alone would hold
    with client_of(tmp_path / "models", verify_key=public) as client:
        assert "no trusted key made this signature" in client.get("/readyz").json()["detail"]


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), (b"nonsense", "has no public key")])
def test_a_bad_file_of_keys_ends_the_program_with_one_line(
    tmp_path: Path, content: bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trusted.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        read_settings(["--models", str(tmp_path), "--verify-key", str(file)], {})
    assert ended.value.code == 2
    assert f"{file}: {said}" in capsys.readouterr().err
