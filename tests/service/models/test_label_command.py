"""`python -m service labels`: the way back where no admin API can, on real versions. A wrong call changes nothing."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from model.rollout.labels import FILE_NAME
from service.__main__ import main
from tests.artifacts import publish_artifact
from tests.deploy.programs import ROOT


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with versions 1 and 2 of `tiny`, and a damaged 3."""
    models = tmp_path_factory.mktemp("models")
    for seed in range(3):
        version = publish_artifact(models, seed=seed)
    ranker = version / "ranker.pt"
    ranker.chmod(0o644)
    ranker.write_bytes(ranker.read_bytes()[:-1])
    return models


@pytest.fixture
def family(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "models")) / "tiny"


def change(family: Path, changes: str) -> int:
    return main(["labels", str(family), changes])


def test_labels_are_shown_changed_and_merged(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for changes in ('{"stable": "1", "canary": {"version": "2", "share": 0.1}}', '{"canary": null}', "{}"):
        assert change(family, changes) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert shown == [{"stable": "1", "canary": {"version": "2", "share": 0.1}}, {"stable": "1"}, {"stable": "1"}]
    assert yaml.safe_load((family / FILE_NAME).read_text()) == {"stable": 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ('{"stable": "3"}', "ranker.pt"),
        ('{"stable": "9"}', "9"),
        ('{"stabel": "1"}', "stabel"),
        ('{"canary": {"version": "2", "share": 2}}', "share"),
        ("stable: 1", "not JSON"),
        ('{"stable": "1", "stable": null}', "'stable' is given twice"),
        ("[1]", "JSON object"),
    ],
)
def test_what_is_wrong_is_one_line_and_changes_nothing(
    family: Path, capsys: pytest.CaptureFixture[str], changes: str, said: str
) -> None:
    (family / FILE_NAME).write_text("stable: 2\n")
    assert change(family, changes) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert (family / FILE_NAME).read_text() == "stable: 2\n"


def test_null_takes_the_last_pin_away_and_leaves_a_file_that_says_so(family: Path) -> None:
    (family / FILE_NAME).write_text("stable: 2\n")
    assert change(family, '{"stable": null}') == 0
    assert (family / FILE_NAME).read_text() == "{}\n"


def test_labels_that_are_not_valid_are_replaced_and_said(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (family / FILE_NAME).write_text("stable: [\n")
    assert change(family, '{"stable": "1"}') == 0
    assert "started again" in capsys.readouterr().err
    assert yaml.safe_load((family / FILE_NAME).read_text()) == {"stable": 1}


def test_labels_that_cannot_be_read_are_not_replaced_without_a_word_on_the_pin(
    family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (family / FILE_NAME).write_text("stable: 1\nshadow: [\n")
    assert change(family, '{"shadow": "2"}') == 2
    assert "name stable too" in capsys.readouterr().err
    assert (family / FILE_NAME).read_text() == "stable: 1\nshadow: [\n"
    assert change(family, '{"stable": null, "shadow": "2"}') == 0
    assert yaml.safe_load((family / FILE_NAME).read_text()) == {"shadow": 2}


def test_folder_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert change(tmp_path / "none", "{}") == 2
    assert "none" in capsys.readouterr().err


def test_compose_rolls_back_by_it_where_the_folder_is_writable() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    one_off, service = services["labels"], services["service"]
    assert one_off["entrypoint"] == ["python", "-m", "service", "labels", "/models/demo"]
    assert one_off["build"]["target"] == "train"
    assert one_off["volumes"] == ["models:/models"]
    assert "models:/models:ro" in service["volumes"]
