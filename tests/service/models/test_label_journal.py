"""Changes of labels are entries of the journal: who, what stood before, and none where the change was refused."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from model.rollout.labels import FILE_NAME
from tests.artifacts import publish_artifact
from tests.service.in_process import client_of
from tests.service.models.test_admin import HEADERS, PATH, keys
from tests.service.models.test_label_command import change
from tests.service.watch.test_status_page import Text

__all__ = ["keys"]

JOURNAL = "journal.jsonl"
CANARY = {"stable": "1", "canary": {"version": "2", "share": 0.5}}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed in range(2):
        publish_artifact(tmp_path / "models", seed=seed)
    return tmp_path / "models"


@pytest.fixture
def client(models: Path, keys: Path) -> Iterator[TestClient]:
    with client_of(models, keys_file=keys) as client:
        client.headers.update(HEADERS)
        yield client


def entries(models: Path) -> list[dict[str, Any]]:
    """Lines of the journal, by json alone."""
    journal = models / "tiny" / JOURNAL
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def test_each_change_says_who_and_what_stood_before(client: TestClient, models: Path) -> None:
    began = datetime.now(UTC) - timedelta(milliseconds=1)
    client.put(PATH, json=CANARY).raise_for_status()
    client.patch(PATH, json={"canary": {"share": 0.75}}).raise_for_status()
    client.patch(PATH, json={}).raise_for_status()  # changes nothing, and so is no decision
    client.put(PATH, json={"stable": None}).raise_for_status()
    found = entries(models)
    assert [entry["versions"] for entry in found] == [
        {"before": {}, "after": CANARY},
        {"before": CANARY, "after": {"stable": "1", "canary": {"version": "2", "share": 0.75}}},
        {"before": {"stable": "1", "canary": {"version": "2", "share": 0.75}}, "after": {}},
    ]
    assert {(entry["step"], entry["decision"], entry["who"]) for entry in found} == {
        ("labels", "change", "key operator")
    }
    times = [datetime.fromisoformat(entry["time"]) for entry in found]
    assert began <= times[0] <= times[1] <= times[2] <= datetime.now(UTC)


def test_what_is_refused_is_no_entry(client: TestClient, models: Path) -> None:
    client.put(PATH, json={"stable": "1"}).raise_for_status()
    for status, document in ((404, {"stable": "9"}), (422, {}), (422, {"canary": {"version": "2", "share": 0.1}})):
        assert client.put(PATH, json=document).status_code == status
    assert len(entries(models)) == 1


def test_without_a_journal_nothing_is_changed(client: TestClient, models: Path) -> None:
    client.put(PATH, json={"stable": "1"}).raise_for_status()
    (models / "tiny" / JOURNAL).unlink()
    (models / "tiny" / JOURNAL).mkdir()
    answer = client.put(PATH, json={"stable": "2"})
    assert answer.status_code == 500
    assert "journal.jsonl cannot be written (Is a directory)" in answer.json()["detail"]
    assert "edit labels.yaml by hand" in answer.json()["detail"]
    assert str(models) not in answer.text
    assert yaml.safe_load((models / "tiny" / FILE_NAME).read_text()) == {"stable": 1}
    assert client.get("/v1/models/tiny").json()["default_version"] == "1"
    (models / "tiny" / JOURNAL).rmdir()
    client.put(PATH, json={"stable": "2"}).raise_for_status()
    assert entries(models)[0]["versions"] == {"before": {"stable": "1"}, "after": {"stable": "2"}}


def test_labels_that_could_not_be_written_are_taken_back_in_the_journal(client: TestClient, models: Path) -> None:
    (models / "tiny" / FILE_NAME).mkdir()
    assert client.put(PATH, json={"stable": "1"}).status_code == 500
    there, back = entries(models)
    assert there["versions"]["after"] == back["versions"]["before"] == {"stable": "1"}
    assert back["versions"]["after"] == {}
    assert back["reasons"] == ["labels.yaml could not be written"]


def test_the_command_is_journaled_too(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = models / "tiny"
    assert change(family, json.dumps(CANARY)) == 0
    assert change(family, "{}") == 0
    [entry] = entries(models)
    assert entry["versions"] == {"before": {}, "after": CANARY}
    assert entry["who"].endswith("by command")
    (family / JOURNAL).unlink()
    (family / JOURNAL).mkdir()
    assert change(family, '{"canary": null}') == 2
    assert "journal.jsonl cannot be written" in capsys.readouterr().err
    assert yaml.safe_load((family / FILE_NAME).read_text())["canary"] == {"version": 2, "share": 0.5}


def test_the_status_page_has_the_last_decisions(client: TestClient, models: Path) -> None:
    def page() -> str:
        return str(Text(client.get("/", headers=HEADERS).text))

    assert "last decisions" not in page()
    client.put(PATH, json=CANARY).raise_for_status()
    lines = [
        {
            "time": f"2026-11-30T02:{number:02}:00Z",
            "step": "data_gate",
            "decision": "quarantine",
            "reasons": ["<b>NE</b> of the serving model 1.61 times its own"],
            "figures": {"day": f"2026-11-{number:02}"},
            "versions": {},
            "inputs": {},
            "who": "daily",
        }
        for number in range(1, 13)
    ]
    with (models / "tiny" / JOURNAL).open("a") as journal:
        journal.write("".join(json.dumps(line) + "\n" for line in lines) + '{"time": "2026')
    shown = page()
    assert "tiny: last decisions" in shown
    assert "2026-11-30 02:12:00 data_gate quarantine 2026-11-12 <b>NE</b> of the serving model 1.61" in shown
    assert "<b>NE" not in client.get("/", headers=HEADERS).text
    assert "lines of the journal that are none, and passed over: 1" in shown
    assert "02:03:00" in shown
    assert "02:02:00" not in shown  # the last ten
    (models / "tiny" / JOURNAL).unlink()
    (models / "tiny" / JOURNAL).mkdir()
    assert "the journal cannot be read" in page()
    assert str(models) not in page()
