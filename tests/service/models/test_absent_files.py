"""Files that go away, change behind a link or are of another kind: what was loaded serves on, the fault is shown."""

import gc
import os
import shutil
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from model.artifact.artifact import MANIFEST, RANKER
from model.scorer.scorer import Scorer
from service.http.keys import Keys, hash_of
from service.models.store import ModelStore
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.items import tiny_items, write_items
from tests.service.in_process import client_of, sample
from tests.service.models.test_admin import until
from tests.service.models.test_store import flip_a_byte, loads, states, store_of
from training.publish.catalogue import build_catalogue

LABELS, VALUE_MODELS = "labels.yaml", "value_models.yaml"
WEIGHTS = "default: {kind: weighted_sum, weights: {click: 1.0, like: -20.0}}\n"
OTHERS = "default: {kind: weighted_sum, weights: {click: 1.0, like: -30.0}}\n"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of `tiny`, the first with a catalogue."""
    folder = tmp_path_factory.mktemp("published")
    for seed in range(3):
        publish_artifact(folder / "models", seed=seed)
    build_catalogue(folder / "models" / "tiny" / "1", write_items(folder / "items.parquet", tiny_items(5)))
    return folder / "models"


@pytest.fixture
def models(tmp_path: Path, published: Path) -> Path:
    """The versions, `1` pinned, with value models."""
    copy = shutil.copytree(published, tmp_path / "models")
    (copy / "tiny" / LABELS).write_text("stable: 1")
    (copy / "tiny" / VALUE_MODELS).write_text(WEIGHTS)
    return copy


def told(store: ModelStore) -> dict[str, float]:
    """The files that the metric calls faulty, by name. Those of no single model too."""
    [family] = [metric for metric in store._metrics.registry.collect() if metric.name == "ranking_file_error"]
    return {sample.labels["file"]: sample.value for sample in family.samples}


def served(store: ModelStore) -> dict[str, Any]:
    model, entry = store.find("tiny", None), store.entry("tiny")
    return {
        "version": model.scorer.version,
        "value_model": model.value_models["default"].version,
        "labels": entry["labels"],
        "catalogue": (entry["catalogue"] or {}).get("generation"),
    }


KINDS = (
    *("models", "keys", "tls", "version", "labels", "catalogue", "calibration", "journal"),
    *("value_models", "state", "policies", "experiments"),
)
AT_REST = dict.fromkeys(KINDS, 0)


def move_model(models: Path) -> Callable[[], object]:
    (models / "tiny").rename(models / ".away")
    return lambda: (models / ".away").rename(models / "tiny")


def unmount(models: Path) -> Callable[[], object]:
    away = models.with_name("away")
    models.rename(away)
    models.mkdir()

    def mount() -> None:
        models.rmdir()
        away.rename(models)

    return mount


def move(name: str) -> Callable[[Path], Callable[[], object]]:
    def away(models: Path) -> Callable[[], object]:
        place = models / "tiny" / name
        place.rename(models.with_name("away"))
        return lambda: models.with_name("away").rename(place)

    return away


def dangle(models: Path) -> Callable[[], object]:
    file = models / "tiny" / VALUE_MODELS
    file.unlink()
    file.symlink_to("nowhere")

    def as_file() -> None:
        file.unlink()
        file.write_text(WEIGHTS)

    return as_file


def as_fifo(models: Path) -> Callable[[], object]:
    for name in (VALUE_MODELS, LABELS):
        (models / "tiny" / name).unlink()
        os.mkfifo(models / "tiny" / name)

    def as_files() -> None:
        for name, text in ((VALUE_MODELS, WEIGHTS), (LABELS, "stable: 1")):
            (models / "tiny" / name).unlink()
            (models / "tiny" / name).write_text(text)

    return as_files


EVERYTHING = {"version": 1, "labels": 1, "value_models": 1, "catalogue": 1}


@pytest.mark.parametrize(
    ("take_away", "faults"),
    [
        (move_model, EVERYTHING),
        (unmount, EVERYTHING),
        (move("1"), {"version": 1}),
        (move("derived"), {"catalogue": 1}),
        (move(LABELS), {"labels": 1}),
        (move(VALUE_MODELS), {"value_models": 1}),
        (dangle, {"value_models": 1}),
        (as_fifo, {"labels": 1, "value_models": 1}),
    ],
)
def test_what_was_loaded_serves_on_and_the_absence_is_told(
    models: Path,
    take_away: Callable[[Path], Callable[[], object]],
    faults: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = store_of(models)
    before = served(store)
    assert (before["version"], before["labels"], before["catalogue"]) == ("1", {"stable": "1"}, 1)
    assert told(store) == AT_REST
    bring_back = take_away(models)
    caplog.clear()
    for _ in range(3):
        store.refresh()
        assert served(store) == before
        assert told(store) == {**AT_REST, **faults}
    assert len([line for line in caplog.records if line.levelname == "ERROR"]) == len(faults)  # each is logged once
    entry = store.entry("tiny")
    reasons = {version["version"]: version["reason"] for version in entry["versions"]}
    found = {
        "version": reasons["1"],
        "labels": entry["labels_error"],
        "value_models": entry["value_models_error"],
        "catalogue": entry["catalogue"]["reason"],
    }
    assert {file for file, reason in found.items() if reason} == set(faults)
    assert all("missing" in str(found[file]) or "FIFO" in str(found[file]) for file in faults)
    assert str(models) not in str(entry)
    bring_back()
    store.refresh()
    assert served(store) == before
    assert told(store) == AT_REST
    assert loads(store, "ready") == 1  # nothing was loaded again


def test_value_models_are_removed_for_good_by_an_empty_mapping(models: Path) -> None:
    store = store_of(models)
    assert not store.find("tiny", None).value_models.is_built_in
    (models / "tiny" / VALUE_MODELS).write_text("{}")
    store.refresh()
    assert store.find("tiny", None).value_models.is_built_in
    assert store.entry("tiny")["value_models_error"] is None


def test_a_version_that_comes_while_the_value_models_are_away_has_them(models: Path) -> None:
    store = store_of(models)
    before = served(store)["value_model"]
    (models / "tiny" / VALUE_MODELS).unlink()
    (models / "tiny" / LABELS).write_text("stable: 2")
    store.refresh()
    assert served(store)["version"] == "2"
    assert served(store)["value_model"] == before
    assert told(store)["value_models"] == 1


def test_files_that_are_swapped_behind_a_link_are_taken_up(models: Path) -> None:
    """A ConfigMap: the same size and time, another folder behind `..data`."""
    family = models / "tiny"
    for name, weights, labels in (("..one", WEIGHTS, "stable: 1"), ("..two", OTHERS, "stable: 2")):
        (family / name).mkdir()
        for file, text in ((VALUE_MODELS, weights), (LABELS, labels)):
            (family / name / file).write_text(text)
            os.utime(family / name / file, ns=(0, 0))
    for file in (VALUE_MODELS, LABELS):
        (family / file).unlink()
        (family / file).symlink_to(f"..data/{file}")
    (family / "..data").symlink_to("..one")
    store = store_of(models)
    before = served(store)
    (family / "..new").symlink_to("..two")
    (family / "..new").replace(family / "..data")
    store.refresh()
    after = served(store)
    assert (before["version"], after["version"]) == ("1", "2")
    assert before["value_model"] != after["value_model"]


def test_a_folder_that_cannot_be_listed_hides_no_other_model(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir

    def fails(folder: Path) -> Any:
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    (models / "locked").mkdir()
    monkeypatch.setattr(Path, "iterdir", fails)  # root may list whatever there is
    store = store_of(models)
    assert served(store)["version"] == "1"
    file_errors = store._metrics.file_errors
    assert file_errors.labels("locked", "version")._value.get() == 1
    assert file_errors.labels("tiny", "version")._value.get() == 0


def test_a_newer_version_waits_verified_once_and_its_memory_is_freed(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorers: list[weakref.ref[Scorer]] = []
    load = Scorer.load

    def noted(path: Path, *args: Any, **more: Any) -> Scorer:
        scorer = load(path, *args, **more)
        scorers.append(weakref.ref(scorer))
        return scorer

    monkeypatch.setattr(Scorer, "load", noted)
    flip_a_byte(models / "tiny" / "2")
    store = store_of(models)
    for _ in range(4):
        store.refresh()
    assert states(store) == {"3": "waiting", "2": "quarantined", "1": "ready"}
    reason = store.entry("tiny")["versions"][1]["reason"]
    assert f"2/{RANKER}: checksum differs" in reason
    assert store._metrics.newer_quarantined.labels("tiny")._value.get() == 1
    assert loads(store, "ready") == 1
    assert loads(store, "quarantined") == 1
    gc.collect()
    assert [scorer() is not None for scorer in scorers] == [True, False]  # what is served, and what waits
    (models / "tiny" / LABELS).write_text("stable: 3")
    store.refresh()
    assert states(store) == {"3": "ready", "2": "quarantined", "1": "retired"}
    assert store._metrics.newer_quarantined.labels("tiny")._value.get() == 0


def test_a_slow_copy_is_quarantined_once_and_tried_again_when_it_is_over(models: Path, tmp_path: Path) -> None:
    (models / "tiny" / LABELS).unlink()
    (models / "tiny" / "3").rename(tmp_path / "3")
    store = store_of(models)
    copy = models / "tiny" / "3"
    copy.mkdir()
    files = sorted((tmp_path / "3").iterdir(), key=lambda file: file.name != MANIFEST)
    for file in files:
        shutil.copy(file, copy / file.name)
        store.refresh()
        assert states(store)["3"] == "quarantined"
        assert loads(store, "quarantined") == 1
    store.refresh()
    assert states(store) == {"3": "ready", "2": "retired", "1": "retired"}


def test_a_second_copy_over_an_unserved_version_is_quarantined_and_mended(models: Path, published: Path) -> None:
    store = store_of(models)
    for _ in range(3):
        store.refresh()
    assert states(store) == {"3": "waiting", "2": "waiting", "1": "ready"}
    for file in (published / "tiny" / "2").iterdir():
        (models / "tiny" / "3" / file.name).write_bytes(file.read_bytes())  # cp -r 2/. 3
    for _ in range(3):
        store.refresh()
    assert states(store)["3"] == "quarantined"
    assert "says version 2, but the folder is 3" in store.entry("tiny")["versions"][0]["reason"]
    for file in (published / "tiny" / "3").iterdir():
        (models / "tiny" / "3" / file.name).write_bytes(file.read_bytes())
    for _ in range(3):
        store.refresh()
    assert states(store)["3"] == "waiting"


def test_a_version_that_was_gone_and_is_there_again_is_tried_again(models: Path) -> None:
    """A manifest behind a link to a device has one fingerprint for ever."""
    place = models / "tiny" / "9"
    store = store_of(models)
    for _ in range(2):
        place.mkdir()
        (place / MANIFEST).symlink_to("/dev/zero")
        store.refresh()
        assert states(store)["9"] == "quarantined"
        shutil.rmtree(place)
        store.refresh()
        assert "9" not in states(store)


def test_a_version_of_another_model_is_not_served_under_this_name(models: Path) -> None:
    other = publish_artifact(models, "ads", seed=9)
    shutil.copytree(other, models / "feed" / "1")
    store = store_of(models)
    assert states(store, "ads") == {"1": "ready"}
    assert states(store, "feed") == {"1": "quarantined"}
    assert "is a version of model 'ads'" in store.entry("feed")["versions"][0]["reason"]


def test_the_time_of_the_last_finished_poll_is_told(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(models)
    polled_at = store._metrics.polled_at._value
    monkeypatch.setattr("prometheus_client.metrics.time.time", lambda: 5.0)
    store.refresh()
    assert polled_at.get() == 5.0
    monkeypatch.setattr("prometheus_client.metrics.time.time", lambda: 6.0)
    monkeypatch.setattr("service.models.store.model_names", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.refresh()
    assert polled_at.get() == 5.0  # one that fails is not finished


def test_a_bomb_of_yaml_is_refused_and_does_not_hang_the_poll(models: Path) -> None:
    store = store_of(models)
    lines = ["a0: &a0 {k: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 10))]
    for name in (LABELS, VALUE_MODELS):
        (models / "tiny" / name).write_text("\n".join(lines))
    store.refresh()
    assert told(store) == {**AT_REST, "labels": 1, "value_models": 1}
    assert served(store)["version"] == "1"


def test_keys_stay_in_force_when_their_file_goes_away(tmp_path: Path) -> None:
    file, content = tmp_path / "keys.yaml", f"keys: [{{name: a, scopes: [score], sha256: {hash_of('secret')}}}]"
    file.write_text(content)
    keys = Keys(file, poll_seconds=0.0)
    assert keys.check("Bearer secret", "score") == "a"
    file.unlink()
    for _ in range(2):
        keys.poll()
        assert keys.check("Bearer secret", "score") == "a"
    assert keys.error == f"{file}: missing"
    os.mkfifo(file)
    keys.poll()
    assert keys.check("Bearer secret", "score") == "a"
    assert "FIFO" in (keys.error or "")
    file.unlink()
    file.write_text(content)
    keys.poll()
    assert keys.check("Bearer secret", "score") == "a"
    assert keys.error is None


def is_told(client: TestClient, model: str, file: str, value: float = 1) -> bool:
    return sample(client, "ranking_file_error", model=model, file=file) == value


def test_an_unmounted_models_folder_is_told_everywhere_and_costs_no_request(models: Path, tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.yaml"
    content = f"keys: [{{name: a, scopes: [admin], sha256: {hash_of('secret')}}}]"
    keys_file.write_text(content)
    with client_of(models, keys_file=keys_file) as client:
        client.headers["Authorization"] = "Bearer secret"
        answer = client.post("/v1/rank", json=TINY_REQUEST).json()
        models.rename(models.with_name("away"))
        keys_file.unlink()
        for model, file in (("", "models"), ("", "keys"), ("tiny", "labels")):
            until(partial(is_told, client, model, file))
        after = client.post("/v1/rank", json=TINY_REQUEST)
        assert after.status_code == 200
        assert after.json()["candidates"] == answer["candidates"]
        assert after.json()["value_model_version"] == answer["value_model_version"]
        assert client.get("/readyz").status_code == 200
        document = client.get("/v1/models").json()
        assert document["error"] == "the models folder cannot be read (No such file or directory)"
        page = client.get("/").text
        for told in (
            *("the models folder cannot be read", "the keys file is missing or refused"),
            *("labels: tiny/labels.yaml: missing", "value models: tiny/value_models.yaml: missing"),
            *("catalogue: generation 1: missing", "tiny/1: missing; it serves on from memory"),
        ):
            assert told in page
        assert str(tmp_path) not in page
        models.with_name("away").rename(models)
        keys_file.write_text(content)
        for model, file in (("", "keys"), ("tiny", "labels")):
            until(partial(is_told, client, model, file, value=0))
        assert client.get("/v1/models").json()["error"] is None
