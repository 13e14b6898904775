"""Prometheus metrics of the service, by the names that dashboards and alerts are built on.

In: what requests and model loads report. Out: the text of GET /metrics. Units: seconds, task scores in the task's own
unit. The label `task` names an output: a task, or a class of one as `task.class`.

With several workers (PROMETHEUS_MULTIPROC_DIR is set by the parent before this module is imported) each worker writes
its own files and any worker answers with the sum over all of them. There, a label set cannot be withdrawn.
`ranking_model_info` of a model version that is served no more is 0 in either case.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from service.base.log import stderr_queue
from service.metrics.batched_histogram import BatchedHistogram
from service.metrics.connection_metrics import ConnectionMetrics
from service.metrics.drift_windows import DriftWindows
from service.metrics.experiment_metrics import ExperimentMetrics
from service.metrics.family import Collected, Families, Family
from service.metrics.loop_metrics import LoopMetrics
from service.metrics.policy_metrics import PolicyMetrics
from service.metrics.process_counters import LOG_LINES_DROPPED, WORKER_RESTARTS
from service.metrics.shadow_metrics import ShadowMetrics
from service.metrics.shared_files import forget_dead_workers, free_bytes
from service.metrics.ship_metrics import ShipMetrics
from service.metrics.state_metrics import StateMetrics

RANK = "/v1/rank"
BATCH = "/v1/rank:batch"
INFER = "/v2/models/{name}/infer"
EVENTS = "/v1/events"
SCORING = (RANK, BATCH, INFER)
ENDPOINTS = (
    *SCORING,
    EVENTS,
    "/v1/models",
    "/v1/models/{name}",
    "/v1/models/{name}/request-schema",
    "/v1/models/{name}/users/{key}",
    "/v1/admin/models/{name}/labels",
    "/v1/admin/models/{name}/value_models/{entry}",
    "/v1/play/models",
    "/v1/play/rank",
    "/v1/play/logged",
    "/",
    "/play",
    "/healthz",
    "/readyz",
    "/metrics",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{name}",
    "/v2/models/{name}/ready",
    "/openapi.json",
    "/docs",
    "other",
)
SCORING_CODES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504)
REJECTIONS = (
    "body_too_large",
    "slow_body",
    "shed",
    "no_room",
    "too_many_candidates",
    "not_ready",
    "draining",
    "deadline",
    "unauthenticated",
    "forbidden",
    "not_finite",
    "event_log",
    "state_store",
)
# Of a worker: gets requests from balancers that poll /readyz, or does not.
WORKER_STATES = ("ready", "unready")
IMPRESSION_RESULTS = ("written", "dropped", "failed", "full", "no_key", "killed")
EVENT_RESULTS = ("written", "full", "slow", "failed")
# Beside a model's versions.
_FILES = ("value_models", "state", "policies", "experiments", "catalogue", "calibration", "labels")
LOAD_RESULTS = (
    "ready",
    "compiled_refused",
    "quarantined",
    "golden_failed",
    *(f"{file}_{result}" for file in _FILES for result in ("ready", "refused")),
)
# Files that are of no single model. A model's are its version, labels, value_models and catalogue.
COMMON_FILES = ("models", "keys", "tls")
# Known, known with features of the request before the catalogue's, unknown with features of its own, nothing known.
LOOKUP_RESULTS = ("known", "overridden", "inline", "unknown")

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_DELAYS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 21600.0, 86400.0, 604800.0)
_COUNTS = (1, 5, 10, 25, 50, 100, 200, 300, 500, 1000, 2000, 5000)
# Probabilities and, above 1, the quantities of regression tasks (a play time in ms, say).
_SCORES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
_COMBINED = (-100.0, -10.0, -3.0, -1.0, -0.3, -0.1, 0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)

# Of versions that are served no more, so many keep their metrics: the last scrapes still read them, and one that comes
# back goes on counting. A service that is given a new version every hour does not grow with each.
_RETIRED_KEPT = 8

# One more series for every label set, which nothing reads and workers do not have.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics(Families):
    """Every metric of one process, in a registry of its own."""

    requests = Family(Counter, "ranking_requests", "Requests answered, by route and status", ("endpoint", "code"))
    model_requests = Family(
        Counter,
        "ranking_model_requests",
        "Scoring requests that came as far as a model version, by status: what a canary is judged by",
        ("model", "version", "code"),
    )
    canary_choices = Family(
        Counter,
        "ranking_canary_choices",
        "Requests that a canary could have answered, by what decided whether it did: the user or the request id",
        ("model", "unit"),
    )
    request_seconds = Family(
        BatchedHistogram,
        "ranking_request_duration_seconds",
        "From the first byte of a request to the last byte of its answer",
        ("endpoint",),
        buckets=_SECONDS,
    )
    queue_seconds = Family(
        BatchedHistogram,
        "ranking_queue_duration_seconds",
        "What a scoring request waited for a scoring thread",
        buckets=_SECONDS,
    )
    inference_seconds = Family(
        BatchedHistogram,
        "ranking_inference_duration_seconds",
        "Encoding of the features and the ranker, per request",
        buckets=_SECONDS,
    )
    candidates = Family(
        BatchedHistogram, "ranking_candidates_per_request", "Candidates of a scored request", buckets=_COUNTS
    )
    work_in_flight = Family(
        Gauge,
        "ranking_work_in_flight",
        "Candidates of scoring requests that were let in and are not answered, and 50 for each request",
        workers="livesum",
    )
    in_flight = Family(Gauge, "ranking_requests_in_flight", "Scoring requests being answered now", workers="livesum")
    rejected = Family(Counter, "ranking_requests_rejected", "Requests that the service refused to score", ("reason",))
    loads = Family(Counter, "ranking_model_load", "Model versions and files beside them tried", ("result",))
    file_errors = Family(
        Gauge,
        "ranking_file_error",
        "1 while a file is missing or refused and what was read before serves on, otherwise 0",
        ("model", "file"),
        workers="livemax",
    )
    newer_quarantined = Family(
        Gauge,
        "ranking_model_newer_quarantined",
        "Versions newer than what is served that do not verify",
        ("model",),
        workers="livemax",
    )
    polled_at = Family(
        Gauge,
        "ranking_models_polled_timestamp_seconds",
        "Unix time at which the models folder was polled to the end last, of the worker that is furthest behind",
        workers="livemin",
    )
    info = Family(
        Gauge,
        "ranking_model_info",
        "1 for a model version that is loaded, 0 for one that was. `calibration` is a generation fitted after export",
        ("model", "version", "engine", "calibration"),
        workers="livemax",
    )
    loaded_at = Family(
        Gauge,
        "ranking_model_loaded_timestamp_seconds",
        "Unix time at which a model version was loaded",
        ("model", "version"),
        workers="livemax",
    )
    created_at = Family(
        Gauge,
        "ranking_model_created_timestamp_seconds",
        "Unix time at which a model version was exported",
        ("model", "version"),
        workers="livemax",
    )
    reference_mean = Family(
        Gauge,
        "ranking_task_score_reference_mean",
        "Mean answer of an output on the data that the version was exported or calibrated with, in the task's own unit",
        ("model", "version", "task"),
        workers="livemax",
    )
    workers = Family(
        Gauge, "ranking_workers", "Worker processes by whether they can score", ("state",), workers="livesum"
    )
    tls_expires_at = Family(
        Gauge,
        "ranking_tls_certificate_expiry_timestamp_seconds",
        "Unix time at which the first certificate of the chain that is shown expires, 0 without TLS",
        workers="livemin",
    )
    worker_restarts = WORKER_RESTARTS
    log_lines_dropped = LOG_LINES_DROPPED
    task_score = Family(
        BatchedHistogram,
        "ranking_task_score",
        "Answers per candidate and output (a task, or task.class), in the task's own unit",
        ("model", "version", "task"),
        buckets=_SCORES,
    )
    combined_score = Family(
        BatchedHistogram,
        "ranking_combined_score",
        "Combined score per candidate",
        ("model", "version", "value_model"),
        buckets=_COMBINED,
    )
    missing = Family(Counter, "ranking_feature_missing", "Values that took the feature's default", ("model", "feature"))
    oov = Family(Counter, "ranking_feature_oov", "Ids that are not in the table", ("model", "feature"))
    lookups = Family(
        Counter,
        "ranking_catalogue_lookups",
        "Candidates of requests to a model with a catalogue, by what the catalogue knew of them",
        ("model", "result"),
    )
    catalogue_items = Family(
        Gauge,
        "ranking_catalogue_items",
        "Items of the catalogue that is served, 0 where there is none",
        ("model",),
        workers="livemax",
    )
    catalogue_created_at = Family(
        Gauge,
        "ranking_catalogue_created_timestamp_seconds",
        "Unix time at which the catalogue that is served was built, 0 where there is none",
        ("model",),
        workers="livemin",
    )
    impressions = Family(
        Counter,
        "ranking_impression_log",
        "Lines of the impression log: written, dropped because too many waited, failed on the disk, refused as the "
        "folder is full of what is not shipped or as users' hashes have no key, or killed with their writer",
        ("result",),
    )
    impression_files_removed = Family(
        Counter,
        "ranking_impression_log_files_removed",
        "Oldest files of the impression log, removed to keep it within its bound",
    )
    impression_conversions_failed = Family(
        Counter,
        "ranking_impression_log_conversions_failed",
        "Times that closed files of the impression log did not become Parquet; they stay, and are tried again",
    )

    events = Family(
        Counter, "ranking_events", "Events accepted, by the types that the model's files name", ("model", "type")
    )
    event_log = Family(
        Counter,
        "ranking_event_log",
        "Events of the event log: written, refused because it is full or too slow, failed on the disk",
        ("result",),
    )
    event_delay_seconds = Family(
        BatchedHistogram,
        "ranking_event_delay_seconds",
        "From the time that an event says to its receipt, of events that say one",
        buckets=_DELAYS,
    )

    def __init__(self) -> None:
        # In which several workers share their metrics.
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self.folder = None if folder is None else Path(folder)
        self.registry = CollectorRegistry()
        super().__init__(self.registry)
        self.shadow = ShadowMetrics(self.registry)
        self.loop = LoopMetrics(self.registry)
        self.connections = ConnectionMetrics(self.registry)
        self.ship = ShipMetrics(self.registry)
        self.state = StateMetrics(self.registry)
        self.experiments = ExperimentMetrics(self.registry)
        self.policies = PolicyMetrics(self.registry)
        self.drift = DriftWindows(self.registry, is_shared=self.folder is not None)
        self._histograms = [metric for metric in vars(self).values() if isinstance(metric, BatchedHistogram)]
        self._histograms.append(self.state.seconds)
        self._of_versions = (
            self.model_requests,
            self.info,
            self.loaded_at,
            self.created_at,
            self.reference_mean,
            self.task_score,
            self.combined_score,
            *self.shadow.of_versions,
        )
        # Of this process: scoring requests in flight, and their work. The gauges take them at a flush.
        self.num_in_flight = 0
        self.work: Callable[[], int] = lambda: 0
        # Counts what is not counted yet.
        self.before_flush: Callable[[], None] = lambda: None
        self._retired: dict[tuple[str, str], None] = {}  # in the order in which they were
        for result in IMPRESSION_RESULTS:
            self.impressions.labels(result)
        for result in EVENT_RESULTS:
            self.event_log.labels(result)
        for endpoint in ENDPOINTS:
            self.request_seconds.labels(endpoint)
            for code in SCORING_CODES if endpoint in SCORING else (200,):
                self.requests.labels(endpoint, code)
        for reason in REJECTIONS:
            self.rejected.labels(reason)
        for result in LOAD_RESULTS:
            self.loads.labels(result)
        for file in COMMON_FILES:
            self.file_errors.labels("", file)
        self.polled_at.set_to_current_time()
        self.set_worker_state(is_ready=False)

    def set_certificate(self, expires_at: float, *, are_refused: bool) -> None:
        """Sets when the certificate in force expires, in Unix time, and whether newer files are refused."""
        self.tls_expires_at.set(expires_at)
        self.file_errors.labels("", "tls").set(are_refused)

    def set_worker_state(self, *, is_ready: bool) -> None:
        """Sets whether this worker can score."""
        for state in WORKER_STATES:
            self.workers.labels(state).set(is_ready == (state == "ready"))

    def add_version(self, model: str, version: str) -> None:
        """A version is served, for the first time or again."""
        self._retired.pop((model, version), None)

    def retire_version(self, model: str, version: str) -> None:
        """A version is served no more: when some others have gone after it, so do its metrics."""
        if self.folder is not None:  # from files that workers share nothing can be taken back
            return
        self._retired[model, version] = None
        while len(self._retired) > _RETIRED_KEPT:
            oldest = next(iter(self._retired))
            del self._retired[oldest]
            for metric in self._of_versions:
                metric.remove_by_labels(dict(zip(("model", "version"), oldest, strict=True)))

    def flush(self) -> None:
        """Set the gauges of what is in flight, and count the values that the histograms keep and the log lines that
        were dropped. This runs before each scrape here, and now and then for the scrapes of other workers, who read
        what this one has written."""
        self.before_flush()
        self.log_lines_dropped.inc(stderr_queue().take_dropped())
        self.in_flight.set(self.num_in_flight)
        self.work_in_flight.set(self.work())
        for histogram in self._histograms:
            histogram.flush()

    def exposition(self) -> bytes:
        """The metrics of all workers in Prometheus' text format."""
        return generate_latest(Collected(self.families()))

    def families(self) -> Iterator[Metric]:
        """The metrics of all workers."""
        self.flush()
        everyone = self.registry
        if self.folder is not None:
            forget_dead_workers(self.folder)
            everyone = CollectorRegistry()
            MultiProcessCollector(everyone, path=str(self.folder))  # type: ignore[no-untyped-call]
        yield from self.drift.families(everyone.collect())
        yield free_bytes(self.folder)
