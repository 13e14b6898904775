"""Requests that are nearly right, framing included, to the whole service: one answer each, no 5xx but 503 and 504."""

import asyncio
import logging

import pytest

from service.app import create_app
from service.settings import Settings
from tests.artifacts import publish_artifact
from tests.service.fuzzing import Outcome, fuzz

REQUESTS = 20_000


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    models = tmp_path_factory.mktemp("models")
    publish_artifact(models)
    logging.getLogger("feedrank.requests").setLevel(logging.WARNING)
    try:
        # A queue without a bound: how busy this machine is besides must not decide what is shed.
        settings = Settings(models=models, threads=1, queue_seconds=60, max_body_bytes=20_000, max_candidates=50)
        return asyncio.run(fuzz(create_app(settings), REQUESTS, seed=16))
    finally:
        logging.getLogger("feedrank.requests").setLevel(logging.NOTSET)


def test_each_request_gets_its_answer(outcome: Outcome) -> None:
    assert outcome.requests >= REQUESTS
    assert outcome.hangs == 0
    assert outcome.faults == []


def test_they_are_nearly_right(outcome: Outcome) -> None:
    """Enough is answered, and enough refused for each reason, that it tests what it says."""
    assert outcome.statuses[200] > 0.1 * REQUESTS
    assert outcome.statuses[422] > 0.1 * REQUESTS
    assert all(outcome.statuses[status] > 10 for status in (400, 404, 405, 413, 415))
