"""Clients that ask again and again, and every answer they got.

In: a service's address, a number of clients, one request. Out: `Load.answers`. Every request has a connection of its
own, so that the system spreads them over workers. A connection that broke is an answer too, of status BROKEN.
"""

import http.client
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from model.scorer.scorer import Scorer
from tests.artifacts import TINY_REQUEST

BROKEN = 0
_WAIT_SECONDS = 90.0
_BODY = json.dumps(TINY_REQUEST).encode()


class Answer(NamedTuple):
    """One request's outcome."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Load:
    """Asks from `clients` threads while the block runs."""

    def __init__(self, url: httpx.URL, clients: int, body: bytes = _BODY) -> None:
        self.answers: list[Answer] = []
        self._address = (url.host, url.port)
        self._body = body
        self._stop = threading.Event()
        self._has_more = threading.Condition()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, condition: Callable[[Answer], bool]) -> None:
        """Wait for an answer that is yet to come."""
        seen = len(self.answers)
        with self._has_more:
            assert self._has_more.wait_for(lambda: any(map(condition, self.answers[seen:])), _WAIT_SECONDS)

    def wait_for_more(self, number: int) -> None:
        """Wait for so many answers more, as long as there is one now and then."""
        wanted = len(self.answers) + number
        with self._has_more:
            while len(self.answers) < wanted:
                assert self._has_more.wait(_WAIT_SECONDS)

    def of(self, status: int) -> list[Answer]:
        """The answers of one status."""
        return [answer for answer in self.answers if answer.status == status]

    def _ask(self) -> None:
        while not self._stop.is_set():
            answer = ask(self._address, self._body)
            with self._has_more:
                self.answers.append(answer)
                self._has_more.notify_all()


def ask(address: tuple[str, int | None], body: bytes = _BODY) -> Answer:
    """One request to /v1/rank."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.request("POST", "/v1/rank", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    except (OSError, http.client.HTTPException):
        return Answer(BROKEN, {}, b"")
    finally:
        connection.close()


class Truth:
    """Answers of each version to TINY_REQUEST, by a scorer of the test's own."""

    def __init__(self, *versions: Path) -> None:
        self._expected: dict[str, NDArray[np.float32]] = {}
        for version in versions:
            self.know(version)

    def know(self, version: Path) -> None:
        """Load a version and keep its answers, a row for each candidate and a column for each task."""
        scorer = Scorer.load(version)
        self.tasks = scorer.outputs
        features = TINY_REQUEST["candidates"]["features"]
        self._expected[scorer.version] = scorer.score_values(TINY_REQUEST["user"], features, 4)

    def check(self, answer: Answer) -> str:
        """Fail unless the answer is wholly that of the version which it names. Returns the version."""
        content: dict[str, Any] = json.loads(answer.body)
        ranked = content["candidates"]
        assert sorted(ranked["id"]) == sorted(TINY_REQUEST["candidates"]["id"])
        order = [TINY_REQUEST["candidates"]["id"].index(one) for one in ranked["id"]]
        version: str = content["model_version"]
        expected_NO = self._expected[version][order]
        found_NO = np.stack([ranked["tasks"][task] for task in self.tasks], axis=1)
        # The same float32 answers in decimal digits. Quantities may be large, so relative where they are.
        np.testing.assert_allclose(found_NO, expected_NO, rtol=1e-6, atol=1e-6)
        # The built-in value model: the sum of the probabilities.
        np.testing.assert_allclose(ranked["score"], expected_NO[:, :2].sum(axis=1, dtype=np.float64), atol=1e-6)
        assert ranked["score"] == sorted(ranked["score"], reverse=True)
        return version


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
