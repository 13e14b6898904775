"""The journal beside the versions: its decisions are metrics of a service, which never waits for it."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from model.rollout.decisions import ACCEPT, DAILY, DATA_GATE, DAY, FAIL, FINISH, JUDGE, QUARANTINE, WITHDRAW
from model.rollout.journal import Entry, Journal
from service.metrics.metrics import Metrics
from service.models.store import ModelStore
from tests.artifacts import publish_artifact
from tests.service.models.test_store import store_of


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_artifact(tmp_path / "models")
    return tmp_path / "models"


def at(day: int, hour: int = 3) -> datetime:
    return datetime(2026, 11, day, hour, tzinfo=UTC)


def entry(time: datetime, step: str, decision: str, **figures: str) -> Entry:
    return Entry(time=time, step=step, decision=decision, figures=dict(figures), who="daily")


def values(store: ModelStore) -> dict[str, float]:
    """The loop's metrics of `tiny` by name."""
    metrics: Metrics = store._metrics
    samples = [sample for metric in metrics.registry.collect() for sample in metric.samples]
    of_loop = ("ranking_daily", "ranking_data_day", "ranking_quarantined", "ranking_day", "ranking_canary_withdrawn")
    return {sample.name: sample.value for sample in samples if sample.name.startswith(of_loop)}


def test_a_model_without_nights_has_no_metrics_of_a_daily_job(models: Path) -> None:
    Journal(models / "tiny").append(entry(at(1), JUDGE, WITHDRAW))
    store = store_of(models)
    assert values(store) == {}


def test_decisions_are_metrics_as_soon_as_they_are_written(models: Path) -> None:
    journal = Journal(models / "tiny")
    journal.append(entry(at(1), DATA_GATE, ACCEPT, **{DAY: "2026-10-31"}))
    journal.append(entry(at(1), DAILY, FINISH))
    store = store_of(models)
    # The last of October ends where the first of November begins.
    assert values(store) == {
        "ranking_daily_finished_timestamp_seconds": at(1).timestamp(),
        "ranking_daily_failed": 0,
        "ranking_data_day_end_timestamp_seconds": at(1, hour=0).timestamp(),
        "ranking_quarantined_days": 0,
    }
    journal.append(entry(at(2), DATA_GATE, QUARANTINE, **{DAY: "2026-11-01"}))
    journal.append(entry(at(2, hour=4), JUDGE, WITHDRAW))
    journal.append(entry(at(2, hour=5), DAILY, FAIL))
    store.refresh()
    assert values(store) == {
        "ranking_daily_finished_timestamp_seconds": at(1).timestamp(),
        "ranking_daily_failed": 1,
        "ranking_data_day_end_timestamp_seconds": at(2, hour=0).timestamp(),
        "ranking_quarantined_days": 1,
        "ranking_day_quarantined_timestamp_seconds": at(2).timestamp(),
        "ranking_canary_withdrawn_timestamp_seconds": at(2, hour=4).timestamp(),
    }


def test_a_journal_that_cannot_be_read_is_shown_and_serving_goes_on(models: Path) -> None:
    journal = Journal(models / "tiny")
    journal.append(entry(at(1), DAILY, FINISH))
    store = store_of(models)
    journal.path.unlink()
    os.mkfifo(journal.path)
    store.refresh()
    family = store._families["tiny"]
    assert "journal.jsonl: cannot be read" in (family.errors["journal"] or "")
    assert values(store)["ranking_daily_finished_timestamp_seconds"] == at(1).timestamp()
    assert store.find("tiny", None).scorer.version == "1"
    journal.path.unlink()
    journal.append(entry(at(2), DAILY, FINISH))
    store.refresh()
    assert family.errors["journal"] is None
    assert values(store)["ranking_daily_finished_timestamp_seconds"] == at(2).timestamp()
