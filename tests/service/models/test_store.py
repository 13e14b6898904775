"""The version that serves, and the effects of a bad version or value-model file."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from model.artifact.artifact import GOLDEN, MANIFEST, RANKER
from model.scorer.scorer import Scorer
from service.base.errors import Problem
from service.metrics.metrics import Metrics
from service.models.store import ModelStore
from tests.artifacts import publish_artifact
from tests.service.in_process import client_of, sample

AS_EXPORTED = {"engine": "torchscript", "calibration": ""}


def store_of(models: Path) -> ModelStore:
    """A store that polls only on a call."""
    store = ModelStore(models, Metrics(), poll_seconds=3600, torch_threads=1)
    store.refresh()
    return store


def states(store: ModelStore, name: str = "tiny") -> dict[str, str]:
    return {version["version"]: version["state"] for version in store.entry(name)["versions"]}


def loads(store: ModelStore, result: str) -> float:
    value = store._metrics.registry.get_sample_value("ranking_model_load_total", {"result": result})
    assert value is not None
    return value


def test_the_newest_version_serves_and_older_ones_are_not_loaded(tmp_path: Path) -> None:
    for seed in range(3):
        publish_artifact(tmp_path, seed=seed)
    store = store_of(tmp_path)
    assert store.find(None, None).scorer.version == "3"
    assert states(store) == {"3": "ready", "2": "retired", "1": "retired"}
    assert loads(store, "ready") == 1


def test_a_request_keeps_the_version_it_began_with(tmp_path: Path) -> None:
    publish_artifact(tmp_path, seed=0)
    store = store_of(tmp_path)
    begun = store.find("tiny", None)
    publish_artifact(tmp_path, seed=1)
    store.refresh()
    assert begun.scorer.version == "1"
    assert store.find("tiny", None).scorer.version == "2"
    assert states(store) == {"2": "ready", "1": "retired"}
    with pytest.raises(Problem, match="loaded: 2"):
        store.find("tiny", "1")


def flip_a_byte(version: Path) -> None:
    content = bytearray((version / RANKER).read_bytes())
    content[100] ^= 1
    (version / RANKER).write_bytes(content)


def lose_a_file(version: Path) -> None:
    (version / GOLDEN).unlink()


def change_the_manifest(version: Path) -> None:
    manifest = json.loads((version / MANIFEST).read_text())
    manifest["metrics"] = {}
    (version / MANIFEST).write_text(json.dumps(manifest))


def half_a_manifest(version: Path) -> None:
    text = (version / MANIFEST).read_text()
    (version / MANIFEST).write_text(text[: len(text) // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_byte, "ranker.pt: checksum differs"),
        (lose_a_file, "golden_requests.json: cannot be read"),
        (change_the_manifest, "manifest.json: its checksum does not match"),
        (half_a_manifest, "manifest.json: not valid JSON"),
    ],
)
def test_a_damaged_version_is_quarantined_and_the_old_one_serves_on(tmp_path: Path, damage: Any, said: str) -> None:
    publish_artifact(tmp_path, seed=0)
    store = store_of(tmp_path)
    damage(publish_artifact(tmp_path, seed=1))
    store.refresh()
    assert store.find(None, None).scorer.version == "1"
    assert states(store) == {"2": "quarantined", "1": "ready"}
    reason = store.entry("tiny")["versions"][0]["reason"]
    assert said in reason
    assert str(tmp_path) not in reason
    assert store.unready_reason is None


def test_golden_answers_that_do_not_hold_quarantine_a_version(tmp_path: Path) -> None:
    publish_artifact(tmp_path, seed=0)
    publish_artifact(tmp_path, seed=1, spoil=0.1)
    store = store_of(tmp_path)
    assert store.find(None, None).scorer.version == "1"
    assert "the answer is off by" in store.entry("tiny")["versions"][0]["reason"]


def test_a_bad_version_is_tried_once_until_its_files_change(tmp_path: Path) -> None:
    publish_artifact(tmp_path, seed=0)
    bad = publish_artifact(tmp_path, seed=1)
    kept = (bad / RANKER).read_bytes()
    flip_a_byte(bad)
    store = store_of(tmp_path)
    for _ in range(3):
        store.refresh()
    assert loads(store, "quarantined") == 1
    (bad / RANKER).write_bytes(kept)
    store.refresh()  # it may still be written to
    store.refresh()
    assert store.find(None, None).scorer.version == "2"
    assert loads(store, "ready") == 2


def test_the_only_version_being_bad_is_the_reason_for_not_being_ready(tmp_path: Path) -> None:
    flip_a_byte(publish_artifact(tmp_path))
    store = store_of(tmp_path)
    assert store.unready_reason is not None
    assert "tiny 1" in store.unready_reason
    assert "checksum" in store.unready_reason
    for name in (None, "tiny"):
        with pytest.raises(Problem) as raised:
            store.find(name, None)
        assert raised.value.status == 503


def test_a_version_that_vanishes_serves_on_from_memory(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path)
    store = store_of(tmp_path)
    shutil.rmtree(version)
    store.refresh()
    assert states(store) == {"1": "ready"}
    shutil.rmtree(tmp_path)
    store.refresh()
    assert store.find("tiny", "1").scorer.version == "1"


def test_folders_being_written_and_files_of_others_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "tiny" / ".publishing-abc").mkdir(parents=True)
    (tmp_path / "tiny" / "derived" / "1").mkdir(parents=True)
    (tmp_path / "README").write_text("not a model")
    store = store_of(tmp_path)
    assert store.entries() == []
    assert store.unready_reason == "the models folder has no published version"


VALUE_MODELS = "value_models.yaml"
GOOD = "default: {kind: weighted_sum, weights: {click: 1.0, like: -2.0}}\n"
OTHER = "default: {kind: weighted_sum, weights: {like: 5.0}}\nextra: {kind: weighted_sum, weights: {click: 1}}\n"


def test_value_models_are_reloaded_by_content(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    store = store_of(tmp_path)
    assert store.find(None, None).value_models.is_built_in
    file = tmp_path / "tiny" / VALUE_MODELS
    file.write_text(GOOD)
    store.refresh()
    first = store.find(None, None).value_models["default"].version
    file.write_text(OTHER)
    store.refresh()
    model = store.find(None, None)
    assert model.value_models.names == ["default", "extra"]
    assert model.value_models["default"].version != first
    assert model.scorer.version == "1"
    file.write_text(GOOD)
    store.refresh()
    assert store.find(None, None).value_models["default"].version == first


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("default: {kind: weighted_sum, weights: {clik: 1}}", "did you mean 'click'"),
        ("default: {kind: weighted_sum, weights: {click: .nan}}", "finite"),
        ("default: {kind: weighted_sun, weights: {click: 1}}", "kind"),
        ("other: {kind: weighted_sum, weights: {click: 1}}", "'default'"),
        ("default: {kind: weighted_sum", "not valid YAML"),
        ("", "'default'"),
    ],
)
def test_a_bad_value_model_file_leaves_the_old_one_serving(tmp_path: Path, text: str, said: str) -> None:
    publish_artifact(tmp_path)
    file = tmp_path / "tiny" / VALUE_MODELS
    file.write_text(GOOD)
    store = store_of(tmp_path)
    before = store.find(None, None).value_models["default"].version
    file.write_text(text)
    store.refresh()
    assert store.find(None, None).value_models["default"].version == before
    error = store.entry("tiny")["value_models_error"]
    assert said in error
    assert VALUE_MODELS in error
    assert str(tmp_path) not in error
    assert loads(store, "value_models_refused") == 1
    file.write_text(OTHER)
    store.refresh()
    assert store.entry("tiny")["value_models_error"] is None
    assert store.find(None, None).value_models.names == ["default", "extra"]


def test_a_bad_value_model_file_at_the_start_gives_way_to_the_built_in_one(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    (tmp_path / "tiny" / VALUE_MODELS).write_text("default: 3")
    store = store_of(tmp_path)
    assert store.find(None, None).value_models.is_built_in
    assert store.entry("tiny")["value_models_error"]


def test_a_version_that_the_value_models_do_not_fit_waits_for_them(tmp_path: Path) -> None:
    publish_artifact(tmp_path, seed=0)
    file = tmp_path / "tiny" / VALUE_MODELS
    file.write_text(GOOD)
    store = store_of(tmp_path)
    file.write_text("default: {kind: weighted_sum, weights: {hide: -1}}")
    publish_artifact(tmp_path, seed=1)
    store.refresh()
    assert store.find(None, None).scorer.version == "1"
    assert "hide" in store.entry("tiny")["versions"][0]["reason"]
    file.write_text(OTHER)
    store.refresh()
    assert store.find(None, None).scorer.version == "2"


def test_models_are_listed_with_schema_and_metrics(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path)
    manifest = json.loads((version / MANIFEST).read_text())
    with client_of(tmp_path) as client:
        (entry,) = client.get("/v1/models").json()["models"]
        assert entry["default_version"] == "1"
        assert entry["labels"] == {}
        assert entry["versions"] == [
            {
                "version": "1",
                "state": "ready",
                "engine": "torchscript",
                "acceptance": None,
                "reason": None,
                "calibration": None,
                "calibration_reason": None,
            }
        ]
        one = client.get("/v1/models/tiny").json()
        assert one["schema"] == manifest["schema"]
        assert one["metrics"] == manifest["metrics"]
        assert {key: one[key] for key in entry} == entry


def test_polling_outlives_a_surprise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    second_look = threading.Event()

    def surprised(_: Path) -> list[str]:
        calls.append(1)
        if len(calls) > 1:
            second_look.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr("service.models.store.model_names", surprised)
    with client_of(tmp_path) as client:
        assert second_look.wait(timeout=20)
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503


def test_model_metrics_follow_the_versions(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    store = store_of(tmp_path)
    publish_artifact(tmp_path, seed=1)
    store.refresh()
    registry = store._metrics.registry
    info = [
        registry.get_sample_value("ranking_model_info", {"model": "tiny", "version": version, **AS_EXPORTED})
        for version in ("1", "2")
    ]
    assert info == [0, 1]
    times = [
        registry.get_sample_value("ranking_model_loaded_timestamp_seconds", {"model": "tiny", "version": version})
        for version in ("1", "2")
    ]
    assert times[0] is not None
    assert times[1] is not None
    assert times[0] <= times[1]


def test_a_load_is_counted_in_the_exposition(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        assert sample(client, "ranking_model_load_total", result="ready") == 1
        assert sample(client, "ranking_model_load_total", result="quarantined") == 0


def test_a_compiled_package_is_taken_up_while_the_version_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_artifact(tmp_path)
    store = store_of(tmp_path)
    (tmp_path / "tiny" / VALUE_MODELS).write_text(GOOD)
    store.refresh()
    begun = store.find(None, None)
    folder = tmp_path / "tiny" / "derived" / "1" / "compiled"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    store.refresh()
    assert store.find(None, None).scorer.engine == "torchscript"
    (version,) = store.entry("tiny")["versions"]
    assert version["state"] == "ready"
    assert "derived/1/compiled" in version["reason"]
    assert loads(store, "compiled_refused") == 1

    def take(scorer: Scorer) -> None:
        scorer.engine = "compiled"

    monkeypatch.setattr(Scorer, "_take_compiled", take)
    store.refresh()
    assert loads(store, "ready") == 2  # nothing has changed since: nothing is loaded
    (folder / MANIFEST).write_text("{ }")
    store.refresh()
    served = store.find(None, None)
    assert served.scorer.engine == "compiled"
    assert served.value_models["default"].version == begun.value_models["default"].version
    (version,) = store.entry("tiny")["versions"]
    assert version.items() >= {"version": "1", "state": "ready", "engine": "compiled", "reason": None}.items()
    labels = {"model": "tiny", "version": "1", "calibration": ""}
    info = {
        engine: store._metrics.registry.get_sample_value("ranking_model_info", {**labels, "engine": engine})
        for engine in ("torchscript", "compiled")
    }
    assert info == {"torchscript": 0, "compiled": 1}
    assert begun.scorer.engine == "torchscript"


def test_a_version_that_waits_for_its_compiled_package_is_tried_when_that_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_artifact(tmp_path)
    store = ModelStore(tmp_path, Metrics(), poll_seconds=3600, torch_threads=1, engine="compiled")
    store.refresh()
    assert states(store) == {"1": "quarantined"}
    monkeypatch.setattr(Scorer, "_take_compiled", lambda scorer: None)
    folder = tmp_path / "tiny" / "derived" / "1" / "compiled"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    store.refresh()
    assert states(store) == {"1": "ready"}
