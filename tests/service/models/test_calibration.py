"""A calibration that was fitted after a version's export, as the service takes it up, names it and refuses it."""

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.calibration import Calibration
from model.scorer.scorer import Scorer
from service.metrics.metrics import Metrics
from service.models.store import ModelStore
from tests.artifacts import TINY_REQUEST, publish_artifact, writable
from tests.service.impressions.impressions_read import lines_of
from tests.service.running import RunningService
from training.publish.recalibrate import publish_generation

OWN = {"click": {"kind": "platt", "slope": 1.0, "intercept": -0.5}}


def publish_calibration(version: Path, intercept: float) -> Path:
    """A generation that moves the logit of a click."""
    scorer = Scorer.load(version)
    maps = {"click": {"kind": "platt", "slope": 1.0, "intercept": intercept}}
    means = dict.fromkeys(scorer.outputs, 0.125)
    content = {"source": "test", "data_window": {}, "rows": 7, "tasks": {}, "means": means}
    return publish_generation(scorer, Calibration.from_mapping({"tasks": maps}, "test"), content, None)


def clicks(answer: dict[str, Any]) -> dict[str, float]:
    return dict(zip(answer["candidates"]["id"], answer["candidates"]["tasks"]["click"], strict=True))


def moved(probability: float, by: float) -> float:
    """A probability whose logit is moved."""
    return 1 / (1 + math.exp(-(math.log(probability / (1 - probability)) + by)))


def test_a_generation_is_taken_up_by_a_process_that_serves(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path / "models", calibration=OWN)
    log = tmp_path / "log"
    log.mkdir()
    with RunningService(tmp_path / "models", "--impression-log", str(log)) as service:
        service.wait_ready()
        first = service.client.post("/v1/rank", json=TINY_REQUEST).json()
        assert "calibration" not in first
        served = publish_calibration(version, intercept=1.5)
        service.wait_for(lambda: "calibration" in service.client.post("/v1/rank", json=TINY_REQUEST).json())
        second = service.client.post("/v1/rank", json={**TINY_REQUEST, "request_id": "second"}).json()
        assert second["calibration"] == "1"
        before, after = clicks(first), clicks(second)
        assert after == {name: pytest.approx(moved(p, 2.0), rel=1e-5) for name, p in before.items()}
        (entry,) = service.client.get("/v1/models").json()["models"]
        (shown,) = entry["versions"]
        assert (shown["calibration"], shown["calibration_reason"]) == ("1", None)
        page = service.client.get("/metrics").text
        assert 'ranking_model_info{calibration="1",engine="torchscript",model="tiny",version="1"} 1.0' in page
        assert 'ranking_model_info{calibration="",engine="torchscript",model="tiny",version="1"} 0.0' in page
        assert 'ranking_task_score_reference_mean{model="tiny",task="click",version="1"} 0.125' in page
        # One that does not verify is left out, with its reason. What serves does not change.
        shutil.copytree(served, tmp_path / "copied")
        (tmp_path / "copied").rename(served.with_name("2"))

        def reason() -> str:
            (model,) = service.client.get("/v1/models").json()["models"]
            return str(model["versions"][0]["calibration_reason"] or "")

        service.wait_for(lambda: bool(reason()))
        assert "calibration/2: the manifest says generation 1; the folder was renamed" in reason()
        assert str(tmp_path) not in reason()
        assert clicks(service.client.post("/v1/rank", json=TINY_REQUEST).json()) == after
        requests = service.log_lines("feedrank.requests")
        (line,) = [line for line in requests if line["request_id"] == "second"]
        assert line["calibration"] == "1"
        status = service.stop(signal.SIGTERM)  # what was logged is in whole files then
    assert status == 0
    by_id = {line["request_id"]: line for line in lines_of(log)}
    assert by_id["second"]["calibration"] == "1"
    line = by_id[first["request_id"]]
    assert line["calibration"] is None
    np.testing.assert_allclose(line["tasks"]["click"], [moved(p, -0.5) for p in line["raw"]["click"]], rtol=1e-5)
    assert by_id["second"]["raw"] == line["raw"]


def test_a_service_that_starts_has_the_newest_that_verifies(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path, calibration=OWN)
    publish_calibration(version, intercept=1.0)
    bad = writable(publish_calibration(version, intercept=2.0))
    (bad / "manifest.json").write_text("{}")
    store = ModelStore(tmp_path, Metrics(), poll_seconds=3600, torch_threads=1)
    store.refresh()
    scorer = store.find(None, None).scorer
    assert scorer.calibration.generation == "1"
    assert "calibration/2" in store.entry("tiny")["versions"][0]["calibration_reason"]
    scorer.check_golden_requests()  # of the version's own calibration, and of the generation's
    begun = scorer.calibration
    publish_calibration(version, intercept=3.0)
    store.refresh()
    assert scorer.calibration.generation == "3"
    assert begun.generation == "1", "a request that has begun keeps it"
    assert store.entry("tiny")["versions"][0]["calibration_reason"] is None
    loads = {
        result: store._metrics.registry.get_sample_value("ranking_model_load_total", {"result": result})
        for result in ("calibration_ready", "calibration_refused")
    }
    assert loads == {"calibration_ready": 2, "calibration_refused": 1}


def test_what_is_compiled_later_keeps_the_calibration(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path, calibration=OWN)
    publish_calibration(version, intercept=1.0)
    store = ModelStore(tmp_path, Metrics(), poll_seconds=3600, torch_threads=1)
    store.refresh()
    begun = store.find(None, None).scorer
    compiled = version.parent / "derived" / "1" / "compiled"
    compiled.mkdir(parents=True)
    (compiled / "manifest.json").write_text(json.dumps({}))
    store.refresh()
    reloaded = store.find(None, None).scorer
    assert reloaded is not begun, "something has appeared beside the version"
    assert reloaded.calibration.generation == "1"
