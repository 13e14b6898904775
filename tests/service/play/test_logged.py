"""Two ways to rank over the last logged requests, against counts by hand."""

import asyncio
import io
import json
import os
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.base.errors import Problem
from service.impressions import parquet, parquet_tail
from service.impressions.record import Logged, read_line
from service.play import last_requests as last
from service.play.last_requests import last_requests, lines_backwards
from service.play.one_job import OneJob
from tests.artifacts import TINY_REQUEST, publish_artifacts
from tests.impression_lines import impression_line
from tests.service.in_process import client_of

WEIGHTS = {"click": 1.0, "like": -1.5, "play_time": 0.002}
DRAFT = {"kind": "weighted_sum", "weights": WEIGHTS}
POLICIES = {"short": {"filter": ["duration_ms <= 30000"]}}
REQUESTS = 40


def requests() -> list[dict[str, Any]]:
    """Requests of many candidates, each with others."""
    generator = np.random.default_rng(5)
    made = []
    for number in range(REQUESTS):
        count = int(generator.integers(2, 30))
        features = {
            "video_id": generator.integers(0, 100, count).tolist(),
            "tag": generator.choice(list("xyz"), count).tolist(),
            "duration_ms": generator.integers(1_000, 60_000, count).tolist(),
        }
        ids = [f"c{row}" for row in range(count)]
        user = {**TINY_REQUEST["user"], "user_id": number}
        made.append({"request_id": f"r-{number}", "user": user, "candidates": {"id": ids, "features": features}})
    return made


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions, the newer pinned, and a log of requests that it answered."""
    models, log = publish_artifacts(tmp_path_factory.mktemp("models"), 2), tmp_path_factory.mktemp("log")
    (models / "tiny/labels.yaml").write_text("{stable: 2, shadow: 1}")
    (models / "tiny/policies.yaml").write_text(yaml.safe_dump(POLICIES))
    with client_of(models, impression_log=log) as client:
        for request in requests():
            assert client.post("/v1/rank", json=request).status_code == 200
    return models, log


def changed(before: Iterable[Sequence[str]], now: Iterable[Sequence[str]]) -> dict[str, int]:
    """Requests in which another candidate is among the first k, by k."""
    pairs = list(zip(before, now, strict=True))
    return {str(k): sum(set(one[:k]) != set(other[:k]) for one, other in pairs) for k in (1, 5, 10)}


def ranked(client: TestClient, **options: str) -> list[list[str]]:
    """The rankings of the service."""
    answers = [client.post("/v1/rank", json={**request, **options}).json() for request in requests()]
    return [answer["candidates"]["id"] for answer in answers]


def by_hand(client: TestClient) -> list[list[str]]:
    """The rankings by the draft: descending sums of the answers, ties by request order."""
    rankings = []
    for request in requests():
        candidates = client.post("/v1/rank", json=request).json()["candidates"]
        scores = dict.fromkeys(candidates["id"], 0.0)
        for output, weight in WEIGHTS.items():
            for identifier, answer in zip(candidates["id"], candidates["tasks"][output], strict=True):
                scores[identifier] += weight * answer
        rankings.append(sorted(request["candidates"]["id"], key=lambda identifier: -scores[identifier]))
    return rankings


def compare(client: TestClient, **sides: Any) -> dict[str, Any]:
    """The answer of the service."""
    answer = client.post("/v1/play/logged", json={"first": {}, "second": {}, **sides})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_what_changes_is_counted_as_by_hand(logged: tuple[Path, Path]) -> None:
    models, log = logged
    with client_of(models) as client:
        default, drafted = ranked(client), by_hand(client)
        older, short = ranked(client, version="1"), ranked(client, policy="short")
    with client_of(models, impression_log=log) as client:
        same = compare(client)
        by_draft = compare(client, second={"draft": DRAFT})
        by_version = compare(client, second={"version": "1"})
        by_policy = compare(client, first={"policy": "short"})
    assert same["changed"] == {"1": 0, "5": 0, "10": 0}
    for found in (same, by_draft, by_version, by_policy):
        assert (found["requests"], found["left_out"]) == (REQUESTS, {})
    assert by_draft["changed"] == changed(default, drafted)
    assert by_version["changed"] == changed(default, older)
    assert by_policy["changed"] == changed(short, default)
    assert 0 < by_draft["changed"]["5"] < REQUESTS
    assert by_draft["since"] <= by_draft["until"]


def test_faults_are_placed_and_no_log_is_said(logged: tuple[Path, Path]) -> None:
    models, log = logged
    with client_of(models) as client:
        assert client.post("/v1/play/logged", json={"first": {}, "second": {}}).status_code == 404
    with client_of(models, impression_log=log) as client:
        bad = [
            ({"first": {}}, "second"),
            ({"first": {"draft": {}}, "second": {}}, "first.draft"),
            ({"first": {}, "second": {"value_model": "no"}}, "second.value_model"),
            ({"first": {}, "second": {"policy": "no"}}, "second.policy"),
        ]
        for body, place in bad:
            answer = client.post("/v1/play/logged", json=body)
            assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, place)
        assert client.post("/v1/play/logged", json={"first": {"version": "9"}, "second": {}}).status_code == 404


def line(request_id: str, second: int, model: str = "tiny") -> bytes:
    """A line of the log."""
    features = {"video_id": [1]}
    logged_line = impression_line(
        request_id,
        f"2026-11-30T12:00:{second:02d}.000Z",
        model,
        user_hash="u",
        user={},
        candidates={"id": ["a"], "features": features},
        score=[0.5],
        tasks={"click": [0.5]},
    )
    return json.dumps(logged_line).encode() + b"\n"


def test_the_last_requests_come_from_open_and_closed_files_and_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last, "_BLOCK_BYTES", 100)
    old, new = "impressions-20261130T110000Z-a.jsonl", "impressions-20261130T120000Z-a.jsonl"
    (tmp_path / old).write_bytes(line("old", 0))
    (tmp_path / new).write_bytes(b"".join(line(f"closed-{n}", n) for n in range(1, 6)) + b'{"half\n')
    loss = json.dumps({"format": 2, "time": "2026-11-30T12:00:30.000Z", "lost": 7, "reason": "queue"}).encode() + b"\n"
    open_lines = line("open-1", 20) + line("other", 21, "other") + loss + line("open-2", 22) + line("cut", 23)[:-9]
    (tmp_path / f".{new.replace('-a', '-b')}.part").write_bytes(open_lines)
    (tmp_path / "impressions-20261130T130000Z-c.parquet").write_bytes(b"PAR1")
    found = last_requests(tmp_path, "tiny", 4)
    assert [one.line.request_id for one in found.requests] == ["closed-4", "closed-5", "open-1", "open-2"]
    assert found.left_out == {
        "files in Parquet that could not be read": 1,
        "damaged lines": 1,
        "requests of other models": 1,
        "requests lost by the log": 7,
    }
    assert len(last_requests(tmp_path, "tiny", 100).requests) == 8


def test_parquet_is_read_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 3)
    hashed = {**json.loads(line("hashed", 9)), "hashes": {"user": 1, "candidate_id": [2], "features": [3]}}
    del hashed["user"], hashed["candidates"], hashed["histories"]
    lines = [line(f"r-{n}", n) for n in range(8)] + [json.dumps(hashed).encode() + b"\n"]
    file = tmp_path / "impressions-20261130T120000Z-a.parquet"
    with file.open("wb") as sink:
        parquet.write(io.BytesIO(b"".join(lines)), sink)
    read = {}
    for limits in (["5", "1000000"], ["5", str(2 * len(lines[0]))]):
        assert parquet_tail.main([str(file), *limits]) == 0
        read[limits[1]] = [read_line(text) for text in capfdbinary.readouterr().out.splitlines()]
    ids = [one.line.request_id for one in read["1000000"] if isinstance(one, Logged)]
    assert ids == ["hashed", "r-7", "r-6", "r-5", "r-4"]
    assert 0 < len(read[str(2 * len(lines[0]))]) < 5
    file.write_bytes(b"PAR1")
    assert parquet_tail.main([str(file), "5", "1000"]) == 1


@given(st.lists(st.sampled_from([b"", b"a", b"\n", b"bc" * 40, b" "]), max_size=30), st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_lines_backwards_are_the_lines(parts: list[bytes], block: int) -> None:
    content = b"".join(parts)
    whole = content[: content.rfind(b"\n") + 1]
    expected = [one for one in whole.split(b"\n") if one.strip()]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile() as file:
        patch.setattr(last, "_BLOCK_BYTES", block)
        file.write(content)
        file.flush()
        with io.BufferedReader(io.FileIO(os.dup(file.fileno()), "rb")) as reader:
            assert list(lines_backwards(reader))[::-1] == expected


@pytest.mark.parametrize("is_shared", [False, True])
def test_one_comparison_runs_at_a_time_over_all_workers(tmp_path: Path, is_shared: bool) -> None:
    began, may_end = threading.Event(), threading.Event()

    def long() -> str:
        began.set()
        assert may_end.wait(60)
        return "ended"

    async def both() -> None:
        one = OneJob(tmp_path if is_shared else None)
        other = OneJob(tmp_path) if is_shared else one
        first = asyncio.create_task(one.run(long))
        await asyncio.to_thread(began.wait, 60)
        with pytest.raises(Problem) as refused:
            await other.run(lambda: "never")
        assert refused.value.status == 429
        may_end.set()
        assert await first == "ended"
        assert await other.run(lambda: "next") == "next"
        with pytest.raises(ZeroDivisionError):
            await one.run(lambda: str(1 / 0))

    asyncio.run(both())
