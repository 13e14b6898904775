"""The service inside the test's own process: for details, where a real server adds only time.

In: a models folder and settings. Out: a client of the whole ASGI application, lifespan included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings

POLL_SECONDS = 0.02


@contextmanager
def client_of(models: Path, **settings: Any) -> Iterator[TestClient]:
    """A client of a service that has polled its models folder once."""
    given = {"models": models, "threads": 1, "poll_seconds": POLL_SECONDS, **settings}
    with TestClient(create_app(Settings.model_validate(given))) as client:
        yield client


def samples(client: TestClient, name: str) -> dict[frozenset[tuple[str, str]], float]:
    """The samples of one name in /metrics, by their labels."""
    return {
        frozenset(sample.labels.items()): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == name
    }


def sample(client: TestClient, name: str, **labels: str) -> float:
    """One sample. Raises KeyError where its label set is not exported."""
    return samples(client, name)[frozenset(labels.items())]


def request_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The fields of the log lines of requests, in order."""
    records = [record for record in caplog.records if record.name == "feedrank.requests"]
    return [dict(fields) for record in records for _, fields in record.__dict__["lines"]]
