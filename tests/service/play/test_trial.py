"""Routes of the page at /play, by HTTP: what they answer, what they leave behind, and who may ask."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from starlette.testclient import TestClient

from service.settings import Settings
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of, samples

WEIGHTS = {"click": 2.0, "like": -0.5}
SUM = {"kind": "weighted_sum", "weights": WEIGHTS}
FILES = ("/play", "/play/play.css", "/play/play.js", "/play/scores.js", "/play/view.js")


def trial(client: TestClient, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a trial."""
    answer = client.post("/v1/play/rank", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_trial_has_the_scores_of_a_request_in_its_order(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        answered = client.post("/v1/rank", json={**TINY_REQUEST, "explain": True}).json()
        tried = trial(client, {"request": TINY_REQUEST, "experts": True})
    ids = [tried["ids"][row] for row in tried["order"]]
    assert tried["ids"] == TINY_REQUEST["candidates"]["id"]
    assert ids == answered["candidates"]["id"]
    assert [tried["score"][row] for row in tried["order"]] == answered["candidates"]["score"]
    for output, given in answered["candidates"]["tasks"].items():
        assert [tried["answers"][output][row] for row in tried["order"]] == given
    for output, given in answered["explain"]["contributions"].items():
        assert [tried["contributions"][output][row] for row in tried["order"]] == given
    for level, there in zip(tried["experts"], answered["explain"]["expert_weights"], strict=True):
        assert [level["units"], level["experts"]] == [there["units"], there["experts"]]
        weights = np.array(level["weights"], np.float32)[tried["order"]]
        np.testing.assert_array_equal(weights, np.array(there["weights"], np.float32))
    assert tried["inputs"] == answered["explain"]["inputs"]
    assert tried["inputs"]["cut"] == {"history": 1}


def test_a_draft_is_scored_and_a_bad_one_is_refused_by_its_rule(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        tried = trial(client, {"request": TINY_REQUEST, "draft": SUM})
        formula = {"kind": "expression", "formula": "click * (1 + like)"}
        expressed = trial(client, {"request": TINY_REQUEST, "draft": formula})
        bad = [
            client.post("/v1/play/rank", json={"request": TINY_REQUEST, "draft": draft}).json()
            for draft in ({"kind": "weighted_sum", "weights": {"clik": 1}}, {"kind": "sum"}, {})
        ]
        unnamed = client.post("/v1/play/rank", json={"request": {**TINY_REQUEST, "value_model": "other"}}).json()
        nothing = client.post("/v1/play/rank", json={"request": 3, "drift": 1}).json()
    click, like = (np.float32(tried["answers"][name]).astype(np.float64) for name in WEIGHTS)
    # float64 sums of two terms, in either order.
    np.testing.assert_allclose(tried["score"], 2.0 * click - 0.5 * like, rtol=1e-15)
    np.testing.assert_allclose(expressed["score"], click * (1 + like), rtol=1e-15)
    assert tried["value_model"] == "draft"
    told = [problem["errors"][0]["message"] for problem in bad]
    assert [problem["errors"][0]["path"] for problem in bad] == ["draft"] * 3
    assert told[0] == "unknown task 'clik'; did you mean 'click'?"
    assert "unknown kind 'sum'" in told[1]
    assert "key 'kind' is missing" in told[2]
    assert unnamed["errors"][0]["path"] == "value_model"
    assert {fault["path"] for fault in nothing["errors"]} == {"request", "drift"}


def test_a_trial_leaves_no_impression_and_no_count_of_its_version(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    log = tmp_path / "log"
    log.mkdir()
    with client_of(tmp_path / "models", impression_log=log) as client:
        before = client.get("/metrics").text
        for _ in range(3):
            trial(client, {"request": TINY_REQUEST, "draft": SUM})
        counted = samples(client, "ranking_requests_total")
        after = client.get("/metrics").text
    assert counted[frozenset({("endpoint", "/v1/play/rank"), ("code", "200")})] == 3

    def of_models(text: str) -> list[str]:
        names = (
            "ranking_model_requests",
            "ranking_task_score",
            "ranking_combined",
            "ranking_candidates",
            "ranking_feature",
        )
        return [line for line in text.splitlines() if line.startswith(names) and "_created" not in line]

    assert of_models(after) == of_models(before)
    assert b"".join(file.read_bytes() for file in log.rglob("*.jsonl*")) == b""


def test_a_policy_makes_the_order(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    policy = {"filter": ["duration_ms <= 30000"]}
    (tmp_path / "tiny/policies.yaml").write_text(yaml.safe_dump({"short": policy}))
    with client_of(tmp_path) as client:
        shown = client.get("/v1/play/models").json()["models"][0]["versions"][0]
        tried = trial(client, {"request": {**TINY_REQUEST, "policy": "short"}})
        answered = client.post("/v1/rank", json={**TINY_REQUEST, "policy": "short"}).json()
    assert shown["policies"] == ["short"]
    assert [tried["ids"][row] for row in tried["order"]] == answered["candidates"]["id"]
    dropped = {stage: [tried["ids"][row] for row in rows] for stage, rows in tried["dropped"].items()}
    assert dropped == answered["dropped"]
    assert "b" in [identifier for ids in dropped.values() for identifier in ids]


def test_models_are_shown_with_what_may_be_tried(tmp_path: Path) -> None:
    for seed in (0, 1):
        publish_artifact(tmp_path, seed=seed)
    (tmp_path / "tiny/labels.yaml").write_text("{stable: 1, shadow: 2}")
    (tmp_path / "tiny/value_models.yaml").write_text(yaml.safe_dump({"default": SUM}))
    with client_of(tmp_path) as client:
        (model,) = client.get("/v1/play/models").json()["models"]
    assert (model["name"], model["default_version"]) == ("tiny", "1")
    assert [(one["version"], one["labels"]) for one in model["versions"]] == [("2", ["shadow"]), ("1", ["stable"])]
    first = model["versions"][1]
    assert {key: value for key, value in first["value_models"]["default"].items() if key != "version"} == SUM
    assert model["request"]["candidates"] == TINY_REQUEST["candidates"]
    assert {name: one["block"] for name, one in first["features"].items()} == {
        **dict.fromkeys(("user_id", "country", "history", "age_days", "tab"), "request"),
        **dict.fromkeys(("video_id", "tag", "topics", "duration_ms"), "candidate"),
    }


def test_the_shell_is_open_and_its_data_need_a_key_of_the_scope(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    keys = tmp_path / "keys.yaml"
    scopes = ("play", "score", "admin")
    entries = [
        {"name": scope, "scopes": [scope], "sha256": hashlib.sha256(scope.encode()).hexdigest()} for scope in scopes
    ]
    keys.write_text(yaml.safe_dump({"keys": entries}))
    with client_of(tmp_path / "models", keys_file=keys) as client:
        pages = [client.get(file) for file in FILES]
        assert [page.status_code for page in pages] == [200] * len(FILES)
        assert not any("tiny" in page.text or "user_id" in page.text for page in pages)
        for method, path, body in (
            ("GET", "/v1/play/models", None),
            ("POST", "/v1/play/rank", {"request": TINY_REQUEST}),
        ):
            statuses = {
                key: client.request(
                    method, path, json=body, headers={} if key is None else {"Authorization": f"Bearer {key}"}
                ).status_code
                for key in (None, "wrong", *scopes)
            }
            assert statuses == {None: 401, "wrong": 401, "score": 403, "play": 200, "admin": 200}
        assert client.post("/v1/rank", json=TINY_REQUEST, headers={"Authorization": "Bearer play"}).status_code == 403


def test_the_shell_loads_what_is_its_own_and_runs_nothing_else(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        page = client.get("/play")
        again = client.get("/play", headers={"If-None-Match": page.headers["etag"]})
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert (again.status_code, again.content) == (304, b"")


def test_it_can_be_off(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path, play="off") as client:
        assert {client.get(path).status_code for path in (*FILES, "/v1/play/models")} == {404}
        assert client.post("/v1/play/rank", json={"request": TINY_REQUEST}).status_code == 404
    with pytest.raises(ValueError, match="'on' or 'off'"):
        Settings.model_validate({"models": tmp_path, "play": "maybe"})
