"""The load test against a real service, and its parts against numbers worked out by hand."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from deploy import load_requests
from deploy.load_report import Step
from deploy.load_requests import Sizes
from deploy.load_test import PRECISION, capacity, main
from deploy.local_cpu import listening_at, spent_by
from deploy.open_loop import FAILED, TIMED_OUT, Outcome
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.reliability.load import metric
from tests.service.running import ROOT, RunningService


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    models = tmp_path_factory.mktemp("models")
    publish_artifact(models)
    # A patient service: on a busy machine a moment's queue must not be refused.
    with RunningService(models, "--threads", "1", "--queue-seconds", "20") as service:
        yield service.wait_ready()


def load_test(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "deploy.load_test", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_all_processes_that_share_a_port_are_found() -> None:
    """As a service's workers do: the child has its socket from the parent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = "import time; print(flush=True); time.sleep(60)"
        with subprocess.Popen(
            [sys.executable, "-c", program], pass_fds=[listener.fileno()], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            found = listening_at(f"http://localhost:{listener.getsockname()[1]}")
            child.kill()
    assert found == {os.getpid(), child.pid}


def test_cpu_time_is_that_of_children_too() -> None:
    before = spent_by([os.getpid()])
    busy = "import time; print(flush=True)\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.readline()
        assert spent_by([os.getpid()]).seconds_since(before) > 0.4
        child.communicate("\n")


def requests_file(folder: Path) -> Path:
    path = folder / "bodies.jsonl"
    # As an impression log has it: what is of the answer is left out.
    loss = {"format": 2, "time": "2026-01-01T00:00:00Z", "lost": 3, "reason": "disk"}
    lines = [loss, {**TINY_REQUEST, "request_id": "r", "score": [1.0], "tasks": {}}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_was_sent_is_what_the_service_counted(service: RunningService, tmp_path: Path) -> None:
    def counted() -> tuple[float, float]:
        """Requests with 200, and their candidates."""
        requests = metric(service.client, "ranking_requests_total", endpoint="/v1/rank", code="200")
        return requests, metric(service.client, "ranking_candidates_per_request_sum")

    before = counted()
    # Recorded arrivals: 12 requests, of which two are past the time.
    arrivals = tmp_path / "arrivals"
    arrivals.write_text("\n".join(str(1000 + 0.05 * number) for number in range(12)))
    run = load_test(
        str(service.client.base_url),
        *("--requests", str(requests_file(tmp_path)), "--candidates", "7", "--arrivals", str(arrivals)),
        *("--seconds", "0.475", "--timeout", "60", "--slo", "60", "--out", str(tmp_path / "out")),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    after = counted()
    assert (after[0] - before[0], after[1] - before[1]) == (10, 70)
    (step,) = json.loads((tmp_path / "out/load_test.json").read_text())["steps"]
    assert step["statuses"] == {"200": 10}
    assert step["cpu_ms_per_request"] is not None
    assert HdrHistogram.decode(step["histogram"]).get_total_count() == 10
    assert (tmp_path / "out/load_test.png").read_bytes().startswith(b"\x89PNG")


def test_a_ramp_tells_the_capacity_and_why_requests_failed(service: RunningService, tmp_path: Path) -> None:
    url = str(service.client.base_url)
    run = load_test(url, "--requests", str(requests_file(tmp_path)), "--ramp", "--max-rate", "40", *_SHORT, "60")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "capacity: 40.0 requests a second" in run.stdout
    # The simulated feed is not this model's: everything is refused, and the answer says which feature.
    run = load_test(url, "--rate", "10", *_SHORT, "60")
    assert run.returncode == 1
    assert "422" in run.stdout
    assert "user_activity" in run.stdout


_SHORT = ("--seconds", "1", "--timeout", "60", "--slo")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ftp://here"], "no address"),
        (["http://127.0.0.1:9", "--requests", "missing.jsonl"], "missing.jsonl"),
        (["http://127.0.0.1:9", "--artifact", "missing"], "not a published version"),
        (["http://127.0.0.1:9", "--arrivals", os.devnull], "a line at the least"),
        (["http://127.0.0.1:9", "--candidates", "many"], "not a number"),
        (["http://127.0.0.1:9", "--candidates", "0:1"], "1 or more"),
        (["http://127.0.0.1:9", "--rate", "1000000", "--seconds", "1000"], "more than 2,000,000"),
        (["http://127.0.0.1:9", "--key-file", "missing"], "missing"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert said in capsys.readouterr().err


def test_a_key_is_sent_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys: set[str | None] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            keys.add(self.headers["Authorization"])
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "key").write_text("key-of-a-file\n")
        monkeypatch.setenv("FEEDRANK_API_KEY", "key-of-the-environment")
        arguments = [url, "--rate", "20", "--seconds", "0.5", "--candidates", "2"]
        assert main(arguments) == 0
        assert keys == {"Bearer key-of-the-environment"}
        assert main([*arguments, "--key-file", str(tmp_path / "key")]) == 0
        server.shutdown()
    assert keys == {"Bearer key-of-the-environment", "Bearer key-of-a-file"}
    shown = capsys.readouterr()
    assert "403 Forbidden" in shown.out
    assert "key-of" not in shown.out + shown.err


@pytest.mark.parametrize("limit", [0.9, 7.0, 50.0, 333.0])
def test_the_search_ends_just_below_the_limit(limit: float) -> None:
    asked: list[float] = []

    def holds(rate: float) -> bool:
        asked.append(rate)
        return rate <= limit

    found = capacity(holds, 20.0, 1e5)
    assert found is not None
    assert limit / PRECISION <= found <= limit
    assert len(asked) == len(set(asked)) < 20


def test_the_search_keeps_to_its_bounds() -> None:
    assert capacity(lambda _: True, 20.0, 90.0) == 90.0
    assert capacity(lambda _: False, 20.0, 90.0) is None


def test_a_step_counts_errors_by_kind_and_has_percentiles_of_answers_alone() -> None:
    seconds = np.arange(1, 1001) / 1000
    status = np.full(1000, 200)
    status[:4] = (429, 503, FAILED, TIMED_OUT)
    step = Step(100.0, 10.0, Outcome(np.zeros(1000), seconds, status, 0.0))
    assert step.statuses == {TIMED_OUT: 1, FAILED: 1, 200: 996, 429: 1, 503: 1}
    assert step.error_share == pytest.approx(0.004)
    # Answers took 5 to 1000 ms, in steps of 1. The histogram keeps three digits.
    for percent in (50.0, 99.0, 99.9):
        expected = seconds[4:][int(np.ceil(996 * percent / 100)) - 1]
        assert step.percentile(percent) == pytest.approx(expected, rel=2e-3)
    assert step.is_within(0.995, 0.005)
    assert not step.is_within(0.9, 0.005)
    assert not step.is_within(0.995, 0.003)


def test_sizes_are_drawn_by_their_weights() -> None:
    sizes = Sizes.parse("20:3,100:6,500:1").draw(np.random.default_rng(1), 10_000)
    for size, share in ((20, 0.3), (100, 0.6), (500, 0.1)):
        # Four standard errors of a share.
        assert sizes.count(size) / 10_000 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 10_000))


def test_requests_take_the_size_they_are_given() -> None:
    bigger = load_requests.resized(TINY_REQUEST, 6)["candidates"]
    assert bigger["id"] == ["a", "b", "c", "d", "a", "b"]
    assert {len(column) for column in bigger["features"].values()} == {6}
    rows = load_requests.resized({"candidates": [{"id": "a"}, {"id": "b"}]}, 1)
    assert rows["candidates"] == [{"id": "a"}]


def test_arrivals_are_read_from_an_impression_log(tmp_path: Path) -> None:
    log = tmp_path / "impressions.jsonl"
    times = ("2026-01-01T00:00:02.500+00:00", "2026-01-01T00:00:00.000+00:00", "2026-01-01T01:00:01.000+01:00")
    lines: list[dict[str, Any]] = [{"time": time, "user": {}} for time in times]
    lines.append({"format": 2, "time": "2026-01-01T09:00:00Z", "lost": 3, "reason": "disk"})
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_requests.arrivals(log).tolist() == [0.0, 1.0, 2.5]
    log.write_text('{"user": {}}\n')
    with pytest.raises(ValueError, match=r"line 1: needs seconds"):
        load_requests.arrivals(log)


def test_simulated_requests_fit_the_simulated_feed() -> None:
    import yaml

    schema = yaml.safe_load((ROOT / "configs/schemas/simulated.yaml").read_text())
    sides = {feature["name"]: feature["side"] for feature in schema["features"]}
    (body,) = load_requests.simulated(np.random.default_rng(0), [30])
    assert set(body["user"]) == {name for name, side in sides.items() if side in ("user", "context")}
    assert set(body["candidates"]["features"]) == {name for name, side in sides.items() if side == "candidate"}
    assert len(set(body["candidates"]["id"])) == 30
