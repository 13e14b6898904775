"""Experiments of users by id: the unit is the key or a stored value, and the arm sets value model and policy."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import xxhash
import yaml
from starlette.testclient import TestClient

from tests.artifacts import publish_artifact
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, request_lines, sample
from tests.service.open_inference.tensors import INFER
from tests.service.state.stores import STATE, put_user, sqlite_url, store_at

VIDEOS, DURATIONS = [3, 9, 4], [8000.0, 31000.0, 500.0]
CANDIDATES = {"id": list("abc"), "features": {"video_id": VIDEOS, "duration_ms": DURATIONS}}
WEIGHTS = {"default": {"click": 1.0}, "bold": {"like": 1.0}}
# A user by this key has country and history in the store. Nobody has the other one.
KNOWN, UNKNOWN = "17", "18"
NAMES = [f"e{number}" for number in range(100)]
Ask = Callable[[TestClient, str], dict[str, Any]]
Serve = Callable[..., AbstractContextManager[TestClient]]


def experiment(name: str, layer: str, **arm: str) -> dict[str, Any]:
    """An experiment of all units of a layer."""
    return {
        "name": name,
        "layer": layer,
        "buckets": {"from": 0, "to": 10_000},
        "start": "2026-01-01",
        "horizon": "24h",
        "realised": {"click": 1.0},
        "arms": {"control": {}, "other": arm},
    }


def arm_of(name: str, unit: str) -> str:
    """The arm by the documented rule: of two equal ones `control` is the first by name."""
    return "control" if xxhash.xxh3_64_intdigest(f"{name}\0{unit}".encode()) % 10_000 < 5000 else "other"


def salted(prefix: str, unit: str, arm: str) -> str:
    """A name that gives a unit the arm."""
    return next(f"{prefix}{name}" for name in NAMES if arm_of(f"{prefix}{name}", unit) == arm)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    publish_artifact(models, user="user_id")
    put_file(models, "value_models", {name: {"kind": "weighted_sum", "weights": of} for name, of in WEIGHTS.items()})
    put_file(models, "policies", {"unseen": {"seen": {"field": "history", "by": "video_id", "within": "24h"}}})
    (models / "tiny" / "state.yaml").write_text(STATE)
    store = store_at(tmp_path / "state.db")
    put_user(store, KNOWN, {"country": "fr"}, {"history": [(9, time.time() - 60), (3, time.time())]})
    store.close()
    return models


def put_file(models: Path, name: str, content: object) -> None:
    (models / "tiny" / f"{name}.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def serve(models: Path, tmp_path: Path) -> Serve:
    def serving(**more: Any) -> AbstractContextManager[TestClient]:
        # A time that only a machine that stands still exceeds.
        return client_of(models, state=sqlite_url(tmp_path / "state.db"), state_timeout_ms=5000, **more)

    return serving


def by_json(key: str) -> Ask:
    def ask(client: TestClient, user: str) -> dict[str, Any]:
        answer = client.post("/v1/rank", json={"user": {key: user}, "candidates": CANDIDATES})
        assert answer.status_code == 200, answer.text
        content = answer.json()
        order = ["abc".index(one) for one in content["candidates"]["id"]]
        return {"order": order, "arms": content.get("experiments", {}), **content}

    return ask


def by_tensors(key: str) -> Ask:
    def ask(client: TestClient, user: str) -> dict[str, Any]:
        inputs: list[dict[str, Any]] = [
            {"name": key, "datatype": "BYTES", "shape": [1], "data": [user]},
            {"name": "video_id", "datatype": "INT64", "shape": [3], "data": VIDEOS},
            {"name": "duration_ms", "datatype": "FP32", "shape": [3], "data": DURATIONS},
        ]
        if key == "user_id":
            inputs[0] |= {"datatype": "INT64", "data": [int(user)]}
        answer = client.post(INFER, json={"inputs": inputs, "outputs": [{"name": "place"}]})
        assert answer.status_code == 200, answer.text
        content = answer.json()
        (place,) = (one["data"] for one in content["outputs"])
        named = content["parameters"]
        arms = {
            name.removeprefix("experiments."): arm for name, arm in named.items() if name.startswith("experiments.")
        }
        order = sorted((row for row in range(3) if place[row] >= 0), key=lambda row: place[row])
        return {**named, "arms": arms, "order": order}

    return ask


@pytest.mark.parametrize("wire", [by_json, by_tensors])
@pytest.mark.parametrize("key", ["user_id", "visitor"])
def test_the_unit_is_the_key_or_a_value_of_the_store(
    models: Path, serve: Serve, wire: Callable[[str], Ask], key: str
) -> None:
    """The key need be no feature, and a layer's unit may be a field that the request leaves out."""
    (models / "tiny" / "state.yaml").write_text(STATE.replace("user_id", key))
    keyed = {arm: salted("keyed", KNOWN, arm) for arm in ("control", "other")}
    stored = {arm: salted("stored", "fr", arm) for arm in ("control", "other")}
    layers = {name: {"salt": f"of-{name}", "unit": key} for name in keyed.values()}
    layers |= {name: {"salt": f"of-{name}", "unit": "country"} for name in stored.values()}
    names = [keyed["control"], *stored.values()]
    experiments = [
        experiment(keyed["other"], keyed["other"], value_model="bold"),
        *(experiment(one, one) for one in names),
    ]
    put_file(models, "experiments", {"layers": layers, "experiments": experiments})
    ask = wire(key)
    with serve() as client:
        assert client.get("/v1/models/tiny").json()["experiments_error"] is None
        answer = ask(client, KNOWN)
        assert answer["arms"] == {name: arm for dealt in (keyed, stored) for arm, name in dealt.items()}
        assert answer["value_model"] == "bold"
        # Whom the store does not know has the key as unit, and no country.
        assert ask(client, UNKNOWN)["arms"] == {name: arm_of(name, UNKNOWN) for name in keyed.values()}
        for name in stored.values():
            labels = {"model": "tiny", "experiment": name, "reason": "no_unit"}
            assert sample(client, "ranking_experiment_left_out_total", **labels) == 1


@pytest.mark.parametrize("wire", [by_json, by_tensors])
def test_the_policy_of_an_arm_orders_by_the_stored_history(
    models: Path, serve: Serve, wire: Callable[[str], Ask], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The arm's policy drops what the history of the same user has. The other arm's users get all."""
    wanted = ("other", "control")
    name = next(one for one in NAMES if (arm_of(one, KNOWN), arm_of(one, UNKNOWN)) == wanted)
    layers = {"ranking": {"salt": "s", "unit": "user_id"}}
    put_file(models, "experiments", {"layers": layers, "experiments": [experiment(name, "ranking", policy="unseen")]})
    (tmp_path / "log").mkdir()
    (tmp_path / "key").write_text("k" * 32)
    caplog.set_level(logging.INFO)
    ask = wire("user_id")
    with serve(impression_log=tmp_path / "log", user_hash_key=tmp_path / "key") as client:
        treated, control = ask(client, KNOWN), ask(client, UNKNOWN)
        assert (treated["arms"], control["arms"]) == ({name: "other"}, {name: "control"})
        assert treated["order"] == [VIDEOS.index(4)]
        assert treated["policy"] == "unseen"
        assert sorted(control["order"]) == [0, 1, 2]
        assert "policy" not in control
    first, second = lines_of(tmp_path / "log")
    assert [first["policy"], second["policy"]] == ["unseen", None]
    assert [first["experiments"], second["experiments"]] == [{name: "other"}, {name: "control"}]
    ranked = [given for given in request_lines(caplog) if "experiments" in given]
    assert [given.get("policy") for given in ranked] == ["unseen", None]
    assert [given["experiments"] for given in ranked] == [{name: "other"}, {name: "control"}]
    assert [given["state"] for given in ranked] == ["hit", "miss"]
