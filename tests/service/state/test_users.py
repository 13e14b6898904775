"""Requests by id: the answer is that of the same features sent along, whatever the store does."""

import gzip
import hashlib
import hmac
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.state.store import StoreError, Written
from service.state.user_state import UserState, store_name
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import wait_for
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, sample
from tests.service.state.stores import STATE, put_user, sqlite_url, store_at

USER = TINY_REQUEST["user"]
CANDIDATES = TINY_REQUEST["candidates"]
KEPT = {"country": "fr", "age_days": 12.5}
HASH_KEY = b"a key of thirty-two bytes, or so."
HISTORY = [(3, 10.0), (9, 11.0), (4, 12.0)]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_artifact(tmp_path / "models")
    (tmp_path / "models" / "tiny" / "state.yaml").write_text(STATE)
    return tmp_path / "models"


@pytest.fixture
def client(models: Path, tmp_path: Path) -> Iterator[TestClient]:
    store = store_at(tmp_path / "state.db")
    put_user(store, "17", KEPT, {"history": HISTORY})
    store.close()
    # A time that only a machine that stands still exceeds.
    with client_of(models, state=sqlite_url(tmp_path / "state.db"), state_timeout_ms=5000) as client:
        yield client


def rank(client: TestClient, user: dict[str, Any], **more: Any) -> Any:
    answer = client.post("/v1/rank", json={"user": user, "candidates": CANDIDATES, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def candidates_of(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer["candidates"]
    return found


def lookups(client: TestClient, result: str) -> float:
    return sample(client, "ranking_state_lookups_total", model="tiny", result=result)


INLINE = {"user_id": 17, "country": "fr", "age_days": 12.5, "history": [3, 9, 4], "tab": 1}


@pytest.mark.parametrize("key", [17, "17"])
def test_a_request_by_id_is_answered_as_with_the_features_inline(client: TestClient, key: object) -> None:
    by_id = candidates_of(rank(client, {"user_id": key, "tab": 1}))
    assert by_id == candidates_of(rank(client, INLINE))
    assert by_id != candidates_of(rank(client, {"user_id": 18, "tab": 1}))
    assert (lookups(client, "hit"), lookups(client, "miss")) == (2, 1)


def test_what_the_request_says_comes_first_null_included(client: TestClient) -> None:
    given = {"user_id": 17, "tab": 1, "country": None, "history": [8]}
    expected = {"user_id": 17, "tab": 1, "country": None, "age_days": 12.5, "history": [8]}
    assert candidates_of(rank(client, given)) == candidates_of(rank(client, expected))
    nobody = candidates_of(rank(client, {"user_id": None, "tab": 1}))
    assert nobody == candidates_of(rank(client, {"tab": 1}))
    assert lookups(client, "miss") == 0, "who says no user is not looked up"


def test_the_user_is_found_wherever_the_body_has_it(client: TestClient) -> None:
    """The body is searched for the key before it is parsed. What that finds is not always the user."""
    expected = candidates_of(rank(client, INLINE))
    user = {"user_id": 17, "tab": 1}
    last = {"request_id": "r-1", "candidates": CANDIDATES, "user": user}
    bodies = [
        json.dumps(last),
        json.dumps({"request_id": '"user_id": 18', **last}),
        json.dumps({**last, "request_id": "a"}).replace('"user_id"', '"user\\u005fid"'),
        json.dumps({**last, "candidates": CANDIDATES}).replace('"user_id": 17', '"user_id" :\n "17"'),
    ]
    for body in bodies:
        answer = client.post("/v1/rank", content=body)
        assert answer.status_code == 200, answer.text
        assert candidates_of(answer.json()) == expected, body
    packed = client.post("/v1/rank", content=gzip.compress(bodies[0].encode()), headers={"Content-Encoding": "gzip"})
    assert candidates_of(packed.json()) == expected


def test_explain_strict_and_missing_count_values_of_the_store(client: TestClient) -> None:
    before = sample(client, "ranking_feature_missing_total", model="tiny", feature="age_days")
    answer = rank(client, {"user_id": 17, "tab": 1}, explain=True)
    assert answer["explain"]["inputs"]["state"] == {"country": 1, "age_days": 1, "history": 3}
    assert "age_days" not in answer["explain"]["inputs"]["missing"]
    assert sample(client, "ranking_feature_missing_total", model="tiny", feature="age_days") == before
    # Of a user whom the store does not know it still answers for its fields: a lost store refuses no request.
    for key in (17, 18):
        rank(client, {"user_id": key, "tab": 1}, strict=True)
    refused = client.post("/v1/rank", json={"user": {"user_id": 17}, "candidates": CANDIDATES, "strict": True})
    assert [fault["path"] for fault in refused.json()["errors"]] == ["user.tab"]
    nobody = client.post("/v1/rank", json={"user": {"tab": 1}, "candidates": CANDIDATES, "strict": True})
    paths = [fault["path"] for fault in nobody.json()["errors"]]
    assert paths == ["user.user_id", "user.country", "user.history", "user.age_days"]


@pytest.mark.parametrize(("key", "rule"), [("", "1 to 256 bytes"), ("x" * 10_000, "10000"), (1.5, "string or an int")])
def test_a_key_that_is_none_is_refused_by_its_place(client: TestClient, key: object, rule: str) -> None:
    refused = client.post("/v1/rank", json={"user": {"user_id": key}, "candidates": CANDIDATES})
    assert refused.status_code == 422
    (fault,) = refused.json()["errors"]
    assert fault["path"] == "user.user_id"
    assert rule in fault["message"]


def test_a_key_need_not_be_a_feature(models: Path, tmp_path: Path) -> None:
    (models / "tiny" / "state.yaml").write_text("key: visitor\nfields: [country]\n")
    store = store_at(tmp_path / "state.db")
    put_user(store, "\u00e9\u4e16 \U0001f600", {"country": "fr"})
    store.close()
    with client_of(models, state=sqlite_url(tmp_path / "state.db"), state_timeout_ms=5000) as client:
        by_id = candidates_of(rank(client, {"visitor": "\u00e9\u4e16 \U0001f600", "tab": 1}))
        assert by_id == candidates_of(rank(client, {"country": "fr", "tab": 1}))
        assert lookups(client, "hit") == 1
    with client_of(models) as client:  # without a store its key is still no feature
        assert candidates_of(rank(client, {"visitor": "a", "tab": 1})) == candidates_of(rank(client, {"tab": 1}))


def test_values_of_a_wrong_type_take_defaults_and_are_counted(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_at(tmp_path / "state.db")
    put_user(store, "1", {"country": 7, "age_days": 12.5}, {"history": [("no id", 1.0)]})
    name = store_name("tiny", "2")
    store.change([name], lambda _: {name: Written(b"\xc1 no MessagePack", 1000)})
    store.close()
    with client_of(models, state=sqlite_url(tmp_path / "state.db"), state_timeout_ms=5000) as client:
        for _ in range(2):
            found = candidates_of(rank(client, {"user_id": 1, "tab": 1}))
            assert found == candidates_of(rank(client, {"user_id": 1, "tab": 1, "age_days": 12.5, "country": None}))
        for feature, count in (("country", 2), ("history", 4), ("age_days", 0)):
            assert sample(client, "ranking_state_wrong_values_total", model="tiny", feature=feature) == count
        candidates_of(rank(client, {"user_id": 2, "tab": 1}))
    named = [record for record in caplog.records if record.message == "a value of the state store is wrong"]
    assert sorted(record.fields["feature"] for record in named) == ["", "country", "history"]  # type: ignore[attr-defined]
    assert "no id" not in caplog.text


def test_of_a_list_beyond_keep_the_newest_entries_are_read(models: Path, tmp_path: Path) -> None:
    """A `keep` that was made smaller leaves longer lists in the store, until an event or PUT cuts them."""
    store = store_at(tmp_path / "state.db")
    put_user(store, "17", KEPT, {"history": [(7, 8.0), (8, 9.0), *HISTORY]})
    store.close()
    with client_of(models, state=sqlite_url(tmp_path / "state.db"), state_timeout_ms=5000) as client:
        answer = rank(client, {"user_id": 17, "tab": 1}, explain=True)
        assert candidates_of(answer) == candidates_of(rank(client, INLINE))
        assert answer["explain"]["inputs"]["state"]["history"] == len(HISTORY)


def test_state_yaml_is_taken_up_without_a_restart(client: TestClient, models: Path) -> None:
    def is_refused() -> bool:
        return bool(client.get("/v1/models/tiny").json()["state_error"])

    (models / "tiny" / "state.yaml").write_text("key: user_id\nfields: [contry]\n")
    while not is_refused():
        pass
    assert "country" in client.get("/v1/models/tiny").json()["state_error"]
    assert candidates_of(rank(client, {"user_id": 17, "tab": 1})) == candidates_of(rank(client, INLINE))
    (models / "tiny" / "state.yaml").write_text("key: user_id\nfields: [age_days]\n")
    while is_refused():
        pass
    one = {"user_id": 17, "tab": 1, "age_days": 12.5}
    assert candidates_of(rank(client, {"user_id": 17, "tab": 1})) == candidates_of(rank(client, one))


def test_open_inference_takes_the_key_too(client: TestClient) -> None:
    def infer(**user: Any) -> list[float]:
        inputs = [{"name": name, **tensor} for name, tensor in user.items()]
        inputs.append({"name": "duration_ms", "datatype": "FP32", "shape": [2], "data": [8000.0, 31000.5]})
        answer = client.post("/v2/models/tiny/infer", json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
        scores: list[float] = next(one["data"] for one in answer.json()["outputs"] if one["name"] == "score")
        return scores

    key = {"datatype": "INT64", "shape": [1], "data": [17]}
    inline = infer(
        user_id=key,
        country={"datatype": "BYTES", "shape": [1], "data": ["fr"]},
        age_days={"datatype": "FP32", "shape": [1], "data": [12.5]},
        **{
            "history.values": {"datatype": "INT64", "shape": [3], "data": [3, 9, 4]},
            "history.lengths": {"datatype": "INT64", "shape": [1], "data": [3]},
        },
    )
    assert np.array_equal(infer(user_id=key), inline)
    assert lookups(client, "hit") == 2


def test_a_store_that_hangs_costs_its_features_and_no_request(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that wait for it leave their scoring thread: there is one, and others are answered meanwhile."""
    goes_on = threading.Event()

    def hanging(*_: object) -> list[bytes | None]:
        goes_on.wait()
        raise StoreError("it hung")

    monkeypatch.setattr("service.state.sqlite_store.SqliteStore.read", hanging)
    with client_of(models, state=sqlite_url(tmp_path / "state.db"), state_timeout_ms=20) as client:
        defaults = candidates_of(rank(client, {"user_id": None, "tab": 1}))
        for number in range(100):
            assert candidates_of(rank(client, {"user_id": number % 50, "tab": 1}))
            if sample(client, "ranking_state_breaker_open"):
                break
        else:
            raise AssertionError("the breaker never opened")
        assert lookups(client, "timeout") >= 5
        rank(client, {"user_id": 17, "tab": 1})
        assert lookups(client, "error") == 1, "an open breaker begins no look-up"
        assert candidates_of(rank(client, {"user_id": None, "tab": 1})) == defaults
        goes_on.set()
        monkeypatch.setattr("service.state.sqlite_store.SqliteStore.read", lambda _, names: [None] * len(names))
        while sample(client, "ranking_state_breaker_open"):
            pass
        rank(client, {"user_id": 17, "tab": 1})
        assert lookups(client, "miss") == 1


def test_the_impression_log_has_the_values_as_they_were_used(models: Path, tmp_path: Path) -> None:
    """A later write to the store changes no line, and the user's hash is by the key of state.yaml."""
    (models / "tiny" / "state.yaml").write_text("key: visitor\nfields: [country, age_days]\n")
    (tmp_path / "impressions").mkdir()
    (tmp_path / "user.key").write_bytes(HASH_KEY)
    store = store_at(tmp_path / "state.db")
    put_user(store, "17", KEPT)
    logs = {"impression_log": tmp_path / "impressions", "user_hash_key": tmp_path / "user.key"}
    with client_of(models, state=sqlite_url(tmp_path / "state.db"), state_timeout_ms=5000, **logs) as client:
        rank(client, {"visitor": 17, "tab": 1, "country": None})
        put_user(store, "17", {"country": "de"})
        rank(client, {"visitor": "17", "tab": 1})
    store.close()
    lines = lines_of(tmp_path / "impressions")
    assert [line["user"] for line in lines] == [
        {"age_days": 12.5, "tab": 1, "country": None},
        {"country": "de", "tab": 1},
    ]
    expected = hmac.new(HASH_KEY, b"17", hashlib.sha256).hexdigest()[:32]
    assert [line["user_hash"] for line in lines] == [expected] * 2


def test_a_locked_state_file_costs_no_request(client: TestClient, tmp_path: Path) -> None:
    """Another program may hold the file for itself. Readers of a log in WAL mode do not wait for a writer."""
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert candidates_of(rank(client, {"user_id": 17, "tab": 1})) == candidates_of(rank(client, INLINE))
    other.close()


def test_a_state_file_that_is_cut_costs_no_request(models: Path, tmp_path: Path) -> None:
    """Users on pages that are gone take defaults, and it is counted. The file put back is found again."""
    (models / "tiny" / "state.yaml").write_text(STATE.replace("user_id", "visitor"))
    path = tmp_path / "state.db"
    store = store_at(path)
    blob = UserState({**KEPT, "other": "x" * 3_000}, {}).encoded()
    names = [store_name("tiny", str(number)) for number in range(1_000)]
    store.change(names, lambda _: dict.fromkeys(names, Written(blob, 1000)))
    store.close()  # the last connection, which leaves everything in the one file
    whole = path.read_bytes()
    assert len(whole) > 2**21, "more than SQLite keeps in memory"
    with client_of(models, state=sqlite_url(path), state_timeout_ms=5000) as client:
        known, defaults = (candidates_of(rank(client, {"tab": 1, **user})) for user in ({"visitor": 0}, {}))
        assert known == candidates_of(rank(client, {"tab": 1, **KEPT})) != defaults
        os.truncate(path, 20_000)
        answers = [candidates_of(rank(client, {"visitor": number, "tab": 1})) for number in range(0, 1_000, 50)]
        assert lookups(client, "error") > 0
        assert defaults in answers
        assert all(answer in (known, defaults) for answer in answers)
        path.write_bytes(whole)
        wait_for(lambda: candidates_of(rank(client, {"visitor": 999, "tab": 1})) == known)
