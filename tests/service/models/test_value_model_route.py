"""PUT of one value model: in force at once, under the version that was seen, journaled, and nothing else touched."""

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from model.rollout.journal import Journal
from service.models import value_model_save
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of

FILE = "# Ours.\ndefault: {kind: weighted_sum, weights: {click: 1.0}}  # the first\n"
NEW = {"kind": "weighted_sum", "weights": {"like": 2.0}}


def tag(content: str) -> dict[str, str]:
    """The header that names a version of the file."""
    return {"If-Match": f'"{hashlib.sha256(content.encode()).hexdigest()}"'}


class Admin:
    """A service whose admin key is used."""

    def __init__(self, client: TestClient, models: Path) -> None:
        self.client = client
        self.folder = models / "tiny"

    def put(self, entry: str, body: Mapping[str, Any], headers: Mapping[str, str], key: str = "admin") -> Any:
        """The answer to a change."""
        path = f"/v1/admin/models/tiny/value_models/{entry}"
        return self.client.put(path, json=body, headers={"Authorization": f"Bearer {key}", **headers})

    @property
    def text(self) -> str:
        """The file as it is."""
        return (self.folder / "value_models.yaml").read_text()

    def journal(self) -> list[dict[str, Any]]:
        """The lines of the journal."""
        file = self.folder / "journal.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    """A model with a file of value models."""
    models = tmp_path / "models"
    publish_artifact(models)
    (models / "tiny/value_models.yaml").write_text(FILE)
    keys = [
        {"name": scope, "scopes": [scope], "sha256": hashlib.sha256(scope.encode()).hexdigest()}
        for scope in ("admin", "play")
    ]
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": keys}))
    with client_of(models, keys_file=tmp_path / "keys.yaml") as client:
        yield Admin(client, models)


def test_it_is_in_force_when_it_is_answered_and_leaves_the_rest(admin: Admin) -> None:
    answer = admin.put("likes", NEW, tag(FILE))
    assert answer.status_code == 200, answer.text
    assert admin.text == f"{FILE}likes: {{kind: weighted_sum, weights: {{like: 2.0}}}}\n"
    headers = {"Authorization": "Bearer admin"}
    ranked = admin.client.post("/v1/rank", json={**TINY_REQUEST, "value_model": "likes"}, headers=headers).json()
    versions = {one["name"]: one["version"] for one in answer.json()["value_models"]}
    assert ranked["value_model_version"] == versions["likes"]
    assert answer.headers["etag"] == tag(admin.text)["If-Match"]
    shown = admin.client.get("/v1/play/models", headers=headers).json()["models"][0]
    assert f'"{shown["value_models_sha256"]}"' == answer.headers["etag"]
    again = admin.put("default", NEW, {"If-Match": answer.headers["etag"]})
    assert again.status_code == 200
    assert "  # the first\n" in admin.text
    (first, second) = admin.journal()
    assert (first["step"], first["decision"], first["who"]) == ("value_models", "change", "key admin")
    assert first["versions"] == {"before": {"likes": None}, "after": {"likes": versions["likes"]}}
    assert second["versions"]["before"] == {"default": versions["default"]}
    # What is so already makes no entry.
    assert admin.put("default", NEW, tag(admin.text)).status_code == 200
    assert len(admin.journal()) == 2


def test_a_conflict_changes_nothing(admin: Admin) -> None:
    (admin.folder / "value_models.yaml").write_text(FILE + "# theirs\n")
    expected = {
        412: [tag(FILE), {"If-Match": "*"}, {"If-Match": '"x"'}, {"If-None-Match": "*"}],
        428: [{}, {"If-None-Match": '"x"'}],
    }
    for status, all_headers in expected.items():
        for headers in all_headers:
            assert admin.put("likes", NEW, headers).status_code == status
    assert admin.text == FILE + "# theirs\n"
    assert admin.journal() == []


def test_what_does_not_fit_is_refused_by_its_rule(admin: Admin) -> None:
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("likes", {"kind": "weighted_sum", "weights": {"lik": 1}}, "did you mean 'like'"),
        ("likes", {"kind": "expression", "formula": "1 / like"}, "like"),
        ("likes", {}, "key 'kind' is missing"),
        ("a%20b", NEW, "letters, digits"),
    ]
    for entry, body, said in bad:
        answer = admin.put(entry, body, tag(FILE))
        assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.text
    assert admin.put("likes", NEW, tag(FILE), key="play").status_code == 403
    assert (admin.text, admin.journal()) == (FILE, [])


def test_without_a_file_the_built_in_one_is_written_beside_it(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    key = {"name": "a", "scopes": ["admin"], "sha256": hashlib.sha256(b"admin").hexdigest()}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": [key]}))
    with client_of(tmp_path / "models", keys_file=tmp_path / "keys.yaml") as client:
        admin = Admin(client, tmp_path / "models")
        assert admin.put("likes", NEW, {"If-None-Match": "*"}).status_code == 200
    built_in = {"kind": "weighted_sum", "weights": {"click": 1.0, "like": 1.0}}
    assert yaml.safe_load(admin.text) == {"default": built_in, "likes": NEW}


def test_a_folder_that_cannot_be_written_is_said_in_words(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", read_only)
        answer = admin.put("likes", NEW, tag(FILE))
        assert (answer.status_code, "read-only here" in answer.json()["detail"]) == (409, True)
    with monkeypatch.context() as patch:
        patch.setattr(value_model_save, "replace_file", read_only)
        assert admin.put("likes", NEW, tag(FILE)).status_code == 409
    assert admin.text == FILE
    assert [entry["reasons"] for entry in admin.journal()] == [[], ["value_models.yaml could not be written"]]
    (admin.folder / "journal.jsonl").unlink()
    (admin.folder / "journal.jsonl").mkdir()
    answer = admin.put("likes", NEW, tag(FILE))
    assert (answer.status_code, "journal.jsonl cannot be written" in answer.json()["detail"]) == (500, True)
    assert admin.text == FILE
