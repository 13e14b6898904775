"""Generated requests to a real server: answered or refused by name, never a 5xx but 504, never nothing.

From the service's own description (schemathesis), and from what is nearly right, which finds more. Each has half of the
requests. SIZES says how many.
"""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.core.result import Ok

from tests.artifacts import publish_artifact
from tests.reliability.sizes import SIZES
from tests.service import test_fuzz as rank_bodies
from tests.service.open_inference import test_open_inference_fuzz as infer_bodies
from tests.service.open_inference.tensors import HEADER_LENGTH, INFER
from tests.service.running import RunningService

PATIENCE_SECONDS = 30  # what hangs fails. A busy machine takes its time
# Routes without arguments get a few requests. These are where requests differ.
RANK, INFER_ROUTES = "/v1/rank", ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")


def fuzz(examples: int) -> settings:
    """So many examples, others every time. A failing one is shown as it was found, as shrinking sends thousands
    more."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


class Asked:
    """A running service, and how many requests it has answered."""

    def __init__(self, service: RunningService) -> None:
        self.service = service
        self.count = 0
        url = service.client.base_url
        self._connection = http.client.HTTPConnection(url.host, url.port, timeout=PATIENCE_SECONDS)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        """Ask, and check the answer."""
        self._connection.request("POST", path, body, headers)
        response = self._connection.getresponse()
        content = response.read()
        self.check(path, response.status, response.getheader("content-type") or "", content)

    def check(self, path: str, status: int, media_type: str, content: bytes) -> None:
        """Fail unless it is an answer, or a refusal that says what is wrong, and where in the body if it is there."""
        self.count += 1
        assert status < 500 or status == 504, (path, status, content)
        if status < 400:
            return
        refusal = json.loads(content)
        if path.startswith("/v2"):
            assert list(refusal) == ["error"], content
            assert refusal["error"]
            return
        assert media_type == "application/problem+json", (path, status, content)
        assert refusal["status"] == status
        assert refusal["title"]
        assert refusal["detail"]
        if status in (400, 422):
            assert refusal["errors"], content
            assert all(fault["path"] and fault["message"] for fault in refusal["errors"])


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    models = tmp_path_factory.mktemp("models")
    publish_artifact(models)
    # A queue without a bound: how busy this machine is besides must not decide what is shed.
    with RunningService(models, "--threads", "1", "--queue-seconds", "60") as service:
        asked = Asked(service.wait_ready())
        yield asked
        asked.close()
        assert service.client.get("/readyz").status_code == 200
        failed = [line for line in service.log if '"level":"error"' in line]
        assert not failed, failed[:3]


def test_requests_that_are_nearly_right(asked: Asked) -> None:
    before = asked.count
    half = SIZES.fuzzed // 4

    @fuzz(half)
    @given(body=rank_bodies.BODIES | rank_bodies.JSON)
    def rank(body: Any) -> None:
        asked.post(RANK, json.dumps(body).encode(), {})

    @fuzz(SIZES.fuzzed // 2 - half)
    @given(body=infer_bodies.BODIES | infer_bodies.JSON, after=st.binary(max_size=32), has_header=st.booleans())
    def infer(body: Any, after: bytes, has_header: bool) -> None:
        text = json.dumps(body).encode()
        headers = {HEADER_LENGTH: str(len(text))} if has_header else {}
        asked.post(INFER, text + after, headers)

    rank()
    infer()
    assert asked.count - before >= SIZES.fuzzed // 2


def test_requests_of_the_description(asked: Asked) -> None:
    before = asked.count
    schema = schemathesis.openapi.from_dict(asked.service.client.get("/openapi.json").json())
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    scoring = [operation for operation in operations if operation.path in (RANK, *INFER_ROUTES)]
    assert len(scoring) == 3
    others = len(operations) - len(scoring)
    few = max(1, SIZES.fuzzed // 20 // others)
    many = -(-(SIZES.fuzzed // 2 - few * others) // len(scoring))
    url = str(asked.service.client.base_url)
    session = requests.Session()
    for operation in operations:

        @fuzz(many if operation in scoring else few)
        @given(case=operation.as_strategy())
        def ask(case: Case[Any]) -> None:
            response = case.call(base_url=url, session=session, timeout=PATIENCE_SECONDS)
            media_type = response.headers.get("content-type", [""])[0]
            asked.check(case.operation.path, response.status_code, media_type, response.content)

        ask()
    session.close()
    assert asked.count - before >= SIZES.fuzzed // 2 * 0.9  # some routes take nothing, and get one request
