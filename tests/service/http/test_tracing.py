"""Trace Context in log lines, and spans as a collector receives them."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from service.base.record import RequestRecord
from service.http.tracing import Tracing, trace_id_of
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of, request_lines
from tests.service.running import RunningService

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize(
    ("given", "trace"),
    [
        (TRACEPARENT, TRACE),
        (f"00-{TRACE}-{PARENT}-00", TRACE),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", TRACE),
        (f"00-{TRACE}-{PARENT}-01-more", None),  # version 00 has four fields
        (f"ff-{TRACE}-{PARENT}-01", None),  # forbidden by the standard
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (TRACEPARENT.upper(), None),
        (TRACEPARENT + "\n", None),
        ("", None),
        (None, None),
    ],
)
def test_a_traceparent_is_read_as_the_standard_says(given: str | None, trace: str | None) -> None:
    assert trace_id_of(given) == trace


def test_the_log_line_of_a_request_names_its_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client, caplog.at_level("INFO", logger="feedrank"):
        client.post("/v1/rank", json=TINY_REQUEST, headers={"traceparent": TRACEPARENT})
        client.post("/v1/rank", json=TINY_REQUEST)
    assert [line.get("trace_id") for line in request_lines(caplog)] == [TRACE, None]


@contextmanager
def collector(service_name: str = "feedrank") -> Iterator[tuple[str, "Queue[Span]"]]:
    """An OTLP/HTTP receiver, and the spans that it was sent."""
    spans: Queue[Span] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for of_resource in sent.resource_spans:
                names = {entry.key: entry.value.string_value for entry in of_resource.resource.attributes}
                assert names["service.name"] == service_name
                for of_scope in of_resource.scope_spans:
                    for span in of_scope.spans:
                        spans.put(span)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_receives_the_spans_of_scoring_requests(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    candidates = TINY_REQUEST["candidates"]
    request = {**TINY_REQUEST, "candidates": {**candidates, "id": [f"candidate-{id}" for id in candidates["id"]]}}
    with collector() as (url, sent):
        with client_of(tmp_path, otlp_endpoint=url) as client:
            client.post("/v1/rank", json=request, headers={"traceparent": TRACEPARENT})
            # What its client does not sample is not sampled here.
            client.post("/v1/rank", json=TINY_REQUEST, headers={"traceparent": f"00-{'5' * 32}-{PARENT}-00"})
            client.post("/v1/rank", json={})
            client.get("/healthz")
        spans = [sent.get_nowait() for _ in range(sent.qsize())]  # the end of the service has sent what waited
    roots = {span.trace_id.hex(): span for span in spans if span.name == "POST /v1/rank"}
    assert len(roots) == 2
    assert roots[TRACE].parent_span_id.hex() == PARENT
    attributes = {entry.key: entry.value for entry in roots[TRACE].attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["feedrank.candidates"].int_value == len(TINY_REQUEST["candidates"]["id"])
    assert attributes["feedrank.model_version"].string_value == "1"
    assert roots[TRACE].status.code == Status.StatusCode.STATUS_CODE_UNSET
    inside = {span.name: span for span in spans if span.trace_id.hex() == TRACE and span.parent_span_id.hex() != PARENT}
    assert set(inside) == {"queue", "score"}
    for span in inside.values():
        assert span.parent_span_id == roots[TRACE].span_id
        assert roots[TRACE].start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= roots[TRACE].end_time_unix_nano
    assert inside["queue"].end_time_unix_nano == inside["score"].start_time_unix_nano
    # Identifiers and counts alone: no value of a feature, no id of a candidate.
    assert "candidate-" not in "".join(map(str, spans))


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "feedrank"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ads,service.namespace=feeds"}, "ads"),
        ({"OTEL_SERVICE_NAME": "home"}, "home"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ads", "OTEL_SERVICE_NAME": "home"}, "home"),  # as the standard says
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.namespace=feeds"}, "feedrank"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "", "OTEL_SERVICE_NAME": ""}, "feedrank"),
    ],
)
def test_the_service_has_the_name_that_the_standard_variables_give(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with collector(name) as (url, sent):
        tracing = Tracing(url)
        tracing.trace(RequestRecord(request_id="r-1", endpoint="/v1/rank"), {})
        tracing.stop()
        assert sent.qsize() == 1


def test_a_collector_that_is_away_costs_no_request_and_no_clean_end(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    with RunningService(tmp_path / "models", "--otlp-endpoint", "http://127.0.0.1:9") as service:
        service.wait_ready()
        for _ in range(20):
            assert service.client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
        assert service.stop(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in service.log]  # the library's complaints are JSON too
    assert any(line["logger"].startswith("opentelemetry") for line in lines)
