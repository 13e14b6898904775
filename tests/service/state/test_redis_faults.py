"""A service beside a real Redis that fails or changes under it: the answers to requests, and what is said of them."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from starlette.testclient import TestClient

from service.state.redis_store import RedisStore
from service.state.user_state import store_name
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import wait_for
from tests.service.in_process import client_of, request_lines, sample
from tests.service.state.redis_servers import RedisServer, no_redis, redis_server
from tests.service.state.stores import STATE, put_user

CANDIDATES = TINY_REQUEST["candidates"]
PASSWORD = "a-secret-that-nobody-may-see"
WRITER = "key of a writer"
# A time that only a machine that stands still exceeds.
PATIENT_MS = 5000


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_artifact(tmp_path / "models")
    (tmp_path / "models" / "tiny" / "state.yaml").write_text(STATE.replace("user_id", "visitor"))
    digest = hashlib.sha256(WRITER.encode()).hexdigest()
    (tmp_path / "keys.yaml").write_text(f"keys:\n- {{name: w, scopes: [state, score, metrics], sha256: {digest}}}\n")
    return tmp_path / "models"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


def rank(client: TestClient, user: object, **values: Any) -> Any:
    body = {"user": {"visitor": user, "tab": 1, **values}, "candidates": CANDIDATES}
    answer = client.post("/v1/rank", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["candidates"]


def lookups(client: TestClient, result: str) -> float:
    return sample(client, "ranking_state_lookups_total", model="tiny", result=result)


def logged_results(caplog: pytest.LogCaptureFixture) -> list[str | None]:
    """The `state` of the lines of scoring requests, in order."""
    return [one.get("state") for one in request_lines(caplog) if one["endpoint"] == "/v1/rank"]


def redis_name(user: str) -> bytes:
    return b"feedrank:user:" + store_name("tiny", user).hex().encode()


def test_what_is_no_state_of_a_user_is_a_result_of_its_own(
    models: Path, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A state of another format, one that is cut, and bytes that are none. Then a list where a blob should be."""
    caplog.set_level(logging.INFO)
    store = RedisStore(redis.url, 5.0)
    put_user(store, "1", {"country": "fr", "age_days": 12.5}, {"history": [(3, 1.0)]})
    (whole,) = store.read([store_name("tiny", "1")])
    assert whole is not None
    with (
        Redis.from_url(redis.url) as other,
        client_of(models, state=redis.url, state_timeout_ms=PATIENT_MS) as client,
    ):
        defaults = rank(client, None)
        assert rank(client, 1) == rank(client, 1, country="fr", age_days=12.5, history=[3])
        for blob in (b"\x93\x02" + whole[2:], whole[: len(whole) // 2], b"\xc1", b""):
            other.set(redis_name("9"), blob)
            assert rank(client, 9) == defaults, blob
        assert lookups(client, "unreadable") == 4
        other.delete(redis_name("9"))
        other.rpush(redis_name("9"), whole)
        assert rank(client, 9) == defaults
        put_user(store, "9", {"country": "fr"})
        assert rank(client, 9) == rank(client, 9, country="fr")
        assert logged_results(caplog)[3:8] == ["unreadable"] * 4 + ["miss"]
        assert sample(client, "ranking_state_breaker_open") == 0, "the store answers"
    named = [record for record in caplog.records if record.message == "a value of the state store is wrong"]
    assert len(named) == 1


def test_a_redis_that_hangs_is_a_timeout_then_an_error_in_the_log_line(
    models: Path, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    put_user(RedisStore(redis.url, 5.0), "1", {"country": "fr"})
    with client_of(models, state=redis.url, state_timeout_ms=20) as client:
        known = rank(client, 1, country="fr")
        wait_for(lambda: rank(client, 1) == known and logged_results(caplog)[-1] == "hit")
        redis.pause()
        first = len(logged_results(caplog))
        wait_for(lambda: bool(rank(client, 1)) and sample(client, "ranking_state_breaker_open") == 1)
        assert rank(client, 1) == rank(client, None)
        results = logged_results(caplog)[first:]
        assert results[0] == "timeout"
        assert results[-2:] == ["error", None]
        redis.go_on()
        wait_for(lambda: rank(client, 1) == known)


def test_a_redis_that_is_away_at_the_start_is_found_when_it_comes(models: Path, tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    with client_of(models, state=server.url, state_timeout_ms=PATIENT_MS) as client:
        assert rank(client, 1) == rank(client, None)
        assert lookups(client, "error") == 1
        server.start()
        try:
            put_user(RedisStore(server.url, 5.0), "1", {"country": "fr"})
            known = rank(client, 1, country="fr")
            wait_for(lambda: rank(client, 1) == known)
        finally:
            server.kill()


def test_a_wrong_password_is_in_no_line_answer_or_metric(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with redis_server(tmp_path, password="another") as server:
        url = f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"
        with client_of(models, state=url, state_timeout_ms=PATIENT_MS, keys_file=tmp_path / "keys.yaml") as client:
            client.headers["Authorization"] = f"Bearer {WRITER}"
            assert rank(client, 1) == rank(client, None)
            assert lookups(client, "error") == 1
            put = client.put("/v1/models/tiny/users/1", json={"fields": {"country": "fr"}})
            assert (put.status_code, "password" in put.json()["detail"]) == (503, True)
            pages = [put, *(client.get(path) for path in ("/metrics", "/v1/models", "/v1/models/tiny", "/readyz"))]
    reasons = [record.__dict__.get("fields", {}).get("reason") for record in caplog.records]
    assert "the state store refuses the user name or the password" in reasons
    for text in (*(page.text for page in pages), caplog.text, *(str(record.__dict__) for record in caplog.records)):
        assert PASSWORD not in text


def test_a_full_redis_takes_no_user_and_still_answers(models: Path, tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        settings = {"state_timeout_ms": PATIENT_MS, "keys_file": tmp_path / "keys.yaml"}
        with client_of(models, state=server.url, **settings) as client, Redis.from_url(server.url) as other:
            client.headers["Authorization"] = f"Bearer {WRITER}"
            put_user(RedisStore(server.url, 5.0), "1", {"country": "fr"})
            with suppress(Exception):
                for number in range(1_000):
                    other.set(f"other {number}", b"x" * 20_000)
            put = client.put("/v1/models/tiny/users/2", json={"fields": {"country": "fr"}})
            assert (put.status_code, "is full" in put.json()["detail"]) == (503, True)
            assert rank(client, 1) == rank(client, 1, country="fr")


def test_a_store_that_answers_nonsense_costs_its_features(models: Path) -> None:
    with no_redis() as url, client_of(models, state=url, state_timeout_ms=PATIENT_MS) as client:
        assert rank(client, 1) == rank(client, None)
        assert lookups(client, "error") == 1
