"""A candidate's scores, by every engine and every form of request: the same to 1e-6."""

import http.client
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact
from tests.service.open_inference.tensors import HEADER_LENGTH, INFER, binary_body, tensors_of
from tests.service.running import RunningService

TASKS = ("click", "like", "play_time")
# Of probabilities absolute, of quantities relative where they are large.
TOLERANCE = 1e-6
COUNT = 60


def requested() -> dict[str, Any]:
    """A request without nulls, which only JSON can hold."""
    chance = random.Random(4)
    features = {
        "video_id": [chance.randrange(-(2**40), 2**40) for _ in range(COUNT)],
        "tag": [chance.choice(["x", "y", "", "ünï☃"]) for _ in range(COUNT)],
        "topics": [[chance.randrange(6, 11) for _ in range(chance.randrange(6))] for _ in range(COUNT)],
        "duration_ms": [round(chance.uniform(0, 60_000), 2) for _ in range(COUNT)],
    }
    user = {"user_id": 17, "country": "fr", "history": [3, 9, 4, 5], "age_days": 12.5, "tab": 1}
    return {"user": user, "candidates": {"id": [str(number) for number in range(COUNT)], "features": features}}


REQUEST = requested()
Ask = Callable[[str, bytes, dict[str, str]], tuple[bytes, dict[str, str]]]


def chosen(places: list[int]) -> dict[str, Any]:
    """The request with these of its candidates."""
    given = REQUEST["candidates"]
    features = {name: [column[place] for place in places] for name, column in given["features"].items()}
    return {**REQUEST, "candidates": {"id": [given["id"][place] for place in places], "features": features}}


def ranked(ask: Ask, request: dict[str, Any]) -> NDArray[np.float64]:
    """Answers of all tasks by /v1/rank, a row for each candidate, in the order of their ids."""
    found = json.loads(ask("/v1/rank", json.dumps(request).encode(), {})[0])["candidates"]
    if isinstance(found, list):
        found = {
            "id": [row["id"] for row in found],
            "tasks": {task: [row["tasks"][task] for row in found] for task in TASKS},
        }
    order = np.argsort([int(one) for one in found["id"]])
    return np.array([found["tasks"][task] for task in TASKS]).T[order]


def as_columns(ask: Ask) -> NDArray[np.float64]:
    return ranked(ask, REQUEST)


def as_rows(ask: Ask) -> NDArray[np.float64]:
    given = REQUEST["candidates"]
    rows = [
        {"id": identifier, "features": {name: column[place] for name, column in given["features"].items()}}
        for place, identifier in enumerate(given["id"])
    ]
    return ranked(ask, {**REQUEST, "candidates": rows})


def as_tensors(ask: Ask) -> NDArray[np.float64]:
    body = json.dumps({"inputs": [tensor.as_json() for tensor in tensors_of(REQUEST)]}).encode()
    outputs = {one["name"]: one["data"] for one in json.loads(ask(INFER, body, {})[0])["outputs"]}
    return np.array([outputs[task] for task in TASKS]).T


def as_bytes(ask: Ask) -> NDArray[np.float64]:
    body, headers = binary_body(tensors_of(REQUEST), parameters={"binary_data_output": True})
    content, answered = ask(INFER, body, headers)
    length = int(answered[HEADER_LENGTH.lower()])
    columns, after = {}, content[length:]
    for one in json.loads(content[:length])["outputs"]:
        columns[one["name"]] = np.frombuffer(after[: 4 * COUNT], "<f4")
        after = after[4 * COUNT :]
    return np.array([columns[task] for task in TASKS], np.float64).T


def alone(ask: Ask) -> NDArray[np.float64]:
    return np.concatenate([ranked(ask, chosen([place])) for place in range(COUNT)])


def among_others(ask: Ask) -> NDArray[np.float64]:
    """In parts of uneven sizes and in another order."""
    places = random.Random(5).sample(range(COUNT), COUNT)
    answers_NO = np.empty((COUNT, len(TASKS)))
    for part in (places[:3], places[3:20], places[20:]):
        answers_NO[sorted(part)] = ranked(ask, chosen(part))
    return answers_NO


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    publish_artifact(folder)
    return folder


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[RunningService]:
    flags = ("--workers", "2", "--threads", "1", "--queue-seconds", "60")
    with RunningService(models, *flags) as running:
        yield running.wait_workers(2)


@contextmanager
def asking(service: RunningService, worker: int) -> Iterator[Ask]:
    """Ask one worker: the other is stopped until its connection is made."""
    others = service.workers() - {worker}
    url = service.client.base_url
    connection = http.client.HTTPConnection(url.host, url.port, timeout=60)

    def ask(path: str, body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        return content, {name.lower(): value for name, value in response.getheaders()}

    for other in others:
        os.kill(other, signal.SIGSTOP)
    try:
        ranked(ask, chosen([0]))  # answered, so by the one that runs. It has the connection from here on
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)
    try:
        yield ask
    finally:
        connection.close()


def test_scores_are_the_same_by_any_worker_in_any_shape_alone_and_among_others(
    service: RunningService, models: Path
) -> None:
    features = REQUEST["candidates"]["features"]
    expected_NO = Scorer.load(models / "tiny" / "1").score_values(REQUEST["user"], features, COUNT)
    for worker in service.workers():
        with asking(service, worker) as ask:
            for way in (as_columns, as_rows, as_tensors, as_bytes, alone, among_others):
                found_NO = way(ask)
                np.testing.assert_allclose(
                    found_NO, expected_NO, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{way.__name__} by {worker}"
                )
