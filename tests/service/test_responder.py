"""A scoring request's way through its process, seen from inside."""

import gc
from pathlib import Path

from service.process.scoring_threads import Job
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import wait_for
from tests.service.in_process import client_of


def jobs() -> list[Job]:
    return [one for one in gc.get_objects() if type(one) is Job]


def test_an_answered_request_is_freed_without_the_collector(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        gc.collect()
        gc.disable()
        try:
            for headers in ({}, {"x-request-timeout-ms": "600000"}):
                assert client.post("/v1/rank", json=TINY_REQUEST, headers=headers).status_code == 200
            # A scoring thread lets its last job go after the answer is on its way.
            wait_for(lambda: not jobs())
        finally:
            gc.enable()
