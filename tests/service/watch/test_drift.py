"""Drift as it is scraped: of features and of answers, against what the version saw at export."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from model.artifact.reference import FeatureReference, NumberBins
from model.scorer.scorer import Reference
from service.metrics.drift_windows import DriftWindows
from tests.artifacts import publish_artifact
from tests.service.in_process import client_of, samples
from tests.service.running import RunningService

ROWS = 400


def request(generator: np.random.Generator, *, videos: int, country: str = "fr") -> dict[str, Any]:
    """Candidates from the first `videos` ids."""
    drawn = generator.integers(0, videos, ROWS)
    return {
        "user": {"user_id": int(generator.integers(0, 30)), "country": country, "tab": 1},
        "candidates": {
            "id": [f"c{n}" for n in range(ROWS)],
            "features": {"video_id": drawn.tolist(), "duration_ms": (drawn * 100.0).tolist()},
        },
    }


def drift_of(client: TestClient, what: str, **labels: str) -> dict[str, float]:
    """The indices of one version by task or feature."""
    name = {"task": "ranking_score_drift", "feature": "ranking_feature_drift"}[what]
    found = {dict(key)[what]: (dict(key), value) for key, value in samples(client, name).items()}
    return {key: value for key, (all_labels, value) in found.items() if labels.items() <= all_labels.items()}


def publish(models: Path) -> None:
    """A version whose reference is the traffic of `request` with 50 videos."""
    whole = request(np.random.default_rng(5), videos=50)
    publish_artifact(models, request=whole)


def test_what_has_moved_is_told_and_what_has_not_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.watch.drift.SAMPLED_PER_SECOND", 1e9)
    monkeypatch.setattr("service.watch.drift._MOST_WAITING", 10_000)
    monkeypatch.setattr("service.watch.drift._WRITE_SECONDS", 0.02)
    publish(tmp_path)
    with client_of(tmp_path) as client:
        every = drift_of(client, "feature", model="tiny", version="1")
        assert {"user_id", "video_id", "duration_ms", "topics"} <= set(every)
        assert "position" not in every
        assert set(drift_of(client, "task", model="tiny", version="1")) == {"click", "like", "play_time"}
        assert all(math.isnan(value) for value in every.values())  # no request yet
        generator = np.random.default_rng(0)

        def ask(videos: int) -> None:
            for _ in range(10):
                assert client.post("/v1/rank", json=request(generator, videos=videos)).status_code == 200

        def wait(condition: Any) -> dict[str, float]:
            for _ in range(3_000):
                found = drift_of(client, "feature")
                if condition(found):
                    return found
            raise AssertionError(found)

        ask(50)
        # The reference has 400 values in some ten bins: by chance about 10 / 400.
        found = wait(lambda found: found["video_id"] < 0.1 and found["duration_ms"] < 0.1)
        # Ten users are too few to say anything of users.
        assert math.isnan(found["user_id"])
        ask(5)
        wait(lambda found: found["video_id"] > 0.25 and found["duration_ms"] > 0.25)
        assert all(value >= 0 for value in drift_of(client, "task").values())


def test_a_version_that_goes_takes_its_drift_along(tmp_path: Path) -> None:
    publish(tmp_path)
    with client_of(tmp_path) as client:
        assert drift_of(client, "task", version="1")
        publish(tmp_path)
        for _ in range(3_000):
            if drift_of(client, "task", version="2") and not drift_of(client, "task", version="1"):
                break
        else:
            raise AssertionError(drift_of(client, "task"))


def test_a_version_that_goes_leaves_no_gauges_behind() -> None:
    registry = CollectorRegistry()
    drift = DriftWindows(registry)
    reference = Reference(
        np.zeros(1), {"click": NumberBins(edges=(0.5,), shares=(0.5, 0.5))}, FeatureReference(features={})
    )

    def versions() -> set[str]:
        return {sample.labels["version"] for family in registry.collect() for sample in family.samples}

    for version in ("1", "2"):
        drift.add_version("tiny", version, reference)
    assert versions() == {"1", "2"}
    drift.remove_version("tiny", "1")
    assert versions() == {"2"}


def test_the_windows_of_all_workers_add_up(tmp_path: Path) -> None:
    publish(tmp_path)
    with RunningService(tmp_path, "--workers", "2") as running:
        running.wait_workers(2)
        generator = np.random.default_rng(0)
        names: set[str] = set()

        def told() -> bool:
            for _ in range(5):
                running.client.post("/v1/rank", json=request(generator, videos=50)).raise_for_status()
            lines = running.client.get("/metrics").text.splitlines()
            names.update(line.partition("{")[0] for line in lines)
            values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("ranking_feature_drift{")]
            return any(value < 1 for value in values)

        running.wait_for(told)
        # The counts by bin are ours, and no metric.
        assert not {name for name in names if "window" in name}
