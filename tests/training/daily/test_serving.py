"""The version that serves: pinned, or the newest that verifies and was not withdrawn. Changes of labels are entries."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from model.artifact.artifact import RANKER
from model.rollout.journal import Journal
from model.rollout.labels import FILE_NAME, Labels
from tests.artifacts import publish_artifacts
from tests.service.models.test_store import flip_a_byte
from training.daily.serving import champion_of, change_labels, read_labels, version_of_run

NOW = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_artifacts(tmp_path_factory.mktemp("published"), 3)


@pytest.fixture
def folder(tmp_path: Path, published: Path) -> Path:
    """The folder of a model with three versions."""
    return shutil.copytree(published, tmp_path / "models") / "tiny"


def served(folder: Path, labels: Labels | None = None, withdrawn: frozenset[str] = frozenset()) -> int | None:
    champion = champion_of(folder, labels or Labels(), withdrawn)
    return None if champion is None else champion.version


def test_what_is_pinned_serves_and_else_the_newest_that_verifies(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert served(folder) == 3
    assert served(folder, Labels(stable=1)) == 1
    flip_a_byte(folder / "3")
    (folder / "4").mkdir()
    assert served(folder) == 2
    assert f"{folder}/3/{RANKER}" in caplog.text
    assert f"{folder}/4" in caplog.text
    assert served(folder, withdrawn=frozenset({"2"})) == 1
    # A person's pin after the judge's withdrawal counts.
    assert served(folder, Labels(stable=2), frozenset({"2"})) == 2


def test_no_version_serves_where_none_verifies_and_a_broken_pin_is_said(folder: Path) -> None:
    flip_a_byte(folder / "1")
    with pytest.raises(ValueError, match="stable is 1, and that does not verify"):
        champion_of(folder, Labels(stable=1), frozenset())
    assert served(folder, withdrawn=frozenset({"2", "3"})) is None
    assert champion_of(folder.parent / "other", Labels(), frozenset()) is None


def test_a_change_is_one_write_and_one_entry_and_none_where_nothing_changes(folder: Path) -> None:
    journal = Journal(folder)
    assert change_labels(folder, journal, NOW, lambda _: Labels(stable=2), ["because"])
    assert read_labels(folder) == Labels(stable=2)
    assert not change_labels(folder, journal, NOW, lambda labels: labels, ["again"])
    assert not change_labels(folder, journal, NOW, lambda _: None, ["never"])
    (entry,) = journal.read().entries
    assert (entry.step, entry.who, entry.reasons) == ("labels", "daily", ("because",))
    assert entry.versions == {"before": {}, "after": {"stable": "2"}}


def test_a_broken_labels_file_is_not_written_over(folder: Path) -> None:
    (folder / FILE_NAME).write_text("stabel: 1")
    with pytest.raises(ValueError, match="did you mean 'stable'"):
        change_labels(folder, Journal(folder), NOW, lambda _: Labels(stable=2), [])
    assert (folder / FILE_NAME).read_text() == "stabel: 1"
    assert not Journal(folder).path.exists()


def test_a_version_is_found_by_the_run_that_it_was_published_from(folder: Path) -> None:
    (folder / "4").mkdir()
    assert version_of_run(folder, "no such run") is None
