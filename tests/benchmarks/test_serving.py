"""Checks of `make bench-serving`: it compares the same ranker, and its tools tell the truth."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import columnar_service, serving_report, usual_service
from benchmarks.as_trained import publish
from benchmarks.load_generator import Block
from benchmarks.plain_adatt import PlainAdaTT
from benchmarks.reference_feed import SCHEMA, TASKS, columnar_request
from benchmarks.serving_processes import load_generator
from benchmarks.serving_services import usual_body
from benchmarks.serving_stages import flop_per_candidate
from deploy.local_cpu import Cpu
from model.scorer.scorer import Scorer


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An artifact of the reference feed and its ranker as it was trained."""
    folder = tmp_path_factory.mktemp("reference")
    as_trained = folder / "as_trained.pt"
    return publish(folder / "models", columnar_request(7, 0), as_trained), as_trained


def _ragged(candidates: int, seed: int) -> dict[str, Any]:
    """A request whose lists have all lengths from 0 to 10."""
    request = copy.deepcopy(columnar_request(candidates, seed))
    features = request["candidates"]["features"]
    for name, column in features.items():
        if "list" in name:
            features[name] = [values[: n % 11] for n, values in enumerate(column)]
    return request


@pytest.mark.parametrize(
    ("make_app", "path", "encode"),
    [(usual_service.make_app, "/rank", usual_body), (columnar_service.make_app, "/v1/rank", dict)],
    ids=["usual", "columnar"],
)
@pytest.mark.parametrize("candidates", [1, 2, 33])
def test_services_that_are_compared_answer_as_feedrank_does(
    make_app: Callable[[], ASGIApp],
    path: str,
    encode: Callable[[dict[str, Any]], dict[str, Any]],
    candidates: int,
    published: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact, as_trained = published
    monkeypatch.setenv("AS_TRAINED", str(as_trained))
    request = _ragged(candidates, seed=candidates)
    answer = TestClient(make_app()).post(path, json=encode(request)).raise_for_status().json()["candidates"]
    rows = answer if isinstance(answer, list) else _rows(answer)
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    by_id = {row["id"]: [row["tasks"][task] for task in TASKS] for row in rows}
    got_NO = np.array([by_id[one] for one in request["candidates"]["id"]])
    expected_NO = Scorer.load(artifact).score_values(request["user"], request["candidates"]["features"], candidates)
    # float32 sums of some hundred products in another order. Another candidate's answers are 1e-3 away.
    np.testing.assert_allclose(got_NO, expected_NO, rtol=0, atol=1e-6)
    if candidates > 1:
        assert np.ptp(expected_NO, axis=0).min() > 1e-4


def _rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    tasks = [dict(zip(TASKS, row, strict=True)) for row in zip(*(columns["tasks"][t] for t in TASKS), strict=True)]
    triples = zip(columns["id"], columns["score"], tasks, strict=True)
    return [{"id": identifier, "score": score, "tasks": answers} for identifier, score, answers in triples]


def test_flop_of_a_candidate_are_those_that_torch_counts() -> None:
    width = 16 * 24 + 8
    network = PlainAdaTT(width, [[256], [128]], len(SCHEMA.tasks), 2, [64])
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(5, width))
    native = 2 * 3 * 2 * (256 + 128)  # a product of its own there, folded into the gate's in what is served
    assert counter.get_total_flops() == 5 * (flop_per_candidate(width) + native)


def test_cpu_time_counts_new_threads_and_forgets_those_that_ended() -> None:
    before = Cpu({1: 5_000_000_000, 2: 9_000_000_000})
    after = Cpu({1: 6_500_000_000, 3: 250_000_000})
    assert after.seconds_since(before) == 1.75


@contextmanager
def _server(status: int) -> Iterator[tuple[int, list[bytes]]]:
    """An HTTP server that answers every POST with `status`: its port, the bodies it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the name is the base class's
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1], bodies
        finally:
            server.shutdown()
            thread.join()


def test_load_generator_keeps_its_bounds_and_refuses_what_is_not_answered(tmp_path: Path) -> None:
    file = tmp_path / "bodies.json"
    file.write_text(json.dumps(["one", "zwölf"]))
    with load_generator() as generator:
        with _server(200) as (port, bodies):
            load = generator(Block(port, "/x", str(file), requests=11, concurrency=3, seconds=60))
            assert len(load.latencies) == 11
            assert sorted(bodies) == sorted([b"one"] * 6 + ["zwölf".encode()] * 5)
            assert 0 < max(load.latencies) <= load.seconds
            late = generator(Block(port, "/x", str(file), requests=10**9, concurrency=2, seconds=0.05))
            assert len(late.latencies) == len(bodies) - 11
        with _server(503) as (port, _), pytest.raises(RuntimeError, match=r"answered with 503"):
            generator(Block(port, "/x", str(file), requests=2, concurrency=1, seconds=60))
        with pytest.raises(RuntimeError, match="ConnectionRefusedError"):
            generator(Block(port, "/x", str(file), requests=2, concurrency=1, seconds=60))


def _way(cpu_ms: list[float]) -> dict[str, Any]:
    load = {"cpu_ms": cpu_ms, "requests_per_second": [10.0], "p50_ms": 1.0, "p99_ms": 2.0, "client_cpu_ms": 0.1}
    return {"1": load, "8": load}


def test_ratios_are_taken_within_a_turn_and_growth_is_per_candidate() -> None:
    stages = {"stages_us": {}, "as_trained_us": 1000.0, "gemm_flops_per_second": 1e9}
    data = {
        "note": "a quiet machine.",
        "turns": 3,
        "largest_score_difference": 1e-7,
        "left_out": {"feedrank compiled": "no compiler"},
        "cores": {"servers": [0], "client": [1]},
        "mlserver": {},
        "sizes": {
            "100": {"usual service, rows": _way([10, 40, 20]), "feedrank TorchScript, columns": _way([2, 4, 10])},
            "1000": {"usual service, rows": _way([50, 400, 200]), "feedrank TorchScript, columns": _way([10, 40, 100])},
        },
        "stages": {
            "gemm_shape": [1536, 160],
            "flop_per_candidate": {"needed": 1_000_000, "as_trained": 2_000_000},
            "sizes": {"100": stages, "1000": stages},
        },
    }
    body = "\n".join(serving_report.body_of(data))
    # 10/2, 40/4, 20/10.
    assert "| 100 | feedrank TorchScript, columns | 4.00 (2.00 to 10.00) | 5.00 (2.00 to 10.00) |" in body
    # 50/10, 400/40, 200/20, a tenth of each for ten times the candidates.
    assert "| usual service, rows | 1.00 (0.50 to 1.00) |" in body
    # 100 candidates of 2 MFLOP in a millisecond.
    assert "| 100 | as trained | 1.00 | 200.0 | 1.0 |" in body
    assert "Left out: feedrank compiled (no compiler)." in body
    assert "a quiet machine." in body
    assert serving_report.picture(data).startswith(b"\x89PNG")
