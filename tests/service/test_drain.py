"""The service between SIGTERM and its end."""

import signal
from pathlib import Path

import httpx
import pytest

from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.running import RunningService


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_after_sigterm_it_is_unready_and_scores_until_a_second_signal(tmp_path: Path, second: signal.Signals) -> None:
    publish_artifact(tmp_path)
    with RunningService(tmp_path, "--drain-seconds", "600") as service:
        service.wait_ready()
        service.process.send_signal(signal.SIGTERM)
        service.wait_for(lambda: service.client.get("/readyz").status_code == 503)
        assert "shutting down" in service.client.get("/readyz").json()["detail"]
        assert service.client.get("/healthz").status_code == 200
        assert service.client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
        url = f"{service.client.base_url}/v1/rank"
        assert httpx.post(url, json=TINY_REQUEST, timeout=30, trust_env=False).status_code == 200  # a new connection
        assert service.stop(second) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_ends_by_itself_once_the_time_is_over(tmp_path: Path, workers: str) -> None:
    publish_artifact(tmp_path)
    with RunningService(tmp_path, "--drain-seconds", "0.5", "--workers", workers, "--threads", "1") as service:
        service.wait_ready()
        assert service.stop(signal.SIGTERM) == 0
        assert not any("Traceback" in line for line in service.log), service.log


def test_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with RunningService(tmp_path, "--drain-seconds", "600") as service:
        service.wait_ready()
        assert service.stop(signal.SIGINT) == 0
