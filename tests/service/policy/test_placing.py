"""Policies of requests: what is answered, explained, logged and counted, against the scores and a sort by hand."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.replay import replay
from tests.artifacts import publish_artifact
from tests.items import tiny_items, write_items
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, sample
from tests.service.open_inference.tensors import INFER, tensors_of
from tests.service.state.stores import put_user, sqlite_url, store_at
from training.publish.catalogue import build_catalogue

POLICIES = """
default:
  filter: ["duration_ms >= 1000"]
  dedup: [video_id]
  boost: [{when: "duration_ms > 20000", multiply: 3}]
plain: {}
nothing: {filter: ["duration_ms < 0"]}
failing: {filter: ["log(duration_ms - 9000) >= 0", "1 / (duration_ms - 31000) < 9 ** 9 ** 9"],
  boost: [{when: "sqrt(-duration_ms) > 0 or 0 / (click - click) > 1", multiply: 3}]}
fresh: {seen: {field: history, by: video_id, within: 24h}}
capped: {select: {cap: {per: tag, count: 1, within: 2}}}
drawn: {select: {explore: {temperature: 1, head: 3, share: 1}}}
diverse: {select: {mmr: {lambda: 0.5, head: 4, by: video_id}}}
"""
CANDIDATES: dict[str, Any] = {
    "id": ["a", "b", "c", "d", "e"],
    "features": {
        "video_id": [3, 9, 3, 5, None],
        "tag": ["x", "x", "x", "y", None],
        "topics": [[7], [], [8], [9, 7], []],
        "duration_ms": [8000.0, 31000.0, 9000.0, 500.0, 21000.0],
    },
}
QUESTION: dict[str, Any] = {"user": {"user_id": 17, "country": "fr", "tab": 1}, "candidates": CANDIDATES}


def ask(client: TestClient, **more: Any) -> dict[str, Any]:
    response = client.post("/v1/rank", json={**QUESTION, **more})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def scores(client: TestClient) -> dict[str, float]:
    """The combined score of each candidate."""
    answered = ask(client, policy="plain")["candidates"]
    assert answered["score"] == sorted(answered["score"], reverse=True)
    return dict(zip(answered["id"], answered["score"], strict=True))


def test_the_default_policy_orders_what_names_none(client: TestClient) -> None:
    score = scores(client)
    least = min(score.values())
    # d is too short. Of a and c, which are one video, the better one stays.
    gone = min("a", "c", key=lambda one: score[one])
    boosted = {one: (score[one] - least) * (3 if one in "be" else 1) for one in "abce" if one != gone}
    answer = ask(client)
    assert answer["candidates"]["id"] == sorted(boosted, key=lambda one: -boosted[one])
    assert answer["candidates"]["score"] == [score[one] for one in answer["candidates"]["id"]]
    assert answer["dropped"] == {"filter": ["d"], "dedup": [gone]}
    assert answer["policy"] == "default"
    rows = [
        {"id": one, "features": {name: column[n] for name, column in CANDIDATES["features"].items()}}
        for n, one in enumerate(CANDIDATES["id"])
    ]
    as_rows = ask(client, candidates=rows, top_k=2)
    assert [row["id"] for row in as_rows["candidates"]] == answer["candidates"]["id"][:2]
    assert as_rows["dropped"] == answer["dropped"]


def test_explain_says_which_stage_moved_a_candidate(client: TestClient) -> None:
    answer = ask(client, explain=True)
    told = answer["explain"]["policy"]
    ids, score = answer["candidates"]["id"], scores(client)
    by_score = sorted(ids, key=lambda one: -score[one])
    assert told["places"] == {
        "score": [by_score.index(one) for one in ids],
        "boost": list(range(len(ids))),
        "select": list(range(len(ids))),
    }
    assert told["moved_by"] == [["boost"] if by_score.index(one) != n else [] for n, one in enumerate(ids)]
    assert len(answer["explain"]["contributions"]["click"]) == len(ids)


@pytest.mark.parametrize("rows", [False, True], ids=["columns", "rows"])
def test_an_answer_whose_candidates_are_all_dropped_is_empty(client: TestClient, rows: bool) -> None:
    candidates: Any = CANDIDATES
    if rows:
        candidates = [{"id": one, "features": {"duration_ms": 5.0}} for one in CANDIDATES["id"]]
    before = sample(client, "ranking_policy_empty_answers_total", model="tiny", policy="nothing")
    answer = ask(client, candidates=candidates, policy="nothing", explain=True)
    assert answer["candidates"] == (
        [] if rows else {"id": [], "score": [], "tasks": {"click": [], "like": [], "play_time": []}}
    )
    assert {stage: sorted(ids) for stage, ids in answer["dropped"].items()} == {"filter": CANDIDATES["id"]}
    assert answer["explain"]["policy"]["moved_by"] == []
    assert sample(client, "ranking_policy_empty_answers_total", model="tiny", policy="nothing") == before + 1


def test_a_formula_that_fails_is_true_of_nobody(client: TestClient) -> None:
    """Of 8, 31, 9, .5 and 21 s the first condition has logarithms of negative numbers and of 0, the second divides by
    0, and the boost has neither a root nor a quotient."""
    answer = ask(client, policy="failing")
    assert (answer["candidates"]["id"], sorted(answer["dropped"]["filter"])) == (["e"], ["a", "b", "c", "d"])


def test_a_policy_that_is_not_there_is_refused_with_those_that_are(client: TestClient) -> None:
    response = client.post("/v1/rank", json={**QUESTION, "policy": "bold"})
    assert response.status_code == 422
    [fault] = response.json()["errors"]
    names = "default, plain, nothing, failing, fresh, capped, drawn, diverse"
    assert fault == {"path": "policy", "message": f"no such policy, 'bold'; model 'tiny' has: {names}"}
    response = client.post("/v1/rank", json={**QUESTION, "policy": 3})
    assert response.json()["errors"][0]["path"] == "policy"


def test_without_policies_nothing_is_said_of_them(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        assert not {"policy", "policy_version", "dropped"} & ask(client).keys()
        response = client.post("/v1/rank", json={**QUESTION, "policy": "default"})
        assert response.json()["errors"][0]["message"] == "no such policy, 'default'; model 'tiny' has: none"
        assert client.get("/v1/models/tiny").json()["policies"] == []


def test_drops_and_relaxations_are_counted_by_stage(client: TestClient) -> None:
    def counted(name: str, **labels: str) -> float:
        return sample(client, f"ranking_policy_{name}_total", model="tiny", **labels)

    dropped = counted("dropped", policy="default", stage="dedup")
    relaxed, requests = counted("relaxed", policy="capped"), counted("requests", policy="capped")
    ask(client)
    # Three of five candidates are of one tag, so that the third has no place that is not beside another.
    only_x = {name: column[:3] for name, column in CANDIDATES["features"].items()}
    ask(client, policy="capped", candidates={"id": ["a", "b", "c"], "features": only_x})
    assert counted("dropped", policy="default", stage="dedup") == dropped + 1
    assert counted("relaxed", policy="capped") == relaxed + 2
    assert counted("requests", policy="capped") == requests + 1


def test_the_log_has_policy_order_and_propensities(models: Path, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with client_of(models, impression_log=tmp_path / "log") as client:
        answers = [ask(client, policy=policy) for policy in ("plain", "drawn", "nothing")]
    lines = lines_of(tmp_path / "log")
    for line, answer in zip(lines, answers, strict=True):
        assert (line["policy"], line["policy_version"]) == (answer["policy"], answer["policy_version"])
        assert [CANDIDATES["id"][row] for row in line["order"]] == answer["candidates"]["id"]
    assert lines[0]["propensity"] is None
    assert len(lines[1]["propensity"]) == 5
    assert all(0 < one < 1 for one in lines[1]["propensity"][:3])
    assert lines[1]["propensity"][3:] == [1.0, 1.0]


def test_mmr_reads_vectors_of_the_artifact(client: TestClient) -> None:
    """a and c are one video. As the most similar pair they stand no nearer than by scores alone."""

    def distance(policy: str) -> int:
        ids: list[str] = ask(client, policy=policy)["candidates"]["id"]
        return abs(ids.index("a") - ids.index("c"))

    assert distance("diverse") >= distance("plain")


def test_histories_of_the_state_store_drop_what_was_seen(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    (tmp_path / "tiny" / "policies.yaml").write_text(POLICIES)
    history = "append: {history: {event: shown, value: video_id, keep: 3}}"
    (tmp_path / "tiny" / "state.yaml").write_text(f"key: user_id\nfields: [country]\n{history}\n")
    now = time.time()
    store = store_at(tmp_path / "state.db")
    put_user(store, "17", {}, {"history": [(9, now - 90_000), (3, now - 60), (5, now)]})
    store.close()
    log = tmp_path / "log"
    log.mkdir()
    (tmp_path / "user-hash.key").write_text("a secret of more than 16 bytes")
    state = {
        "user_hash_key": tmp_path / "user-hash.key",
        "state": sqlite_url(tmp_path / "state.db"),
        "state_timeout_ms": 5000,
    }
    with client_of(tmp_path, impression_log=log, **state) as client:
        assert ask(client, policy="fresh")["dropped"].keys() == {"seen"}
        assert sorted(ask(client, policy="fresh")["dropped"]["seen"]) == ["a", "c", "d"]
        assert ask(client, policy="fresh", user={"user_id": 18})["dropped"] == {}
    # The log has what the user had seen, and when. Its replay drops the same.
    first, _, other = lines_of(log)
    assert [value for value, _ in first["histories"]["history"]] == [9, 3, 5]
    assert first["histories"]["history"][0][1] == pytest.approx(now - 90_000)
    assert other["histories"] == {"history": []}
    found = tmp_path / "found.json"
    assert replay.main([str(log), "--models", str(tmp_path), "--policy", "fresh", "--json", str(found)]) == 0
    replayed = json.loads(found.read_text())
    assert replayed["policy"]["dropped"] == {"seen": 6}
    assert replayed["ranking"]["kendall_tau"]["mean"] == 1.0
    hashed = tmp_path / "hashed"
    hashed.mkdir()
    with client_of(tmp_path, impression_log=hashed, impression_log_features="hash", **state) as client:
        assert ask(client, policy="fresh")["dropped"].keys() == {"seen"}
    (line,) = lines_of(hashed)
    assert "hashes" in line
    assert line.get("histories") is None


def test_a_history_that_the_state_file_does_not_keep_is_refused(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    policies, state = tmp_path / "tiny" / "policies.yaml", tmp_path / "tiny" / "state.yaml"
    kept = "key: user_id\nappend: {HISTORY: {event: shown, value: video_id, keep: 3}}\n"
    state.write_text(kept.replace("HISTORY", "history"))
    policies.write_text(POLICIES)

    with client_of(tmp_path) as client:

        def refused() -> str | None:
            error: str | None = client.get("/v1/models/tiny").json()["policies_error"]
            return error

        def in_force() -> list[str]:
            return [policy["name"] for policy in client.get("/v1/models/tiny").json()["policies"]]

        assert refused() is None
        names = in_force()
        rewrite(policies, "other: {seen: {field: histories, by: video_id, within: 24h}}\n")
        _wait_until(lambda: refused() is not None)
        rule = "other: seen.field: 'histories' is no append field of state.yaml; did you mean 'history'?"
        assert rule in (refused() or "")
        assert in_force() == names
        # Either file may be put right.
        rewrite(state, kept.replace("HISTORY", "histories"))
        _wait_until(lambda: refused() is None)
        assert in_force() == ["other"]
        # A state file that keeps it no more leaves the policies in force, and says so.
        rewrite(state, kept.replace("HISTORY", "clicked"))
        _wait_until(lambda: refused() is not None)
        assert "it has: clicked" in (refused() or "")
        assert in_force() == ["other"]
        # Nobody keeps histories where there is no state.
        rewrite(state, "{}\n")
        _wait_until(lambda: refused() is None)
        assert in_force() == ["other"]


def test_candidates_of_a_catalogue_are_filtered_by_its_values(tmp_path: Path) -> None:
    items = tiny_items(20)
    build_catalogue(publish_artifact(tmp_path / "models"), write_items(tmp_path / "items.parquet", items))
    (tmp_path / "models" / "tiny" / "policies.yaml").write_text('long: {filter: ["duration_ms >= 8000"]}')
    with client_of(tmp_path / "models") as client:
        answer = ask(client, candidates={"id": items["id"]}, policy="long")
    short = [one for one, duration in zip(items["id"], items["duration_ms"], strict=True) if (duration or 0) < 8000]
    assert sorted(answer["dropped"]["filter"]) == sorted(short)
    assert len(answer["candidates"]["id"]) == 20 - len(short)


def test_an_arm_sets_the_policy_of_its_users(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    (tmp_path / "tiny" / "policies.yaml").write_text(POLICIES)
    experiment = """
layers: {ranking: {salt: s, unit: user_id}}
experiments:
  - {name: order, layer: ranking, buckets: {from: 0, to: 10000}, start: 2020-01-01, horizon: 1h, realised: {click: 1},
     arms: {one: {policy: POLICY}, other: {policy: POLICY}}}
"""
    file = tmp_path / "tiny" / "experiments.yaml"
    file.write_text(experiment.replace("POLICY", "nothing"))
    with client_of(tmp_path) as client:
        answer = ask(client)
        assert answer["policy"] == "nothing"
        assert answer["experiments"]["order"] in ("one", "other")
        # What names its policy itself leaves the experiment.
        named = ask(client, policy="plain")
        assert named["policy"] == "plain"
        assert "experiments" not in named
        # Tensors without places have no order, so that the arm cannot answer them, and is said to have fallen back.
        arm = answer["experiments"]["order"]
        tensors = {"inputs": [one.as_json() for one in tensors_of(QUESTION)]}
        for outputs, falls, applied in (({}, 1, None), ({"outputs": [{"name": "place"}]}, 1, "nothing")):
            told = client.post(INFER, json={**tensors, **outputs}).json()["parameters"]
            assert (told["experiments.order"], told.get("policy")) == (arm, applied)
            fell_back = sample(client, "ranking_experiment_fell_back_total", model="tiny", experiment="order", arm=arm)
            assert fell_back == falls
        rewrite(file, experiment.replace("POLICY", "bold"))
        _wait_until(lambda: client.get("/v1/models/tiny").json()["experiments_error"] is not None)
        assert "no policy 'bold'" in client.get("/v1/models/tiny").json()["experiments_error"]
        assert ask(client)["policy"] == "nothing"


def test_a_changed_file_is_taken_up_and_a_bad_one_leaves_the_old_one(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    file = tmp_path / "tiny" / "policies.yaml"
    file.write_text("one: {}")

    with client_of(tmp_path) as client:

        def entry() -> Any:
            return client.get("/v1/models/tiny").json()

        assert [one["name"] for one in entry()["policies"]] == ["one"]
        assert "policy" not in ask(client)
        rewrite(file, "two: {}\ndefault: {dedup: [tag]}")
        _wait_until(lambda: [one["name"] for one in entry()["policies"]] == ["two", "default"])
        assert ask(client)["policy_version"] == entry()["policies"][1]["version"]
        rewrite(file, "default: {dedup: [tags]}")
        _wait_until(lambda: entry()["policies_error"] is not None)
        assert entry()["policies_error"] == (
            "tiny/policies.yaml: default: dedup.0: 'tags' is no id feature of candidates; did you mean 'tag'?"
        )
        assert ask(client)["policy"] == "default"
        assert "tiny/policies.yaml" in client.get("/").text
        assert sample(client, "ranking_model_load_total", result="policies_refused") >= 1


def test_v2_answers_scores_as_before_and_places_where_they_are_named(client: TestClient) -> None:
    tensors = [tensor.as_json() for tensor in tensors_of(QUESTION)]
    plain = client.post(INFER, json={"inputs": tensors}).json()
    assert [output["name"] for output in plain["outputs"]] == ["click", "like", "play_time", "score"]
    assert "policy" not in plain["parameters"]
    names = [{"name": name} for name in ("place", "score")]
    answer = client.post(INFER, json={"inputs": tensors, "outputs": names, "parameters": {"top_k": 2}}).json()
    place, score = answer["outputs"]
    assert (place["datatype"], score["data"]) == ("INT64", plain["outputs"][3]["data"])
    ids = ask(client, top_k=2)["candidates"]["id"]
    assert place["data"] == [ids.index(one) if one in ids else -1 for one in CANDIDATES["id"]]
    assert answer["parameters"]["policy"] == "default"
    binary = {"inputs": tensors, "outputs": [{"name": "place", "parameters": {"binary_data": True}}]}
    response = client.post(INFER, json={**binary, "parameters": {"policy": "plain"}})
    size = int(response.headers["Inference-Header-Content-Length"])
    got_N = np.frombuffer(response.content[size:], "<i8")
    ranked = ask(client, policy="plain")["candidates"]["id"]
    assert got_N.tolist() == [ranked.index(one) for one in CANDIDATES["id"]]


@pytest.mark.parametrize(("parameters", "outputs", "message"), [
    ({"policy": "bold"}, ["place"], "parameters.policy: no such policy, 'bold'; model 'tiny' has: default"),
    ({"policy": 3}, ["place"], "parameters.policy: expected a string, got 3"),
    ({"top_k": 0}, ["place"], "parameters.top_k: expected an integer of at least 1, got 0"),
    ({"top_k": True}, ["place"], "parameters.top_k: expected an integer of at least 1"),
    ({"policy": "plain"}, ["score"], "parameters.policy: needs the output 'place', which it decides"),
    ({"top_k": 2}, None, "parameters.top_k: needs the output 'place', which it decides"),
])  # fmt: skip
def test_v2_refuses_policies_that_are_none(
    client: TestClient, parameters: dict[str, Any], outputs: list[str] | None, message: str
) -> None:
    body: dict[str, Any] = {"inputs": [tensor.as_json() for tensor in tensors_of(QUESTION)], "parameters": parameters}
    if outputs is not None:
        body["outputs"] = [{"name": name} for name in outputs]
    response = client.post(INFER, json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]


def rewrite(file: Path, content: str) -> None:
    """Replace a file as a whole: no poll finds half of it."""
    new = file.with_suffix(".new")
    new.write_text(content)
    new.rename(file)


def _wait_until(condition: Any) -> None:
    """Wait for the next polls of the models folder, for at most a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
