"""Users by HTTP: what is put is read, asked by and deleted, by who may, and every fault has its place."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.state.store import StoreError, StoreFullError
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of
from tests.service.state.stores import STATE, sqlite_url

WRITER, SCORER = "key of a writer", "key of a scorer"
USER = "/v1/models/tiny/users/17"
HISTORY = [{"value": value, "time": f"2026-11-29T20:15:0{value}.000Z"} for value in (3, 4, 9)]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_artifact(tmp_path / "models")
    (tmp_path / "models" / "tiny" / "state.yaml").write_text(STATE)
    hashes = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in (("state", WRITER), ("score", SCORER))}
    keys = [f"- {{name: {scope}, scopes: [{scope}], sha256: {digest}}}" for scope, digest in hashes.items()]
    (tmp_path / "keys.yaml").write_text("keys:\n" + "\n".join(keys) + "\n")
    return tmp_path / "models"


@pytest.fixture
def client(models: Path, tmp_path: Path) -> Iterator[TestClient]:
    url = sqlite_url(tmp_path / "state.db")
    with client_of(models, state=url, keys_file=tmp_path / "keys.yaml", state_timeout_ms=5000) as client:
        client.headers["Authorization"] = f"Bearer {WRITER}"
        yield client


def ranked(client: TestClient, **user: Any) -> Any:
    body = {"user": {"tab": 1, **user}, "candidates": TINY_REQUEST["candidates"]}
    answer = client.post("/v1/rank", json=body, headers={"Authorization": f"Bearer {SCORER}"})
    assert answer.status_code == 200, answer.text
    return answer.json()["candidates"]


def faults(answer: Any) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {fault["path"]: fault["message"] for fault in answer.json()["errors"]}


def test_what_is_put_is_read_and_asked_by(client: TestClient) -> None:
    put = client.put(USER, json={"fields": {"country": "fr", "age_days": None}, "append": {"history": HISTORY}})
    assert (put.status_code, put.json()) == (200, {"key": "17", "cut": {}})
    assert client.get(USER).json() == {"key": "17", "fields": {"country": "fr"}, "append": {"history": HISTORY}}
    assert ranked(client, user_id=17) == ranked(client, user_id=17, country="fr", history=[3, 4, 9])
    client.put(USER, json={"fields": {"age_days": 12.5}})  # all fields, and the histories that are named
    assert client.get(USER).json() == {"key": "17", "fields": {"age_days": 12.5}, "append": {"history": HISTORY}}
    assert client.delete(USER).json() == {"key": "17", "deleted": True}
    assert client.delete(USER).json() == {"key": "17", "deleted": False}
    assert client.get(USER).status_code == 404
    assert ranked(client, user_id=17) == ranked(client, user_id=17, country=None)


def test_entries_beyond_keep_are_cut_and_said(client: TestClient) -> None:
    five = [{"value": value, "time": f"2026-11-29T20:15:0{value}.000Z"} for value in (5, 1, 4, 2, 3)]
    assert client.put(USER, json={"append": {"history": five}}).json()["cut"] == {"history": 2}
    assert [entry["value"] for entry in client.get(USER).json()["append"]["history"]] == [3, 4, 5]


@pytest.mark.parametrize("key", ["a b", "\u00e9\u4e16\U0001f600", "a/b?c#d%", "x" * 256, ".."])
def test_keys_may_be_any_text(client: TestClient, key: str) -> None:
    path = "/v1/models/tiny/users/" + "".join(f"%{byte:02x}" for byte in key.encode())
    assert client.put(path, json={"fields": {"country": "fr"}}).json()["key"] == key
    assert client.get(path).json()["fields"] == {"country": "fr"}


def test_faults_have_their_place(client: TestClient) -> None:
    assert "257" in faults(client.put(USER + "x" * 255, json={}))["path.key"]
    assert client.put("/v1/models/tiny/users/", json={}).status_code in (404, 422)
    assert "did you mean 'country'" in faults(client.put(USER, json={"fields": {"contry": "fr"}}))["fields.contry"]
    assert set(faults(client.put(USER, json={"fields": [], "user": 1}))) == {"fields", "user"}
    assert set(faults(client.put(USER, json={"fields": {"country": 7}}))) == {"fields.country"}
    assert set(faults(client.put(USER, json={"append": {"history": [{"value": "v"}]}}))) == {"append.history"}
    assert set(faults(client.put(USER, json={"append": {"history": [3]}}))) == {"append.history"}
    assert client.put(USER, content=b"{").status_code == 400
    assert client.put(USER, content=b" " * 300_000).status_code == 413
    assert client.put("/v1/models/other/users/1", json={}).status_code == 404


def test_only_keys_with_the_scope_may(client: TestClient, models: Path, tmp_path: Path) -> None:
    for method in ("PUT", "GET", "DELETE"):
        headers = {"Authorization": f"Bearer {SCORER}"}
        assert client.request(method, USER, headers=headers, json={}).status_code == 403
    assert client.get("/v1/models/tiny").status_code == 403  # a writer of users may not score
    with client_of(models, state=sqlite_url(tmp_path / "other.db")) as open_client:
        refused = open_client.get(USER)
        assert (refused.status_code, "no keys" in refused.json()["detail"]) == (403, True)
    with client_of(models, keys_file=tmp_path / "keys.yaml") as bare:
        refused = bare.get(USER, headers={"Authorization": f"Bearer {WRITER}"})
        assert (refused.status_code, "--state" in refused.json()["detail"]) == (404, True)


@pytest.mark.parametrize("error", [StoreError("the state store cannot be reached"), StoreFullError("it is full")])
def test_a_store_at_fault_is_said_and_may_be_tried_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: StoreError
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("service.state.sqlite_store.SqliteStore.change", fail)
    answer = client.put(USER, json={"fields": {"country": "fr"}})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert str(error) in answer.json()["detail"]
