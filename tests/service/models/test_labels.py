"""Labels: which version answers, what a bad label leaves behind, and that what no label needs is let go."""

import gc
import math
import shutil
import weakref
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.artifact.artifact import RANKER
from model.rollout.labels import FILE_NAME
from service.base.errors import Problem
from service.models.canary import Sender
from service.models.labels import IMPRESSION_SEED, SHADOW_SEED, falls_within
from service.models.store import ModelStore
from tests.artifacts import publish_artifact, publish_artifacts
from tests.service.models.test_store import flip_a_byte, loads, states, store_of

IDS = [f"request-{number}" for number in range(20_000)]


@given(st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_share_of_the_requests_falls_within_it(share: float, start: int) -> None:
    requests = 2000
    hits = sum(falls_within(f"{start + number}", share, IMPRESSION_SEED) for number in range(requests))
    # Four standard errors of a binomial share, and one request where the share is next to 0 or 1.
    assert abs(hits - share * requests) <= 4 * math.sqrt(requests * share * (1 - share)) + 1


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_who_is_in_a_share_is_in_every_larger_one(request_id: str, one: float, other: float) -> None:
    smaller, larger = sorted((one, other))
    assert falls_within(request_id, larger, IMPRESSION_SEED) >= falls_within(request_id, smaller, IMPRESSION_SEED)
    assert falls_within(request_id, 1.0, IMPRESSION_SEED)
    assert not falls_within(request_id, 0.0, IMPRESSION_SEED)


def test_being_in_one_sample_says_nothing_of_another() -> None:
    both = sum(falls_within(i, 0.2, IMPRESSION_SEED) and falls_within(i, 0.3, SHADOW_SEED) for i in IDS)
    expected = 0.2 * 0.3 * len(IDS)
    assert abs(both - expected) <= 4 * math.sqrt(expected * (1 - 0.2 * 0.3))


def put_labels(models: Path, text: str) -> None:
    (models / "tiny" / FILE_NAME).write_text(text)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_artifacts(tmp_path_factory.mktemp("published"), 3)


@pytest.fixture
def models(tmp_path: Path, published: Path) -> Path:
    """A models folder with three versions of `tiny`."""
    return shutil.copytree(published, tmp_path / "models")


def default(store: ModelStore) -> str:
    return store.find("tiny", None).scorer.version


def test_a_pin_rolls_back_and_without_it_the_newest_serves_again(models: Path) -> None:
    store = store_of(models)
    assert default(store) == "3"
    put_labels(models, "stable: 1")
    store.refresh()
    assert default(store) == "1"
    assert store.entry("tiny")["labels"] == {"stable": "1"}
    assert states(store) == {"3": "waiting", "2": "waiting", "1": "ready"}
    publish_artifact(models, seed=3)
    store.refresh()
    assert default(store) == "1"
    put_labels(models, "{}")
    store.refresh()
    assert default(store) == "4"
    assert store.entry("tiny")["labels"] == {}


def test_a_folder_that_is_gone_for_a_while_keeps_its_pin(models: Path) -> None:
    put_labels(models, "{stable: 1, canary: {version: 2, share: 0.5}}")
    store = store_of(models)
    labels = store.entry("tiny")["labels"]
    for hidden in (models / "tiny", models):
        hidden.rename(hidden.with_name(".elsewhere"))
        store.refresh()
        assert default(store) == "1"
        assert store.find("tiny", "canary").scorer.version == "2"
        hidden.with_name(".elsewhere").rename(hidden)
        store.refresh()
        assert default(store) == "1"
        assert store.entry("tiny")["labels"] == labels
    assert loads(store, "ready") == 2  # nothing was loaded again


def test_every_labelled_version_answers_by_number_and_by_label(models: Path) -> None:
    publish_artifact(models, seed=3)
    put_labels(models, "{stable: 2, canary: {version: 3, share: 0.25}, shadow: 1}")
    store = store_of(models)
    asked = ("1", "2", "3", "stable", "canary", "shadow")
    assert [store.find("tiny", version).scorer.version for version in asked] == ["1", "2", "3", "2", "3", "1"]
    assert states(store) == {"4": "waiting", "3": "ready", "2": "ready", "1": "ready"}
    for version in ("4", "latest", ""):
        with pytest.raises(Problem, match="loaded: 3, 2, 1"):
            store.find("tiny", version)
    answered = [store.find("tiny", None, Sender(request_id, lambda _: None)).scorer.version for request_id in IDS]
    share = answered.count("3") / len(IDS)
    assert abs(share - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / len(IDS))
    assert set(answered) == {"2", "3"}


def test_stable_is_what_is_served_where_nothing_is_pinned(models: Path) -> None:
    store = store_of(models)
    assert store.find("tiny", "stable").scorer.version == "3"
    with pytest.raises(Problem, match="not loaded"):
        store.find("tiny", "canary")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stabel: 1", "did you mean 'stable'"),
        ("canary: {version: 1, share: 0.5}", "canary needs stable"),
        ("{stable: 1, canary: {version: 2}}", "canary.share"),
        ("{stable: 1, canary: {version: 2, share: 5}}", "canary.share"),
        ("{stable: 1, canary: {version: 2, share: .nan}}", "canary.share"),
        ("{stable: 1, canary: {version: 2, share: 0.00001}}", "whole number of ten-thousandths, got 1e-05"),
        ("{stable: 1, canary: {version: 2, share: 0.1, sahre: 1}}", "did you mean 'share'"),
        ("stable: newest", "stable: expected a model version"),
        ("stable: 0", "stable: expected a model version"),
        ("stable: on", "stable"),
        ("stable: [1", "not valid YAML"),
        ("", "expected a mapping"),
        ("stable: 9", "stable: version 9 is not published"),
        ("{stable: 2, shadow: 9}", "shadow: version 9 is not published"),
    ],
)
def test_a_bad_labels_file_leaves_the_labels_before_it_and_says_why(models: Path, text: str, said: str) -> None:
    put_labels(models, "{stable: 2, canary: {version: 3, share: 0.5}, shadow: 1}")
    store = store_of(models)
    before = store.entry("tiny")["labels"]
    put_labels(models, text)
    for _ in range(2):
        store.refresh()
    assert default(store) == "2"
    error = store.entry("tiny")["labels_error"]
    assert said in error
    assert str(models) not in error
    assert loads(store, "labels_refused") == 1
    if "shadow: 9" in text:  # valid parts of a file are applied, and the canary is no longer set
        assert store.entry("tiny")["labels"] == {"stable": "2", "shadow": "1"}
    elif "stable: 9" not in text:
        assert store.entry("tiny")["labels"] == before
    put_labels(models, "stable: 3")
    store.refresh()
    assert default(store) == "3"
    assert store.entry("tiny")["labels_error"] is None


def test_a_label_on_a_version_that_does_not_hold_stays_where_it_was_until_that_is_mended(models: Path) -> None:
    put_labels(models, "{stable: 1, canary: {version: 2, share: 0.5}}")
    store = store_of(models)
    bad = models / "tiny" / "3"
    kept = (bad / RANKER).read_bytes()
    flip_a_byte(bad)
    put_labels(models, "{stable: 3, canary: {version: 2, share: 0.75}}")
    for _ in range(3):
        store.refresh()
    assert default(store) == "1"
    assert store.entry("tiny")["labels"] == {"stable": "1", "canary": {"version": "2", "share": 0.75}}
    assert "stable: version 3 is quarantined" in store.entry("tiny")["labels_error"]
    assert states(store) == {"3": "quarantined", "2": "ready", "1": "ready"}
    assert loads(store, "quarantined") == 1
    (bad / RANKER).write_bytes(kept)
    store.refresh()  # it may still be written to
    store.refresh()
    assert default(store) == "3"
    assert store.entry("tiny")["labels_error"] is None


def test_a_start_with_a_pin_that_does_not_hold_goes_back_rather_than_on(models: Path) -> None:
    put_labels(models, "{stable: 2, canary: {version: 3, share: 0.5}}")
    flip_a_byte(models / "tiny" / "2")
    store = store_of(models)
    assert default(store) == "1"
    assert store.entry("tiny")["labels"] == {}
    ready = loads(store, "ready")
    store.refresh()  # and nothing is loaded in vain, again and again
    assert loads(store, "ready") == ready
    flip_a_byte(models / "tiny" / "1")
    assert default(store_of(models)) == "3"  # rather a newer one than none


def test_a_version_that_no_label_needs_is_freed_when_its_last_request_has_ended(models: Path) -> None:
    put_labels(models, "{stable: 1, canary: {version: 2, share: 0.5}}")
    store = store_of(models)
    held = store.find("tiny", "canary")
    scorer = weakref.ref(held.scorer)
    put_labels(models, "stable: 1")
    store.refresh()
    assert states(store)["2"] == "waiting"
    gc.collect()
    assert scorer() is not None
    assert held.scorer.score_values({}, {}, 1).shape == (1, 3)
    del held
    assert scorer() is not None  # by the thread that looks, not by the one that answered last
    store.refresh()
    gc.collect()
    assert scorer() is None


def test_value_models_go_live_for_every_loaded_version_or_for_none(models: Path) -> None:
    put_labels(models, "{stable: 1, shadow: 2}")
    store = store_of(models)
    file = models / "tiny" / "value_models.yaml"
    file.write_text("default: {kind: weighted_sum, weights: {like: 5.0}}")
    store.refresh()
    versions = {store.find("tiny", label).value_models["default"].version for label in ("stable", "shadow")}
    assert len(versions) == 1
    assert loads(store, "value_models_ready") == 3  # one for each load, one for the file
    file.write_text("default: {kind: weighted_sum, weights: {lke: 5.0}}")
    store.refresh()
    assert {store.find("tiny", label).value_models["default"].version for label in ("stable", "shadow")} == versions
