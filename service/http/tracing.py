"""Traces of scoring requests, by OpenTelemetry over OTLP, where an endpoint is configured.

In: finished requests with the times they passed, and the `traceparent` of their client (W3C Trace Context). Out: a
server span for each that is sampled, with its wait for a scoring thread and its scoring as children, in batches from a
thread of the library's own: no request waits for the collector, and what it does not take is dropped. Attributes are
identifiers of models, counts and statuses, never a feature value, a user or a candidate id.

The rest is configured as OpenTelemetry has it: OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS.
"""

import re
import threading
import time
from collections.abc import Mapping
from typing import Any

from service.base.record import RequestRecord

# version-trace id-parent id-flags. Versions after 00 may have more fields behind them.
_FIELDS = r"-(?!0{32})(?P<trace%d>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(rf"00{_FIELDS % 0}|(?!00|ff)[0-9a-f]{{2}}{_FIELDS % 1}(?:-.*)?")
_STOP_SECONDS = 3.0


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace that a client's header names. None without one, or where it is not of the standard's form."""
    if traceparent is None:
        return None
    match = _TRACEPARENT.fullmatch(traceparent)
    return None if match is None else match["trace0"] or match["trace1"]


class Tracing:
    """Sends the spans of one process to `endpoint`, the base URL of an OTLP/HTTP receiver."""

    def __init__(self, endpoint: str) -> None:
        # Half a second of imports, for those alone who want traces.
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # An attribute given here overrides the standard's own variables.
        is_named = OTELResourceDetector().detect().attributes.get(SERVICE_NAME)
        resource = Resource.create({} if is_named else {SERVICE_NAME: "feedrank"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("feedrank")
        self._extract = TraceContextTextMapPropagator().extract
        self._within = trace.set_span_in_context
        self._server = trace.SpanKind.SERVER
        self._failed = trace.Status(trace.StatusCode.ERROR)
        # Spans are on the wall clock, requests on one that never jumps.
        self._wall = time.time() - time.perf_counter()

    def trace(self, record: RequestRecord, headers: Mapping[str, str]) -> None:
        """Record a finished request, if it is sampled. `headers` are those of Trace Context. Notes its trace id."""
        attributes: dict[str, Any] = {
            "http.request.method": "POST",
            "http.route": record.endpoint,
            "http.response.status_code": record.status,
            "feedrank.request_id": record.request_id,
            "feedrank.model": record.model,
            "feedrank.model_version": record.model_version,
            "feedrank.value_model": record.value_model,
            "feedrank.value_model_version": record.value_model_version,
            "feedrank.candidates": record.candidates,
        }
        span = self._tracer.start_span(
            f"POST {record.endpoint}",
            context=self._extract(headers),
            kind=self._server,
            attributes={name: value for name, value in attributes.items() if value is not None},
            start_time=self._nanoseconds(record.started),
        )
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        if record.submitted is not None:
            inside = self._within(span)
            begun = record.begun if record.begun is not None else record.started + record.seconds
            self._child("queue", inside, record.submitted, begun)
            if record.begun is not None and record.scored is not None:
                self._child("score", inside, record.begun, record.scored)
        if record.status >= 500:
            span.set_status(self._failed)
        span.end(self._nanoseconds(record.started + record.seconds))

    def stop(self) -> None:
        """Send what waits, but does not wait long for a collector that does not answer."""
        thread = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        thread.start()
        thread.join(_STOP_SECONDS)

    def _child(self, name: str, context: Any, begun: float, ended: float) -> None:
        self._tracer.start_span(name, context, start_time=self._nanoseconds(begun)).end(self._nanoseconds(ended))

    def _nanoseconds(self, seconds: float) -> int:
        return int((seconds + self._wall) * 1e9)
