"""Candidates by id alone: scored as if their features had been sent, counted, and refreshed while the service runs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.metrics.metrics import LOOKUP_RESULTS, Metrics
from service.models.store import ModelStore
from service.replay.replay import main as replay
from tests.artifacts import TINY_REQUEST, publish_artifact, writable
from tests.items import Items, tiny_items, values_of, write_items
from tests.service.in_process import client_of, sample
from tests.service.running import RunningService
from training.publish.catalogue import build_catalogue

ITEMS = tiny_items(40)
# What sums kept in bfloat16 may change of an answer, above 1 relative to it.
TOLERANCE = 1e-3
# Float32 sums in another order.
SAME = 1e-5

Candidates = dict[str, Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build_catalogue(publish_artifact(folder / "models"), write_items(folder / "items.parquet", ITEMS))
    return folder / "models"


@pytest.fixture
def client(models: Path) -> Iterator[TestClient]:
    with client_of(models) as client:
        yield client


def ask(client: TestClient, candidates: Any) -> dict[str, dict[str, float]]:
    """Answers by candidate id, in either shape."""
    response = client.post("/v1/rank", json={"user": TINY_REQUEST["user"], "candidates": candidates})
    assert response.status_code == 200, response.text
    given = response.json()["candidates"]
    if isinstance(given, list):
        return {row["id"]: {**row["tasks"], "score": row["score"]} for row in given}
    columns = {**given["tasks"], "score": given["score"]}
    return {name: {key: column[n] for key, column in columns.items()} for n, name in enumerate(given["id"])}


def assert_close(got: dict[str, dict[str, float]], expected: dict[str, dict[str, float]], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, answers in expected.items():
        assert got[name] == pytest.approx(answers, rel=tolerance, abs=tolerance)


def named(positions: list[int], **features: list[Any]) -> Candidates:
    return {"id": [f"item-{n}" for n in positions], **({"features": features} if features else {})}


def sent(positions: list[int], **features: list[Any]) -> Candidates:
    return {"id": [f"item-{n}" for n in positions], "features": {**values_of(ITEMS, positions), **features}}


def lookups(client: TestClient) -> dict[str, float]:
    metric = "ranking_catalogue_lookups_total"
    return {result: sample(client, metric, model="tiny", result=result) for result in LOOKUP_RESULTS}


def test_ids_alone_score_as_their_features_do_in_both_shapes(client: TestClient) -> None:
    everyone = list(range(40))
    expected = ask(client, sent(everyone))
    assert len({answers["click"] for answers in expected.values()}) > 10
    assert_close(ask(client, named(everyone)), expected, TOLERANCE)
    assert_close(ask(client, {**named(everyone), "features": {}}), expected, TOLERANCE)
    assert_close(ask(client, {**named(everyone), "features": {"tag": [None] * 40}}), expected, TOLERANCE)
    assert_close(ask(client, [{"id": f"item-{n}"} for n in everyone]), expected, TOLERANCE)
    assert_close(ask(client, [{"id": f"item-{n}", "features": {}} for n in everyone]), expected, TOLERANCE)
    assert lookups(client)["known"] == 5 * 40
    # A request that sends every value is not looked up. One that sends nulls is.
    assert lookups(client)["overridden"] == 40


@pytest.mark.parametrize("features", [
    {"video_id": [99, 98, 97]},
    {"tag": ["y", "y", "y"], "duration_ms": [1.5, 2, 3]},
    {"topics": [[7, 7], [], [9]]},
    {"topics": [[], [], []], "video_id": [1, 2, 3]},
])  # fmt: skip
def test_a_feature_of_the_request_comes_before_the_catalogue_s(
    client: TestClient, features: dict[str, list[Any]]
) -> None:
    expected = ask(client, sent([3, 1, 2], **features))
    assert_close(ask(client, named([3, 1, 2], **features)), expected, SAME)
    rows = [
        {"id": f"item-{n}", "features": {name: column[k] for name, column in features.items()}}
        for k, n in enumerate([3, 1, 2])
    ]
    assert_close(ask(client, rows), expected, SAME)
    assert lookups(client)["overridden"] >= 6


def test_a_catalogue_speaks_for_its_candidates_where_a_request_is_strict(models: Path) -> None:
    user = {**TINY_REQUEST["user"]}
    with client_of(models, unknown_candidates="defaults") as client:
        for candidates in (named([3, 1]), named([3, 1], tag=["x", None]), [{"id": "item-3"}]):
            request = {"user": user, "candidates": candidates, "strict": True}
            assert client.post("/v1/rank", json=request).status_code == 200
        stranger = {"id": ["item-3", "nobody"], "features": {"tag": ["x", "y"], "topics": [None, [7]]}}
        refused = client.post("/v1/rank", json={"user": user, "candidates": stranger, "strict": True})
        assert [fault["path"] for fault in refused.json()["errors"]] == [
            "candidates.features.video_id",
            "candidates.features.duration_ms",
        ]
        assert "does not know candidates.id[1]" in refused.json()["detail"]
        rows = [{"id": "item-3"}, {"id": "nobody", "features": {"tag": "y", "topics": None, "duration_ms": 3}}]
        refused = client.post("/v1/rank", json={"user": user, "candidates": rows, "strict": True})
        assert [fault["path"] for fault in refused.json()["errors"]] == ["candidates[1].features.video_id"]


def test_a_null_takes_the_catalogue_s_value_and_an_empty_list_does_not(client: TestClient) -> None:
    full = next(n for n, topics in enumerate(ITEMS["topics"]) if topics == [7])
    expected = ask(client, sent([full], duration_ms=[5.0]))
    for features in (
        {"duration_ms": [5.0], "topics": [None]},
        {"duration_ms": [5.0], "tag": [None]},
        {"duration_ms": [5.0]},
    ):
        assert_close(ask(client, named([full], **features)), expected, SAME)
    emptied = ask(client, named([full], duration_ms=[5.0], topics=[[]]))
    assert_close(emptied, ask(client, sent([full], duration_ms=[5.0], topics=[[]])), SAME)
    assert emptied != expected


def test_known_and_inline_candidates_meet_in_one_request(client: TestClient) -> None:
    new = {"video_id": 12, "tag": "new", "topics": [8], "duration_ms": 100.0}
    mixed = [
        {"id": "item-5"},
        {"id": "new-1", "features": new},
        {"id": "item-6", "features": {"tag": "y"}},
        {"id": "item-7", "features": {}},
        {"id": "new-2", "features": {"video_id": 12}},
    ]
    values = values_of(ITEMS, [5, 6, 7])
    item = [{name: column[n] for name, column in values.items()} for n in range(3)]
    inline = [
        {"id": "item-5", "features": item[0]},
        {"id": "new-1", "features": new},
        {"id": "item-6", "features": {**item[1], "tag": "y"}},
        {"id": "item-7", "features": item[2]},
        {"id": "new-2", "features": {"video_id": 12}},
    ]
    assert_close(ask(client, mixed), ask(client, inline), TOLERANCE)


def missing(client: TestClient, feature: str) -> float:
    return sample(client, "ranking_feature_missing_total", model="tiny", feature=feature)


def test_what_no_one_gives_is_missing(client: TestClient) -> None:
    ask(client, named(list(range(40))))
    assert {name: missing(client, name) for name in ("video_id", "tag", "topics", "duration_ms")} == {
        "video_id": 0, "tag": 0, "topics": 0, "duration_ms": 0
    }  # fmt: skip
    # The catalogue fills what the first one leaves out. The second is unknown.
    ask(client, [{"id": "item-1", "features": {"video_id": 4}}, {"id": "new", "features": {"tag": "x"}}])
    assert {name: missing(client, name) for name in ("video_id", "tag", "topics", "duration_ms")} == {
        "video_id": 1, "tag": 0, "topics": 1, "duration_ms": 1
    }  # fmt: skip


@pytest.mark.parametrize("as_rows", [False, True])
def test_unknown_candidates_are_refused_by_name(client: TestClient, as_rows: bool) -> None:
    ids = ["item-1", "nobody", "item-2", "", "item-3 "]
    candidates: Any = [{"id": given} for given in ids] if as_rows else {"id": ids}
    response = client.post("/v1/rank", json={"user": {}, "candidates": candidates})
    assert response.status_code == 422
    paths = [fault["path"] for fault in response.json()["errors"]]
    assert paths == [("candidates[{}].id" if as_rows else "candidates.id[{}]").format(n) for n in (1, 3, 4)]
    assert "not in the catalogue" in response.json()["detail"]
    assert "and 2 more" in response.json()["detail"]
    assert lookups(client) == {"known": 2, "overridden": 0, "inline": 0, "unknown": 3}


def test_unknown_candidates_take_defaults_where_the_service_is_set_so(models: Path) -> None:
    with client_of(models, unknown_candidates="defaults") as client:
        got = ask(client, {"id": ["item-1", "nobody"]})
        expected = ask(client, {**sent([1]), "id": ["item-1"]})
        assert_close({"item-1": got["item-1"]}, expected, TOLERANCE)
        defaults = {"id": "inline", "features": {"video_id": None}}
        assert_close({"inline": got["nobody"]}, ask(client, [defaults]), TOLERANCE)
        assert lookups(client)["unknown"] == 2
        assert missing(client, "video_id") == 2


def test_without_a_catalogue_features_are_needed(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        for candidates, path in (
            ({"id": ["a"]}, "candidates.features"),
            ([{"id": "a", "features": {}}, {"id": "b"}], "candidates[1].features"),
        ):
            response = client.post("/v1/rank", json={"user": {}, "candidates": candidates})
            assert response.status_code == 422
            [fault] = response.json()["errors"]
            assert fault["path"] == path
            assert "no catalogue" in fault["message"]
        assert client.get("/v1/models").json()["models"][0]["catalogue"] is None
        assert sample(client, "ranking_catalogue_items", model="tiny") == 0
        assert set(lookups(client).values()) == {0}


def loads(store: ModelStore, result: str) -> float | None:
    return store._metrics.registry.get_sample_value("ranking_model_load_total", {"result": result})


def test_a_bad_generation_leaves_the_one_before_and_says_why(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path / "models")
    path = write_items(tmp_path / "items.parquet", tiny_items(5))
    build_catalogue(version, path)
    store = ModelStore(tmp_path / "models", Metrics(), poll_seconds=3600, torch_threads=1)
    store.refresh()
    entry = store.entry("tiny")["catalogue"]
    assert (entry["generation"], entry["items"], entry["reason"]) == (1, 5, None)

    second = build_catalogue(version, write_items(tmp_path / "items.parquet", tiny_items(7)))
    sums = (second / "sums.bin").read_bytes()
    writable(second)
    (second / "sums.bin").write_bytes(sums[:-1])
    for _ in range(3):  # it is tried once
        store.refresh()
    entry = store.entry("tiny")["catalogue"]
    assert (entry["generation"], entry["items"]) == (1, 5)
    assert "sums.bin" in entry["reason"]
    assert str(tmp_path) not in entry["reason"]
    assert (loads(store, "catalogue_ready"), loads(store, "catalogue_refused")) == (1, 1)

    (second / "sums.bin").write_bytes(sums)  # a copy that was still under way
    store.refresh()
    assert store.entry("tiny")["catalogue"]["generation"] == 1  # it may still be
    store.refresh()
    assert store.entry("tiny")["catalogue"] == {**entry, "generation": 2, "items": 7, "reason": None, "created": (
        store.entry("tiny")["catalogue"]["created"]
    )}  # fmt: skip
    begun = store.find("tiny", None).scorer.catalogue
    build_catalogue(version, path)
    shutil.rmtree(second)
    store.refresh()
    assert store.entry("tiny")["catalogue"]["generation"] == 3
    assert begun is not None
    assert begun.rows_of(["item-6"]).tolist() == [6]


def test_a_catalogue_of_another_model_version_is_not_served(tmp_path: Path) -> None:
    first = publish_artifact(tmp_path / "models")
    build_catalogue(first, write_items(tmp_path / "items.parquet", tiny_items(5)))
    publish_artifact(tmp_path / "models", seed=1)
    derived = first.parent / "derived"
    shutil.copytree(derived / "1", derived / "2")
    with client_of(tmp_path / "models") as client:
        entry = client.get("/v1/models").json()["models"][0]
        assert entry["default_version"] == "2"
        assert entry["catalogue"]["generation"] is None
        assert "made for another model version" in entry["catalogue"]["reason"]
        response = client.post("/v1/rank", json={"user": {}, "candidates": {"id": ["item-1"]}})
        assert response.status_code == 422


def test_new_items_are_served_without_a_restart(tmp_path: Path) -> None:
    items: Items = tiny_items(4)
    version = publish_artifact(tmp_path / "models")
    build_catalogue(version, write_items(tmp_path / "items.parquet", items))
    with RunningService(tmp_path / "models", "--workers", "2") as service:
        service.wait_ready()
        newest = {"user": TINY_REQUEST["user"], "candidates": {"id": ["item-8"]}}
        assert service.client.post("/v1/rank", json=newest).status_code == 422
        build_catalogue(version, write_items(tmp_path / "items.parquet", tiny_items(9)))

        def is_known() -> bool:
            status = service.client.post("/v1/rank", json=newest).status_code
            assert status in (200, 422)
            return status == 200

        service.wait_for(is_known)


def test_explanations_of_ids_are_those_of_their_features(client: TestClient) -> None:
    new = {"video_id": 12, "tag": "new", "topics": [8], "duration_ms": 100.0}
    inline = [
        {"id": f"item-{n}", "features": {name: values[n] for name, values in ITEMS.items() if name != "id"}}
        for n in (3, 1)
    ]
    by_id = [{"id": "item-3"}, {"id": "item-1", "features": {}}]
    extra = [{"id": "new", "features": new}]
    for more in ([], extra):
        expected, got = (
            client.post(
                "/v1/rank", json={"user": TINY_REQUEST["user"], "candidates": [*rows, *more], "explain": True}
            ).json()["explain"]
            for rows in (inline, by_id)
        )
        assert len(expected["expert_weights"][0]["weights"]) == 2 + len(more)
        for level, other in zip(expected["expert_weights"], got["expert_weights"], strict=True):
            # Weights come from features in fp32 whichever way they arrive. Contributions from scores by rounded sums.
            np.testing.assert_allclose(other["weights"], level["weights"], rtol=1e-6)
        for task, values in expected["contributions"].items():
            np.testing.assert_allclose(got["contributions"][task], values, atol=TOLERANCE)


def test_what_a_catalogue_gave_is_not_rescored_by_a_version_as_if_it_were_missing(models: Path, tmp_path: Path) -> None:
    with client_of(models, impression_log=tmp_path) as client:
        ask(client, named([1, 2, 3]))
        whole: dict[str, list[Any]] = {
            "video_id": [1, 2, 3],
            "duration_ms": [1.0, 2.0, 3.0],
            "topics": [[], [7], [8]],
            "tag": ["a", "b", "c"],
        }
        ask(client, sent([1, 2, 3], **whole))
    shutil.copytree(models / "tiny" / "1", tmp_path / "models" / "tiny" / "1")
    publish_artifact(tmp_path / "models", seed=1)
    for flags, unscorable in (([], 0), (["--version", "1"], 0), (["--version", "2"], 1)):
        out = tmp_path / "report.json"
        assert replay([str(tmp_path), "--models", str(tmp_path / "models"), "--json", str(out), *flags]) == 0
        requests = json.loads(out.read_text())["requests"]
        assert (requests["replayed"], requests["unscorable"]) == (2 - unscorable, unscorable)
