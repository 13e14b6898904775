"""Panels of the dashboard: rows of them, each with its queries.

In: nothing. Out: `ROWS`. Queries hold Grafana's variables: $job, $model and $__rate_interval. Units are Grafana's
names: s, reqps, percentunit, short.
"""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["timeseries", "stat", "heatmap", "table"]

_JOB = 'job=~"$job"'
_SCORING = 'job=~"$job", endpoint=~"/v1/rank|/v2/.*/infer"'
_MODEL = 'job=~"$job", model=~"$model"'
_RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One panel: queries by their legends. `limits` are lines at which an alert begins to count."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    limits: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Row:
    """Panels side by side under a heading."""

    title: str
    panels: tuple[Panel, ...] = field(default=())


def _by(labels: str, metric: str, selector: str) -> str:
    return f"sum by ({labels}) (rate({metric}{{{selector}}}{_RATE}))"


def _quantile(share: float, metric: str, selector: str, labels: str = "") -> str:
    by = ", ".join(part for part in (labels, "le") if part)
    return f"histogram_quantile({share:g}, {_by(by, f'{metric}_bucket', selector)})"


def _mean(labels: str, metric: str, selector: str) -> str:
    return f"{_by(labels, f'{metric}_sum', selector)} / {_by(labels, f'{metric}_count', selector)}"


def _since(metric: str) -> str:
    return f"time() - max by (model, version) ({metric}{{{_MODEL}}})"


def _shadow_answers(answered_by: str) -> str:
    return _by("version, task", "ranking_shadow_task_answers_total", f'{_MODEL}, answered_by="{answered_by}"')


ROWS = (
    Row(
        "At a glance",
        (
            Panel("Scoring requests", {"": f"sum(job:ranking_requests:rate5m{{{_JOB}}})"}, "reqps", "stat", 4),
            Panel(
                "p99",
                {"": f"max(job:ranking_request_duration_seconds:p99_5m{{{_JOB}}})"},
                *("s", "stat", 4, (0.1,)),
                note="The objective: 99 % within 0.1 s.",
            ),
            Panel(
                "Answered 5xx, 1 h",
                {"": f"max(job:ranking_errors:ratio_rate1h{{{_JOB}}})"},
                "percentunit",
                "stat",
                4,
                (0.001,),
            ),
            Panel(
                "Shed, 5 min", {"": f"max(job:ranking_shed:ratio_rate5m{{{_JOB}}})"}, "percentunit", "stat", 4, (0.01,)
            ),
            Panel("Workers ready", {"": f'sum(ranking_workers{{{_JOB}, state="ready"}})'}, "short", "stat", 4),
            Panel(
                "Alerts firing",
                {"": f'count(ALERTS{{{_JOB}, alertstate="firing"}}) or vector(0)'},
                *("short", "stat", 4, (1.0,)),
            ),
        ),
    ),
    Row(
        "Traffic and errors",
        (
            Panel(
                "Scoring requests by route",
                {"{{endpoint}}": _by("endpoint", "ranking_requests_total", _SCORING)},
                "reqps",
            ),
            Panel(
                "Answers other than 200",
                {"{{code}}": _by("code", "ranking_requests_total", f'{_SCORING}, code!="200"')},
                "reqps",
            ),
            Panel(
                "Refused, by reason", {"{{reason}}": _by("reason", "ranking_requests_rejected_total", _JOB)}, "reqps"
            ),
            Panel(
                "Error budget of availability: how fast it burns",
                {
                    "1 h": f"job:ranking_errors:ratio_rate1h{{{_JOB}}} / 0.001",
                    "6 h": f"job:ranking_errors:ratio_rate6h{{{_JOB}}} / 0.001",
                    "3 d": f"job:ranking_errors:ratio_rate3d{{{_JOB}}} / 0.001",
                },
                *("short", "timeseries", 12, (6.0, 14.4)),
                note="1 spends exactly the budget of 30 days.",
            ),
            Panel(
                "Error budget of latency: how fast it burns",
                {
                    "1 h": f"job:ranking_slow:ratio_rate1h{{{_JOB}}} / 0.01",
                    "6 h": f"job:ranking_slow:ratio_rate6h{{{_JOB}}} / 0.01",
                    "3 d": f"job:ranking_slow:ratio_rate3d{{{_JOB}}} / 0.01",
                },
                *("short", "timeseries", 12, (6.0, 14.4)),
                note="1 spends exactly the budget of 30 days.",
            ),
        ),
    ),
    Row(
        "Latency",
        (
            Panel(
                "Scoring requests",
                {"{{le}}": _by("le", "ranking_request_duration_seconds_bucket", _SCORING)},
                *("s", "heatmap", 12),
            ),
            Panel(
                "Percentiles of scoring requests",
                {
                    f"p{100 * share:g}": _quantile(share, "ranking_request_duration_seconds", _SCORING)
                    for share in (0.5, 0.9, 0.99)
                },
                *("s", "timeseries", 12, (0.1,)),
            ),
            Panel(
                "Wait for a scoring thread",
                {
                    f"p{100 * share:g}": _quantile(share, "ranking_queue_duration_seconds", _JOB)
                    for share in (0.5, 0.99)
                },
                "s",
            ),
            Panel(
                "Encoding and ranker",
                {
                    f"p{100 * share:g}": _quantile(share, "ranking_inference_duration_seconds", _JOB)
                    for share in (0.5, 0.99)
                },
                "s",
            ),
            Panel(
                "Other routes, p99",
                {
                    "{{endpoint}}": _quantile(
                        0.99,
                        "ranking_request_duration_seconds",
                        f'{_JOB}, endpoint!~"/v1/rank|/v2/.*/infer"',
                        "endpoint",
                    )
                },
                "s",
            ),
        ),
    ),
    Row(
        "Load",
        (
            Panel(
                "Candidates per request",
                {"{{le}}": _by("le", "ranking_candidates_per_request_bucket", _JOB)},
                "short",
                "heatmap",
                12,
            ),
            Panel(
                "Candidates a second",
                {"": f"sum(rate(ranking_candidates_per_request_sum{{{_JOB}}}{_RATE}))"},
                "short",
                width=4,
            ),
            Panel("Requests in flight", {"{{instance}}": f"ranking_requests_in_flight{{{_JOB}}}"}, "short", width=4),
            Panel(
                "Work in flight",
                {"{{instance}}": f"ranking_work_in_flight{{{_JOB}}}"},
                *("short", "timeseries", 4),
                note="What a service refuses by: candidates, and 50 for each request.",
            ),
            Panel("Connections", {"{{instance}}": f"ranking_connections{{{_JOB}}}"}),
            Panel(
                "Bytes of unfinished requests",
                {"{{instance}}": f"ranking_unfinished_request_bytes{{{_JOB}}}"},
                "bytes",
                note="Over --max-unfinished-bytes of a worker the request that holds most is answered 429.",
            ),
            Panel(
                "Connections ended, a second",
                {"{{reason}}": _by("reason", "ranking_connections_ended_total", _JOB)},
                note="By the service itself, but for idle ones whose time was over.",
            ),
        ),
    ),
    Row(
        "Models",
        (
            Panel("Versions that are loaded", {"": f"ranking_model_info{{{_MODEL}}} == 1"}, "short", "table"),
            Panel(
                "Requests by version and status",
                {"{{model}} {{version}} {{code}}": _by("model, version, code", "ranking_model_requests_total", _MODEL)},
                "reqps",
            ),
            Panel(
                "Loaded and refused",
                {"{{result}}": f"sum by (result) (increase(ranking_model_load_total{{{_JOB}}}{_RATE}))"},
            ),
            Panel(
                "Missing or refused",
                {
                    "{{model}} {{file}}": f"max by (model, file) (ranking_file_error{{{_JOB}}}) > 0",
                    "{{model}} newer versions": f"max by (model) (ranking_model_newer_quarantined{{{_MODEL}}})",
                },
                note="What was read before serves on.",
            ),
            Panel(
                "Since the last poll of the models folder",
                {"{{instance}}": f"time() - min by (instance) (ranking_models_polled_timestamp_seconds{{{_JOB}}})"},
                "s",
                limits=(900.0,),
            ),
            Panel(
                "Age of the newest version",
                {"{{model}}": f"model:ranking_model_age_seconds:max{{{_MODEL}}}"},
                "s",
                limits=(259_200.0,),
            ),
            Panel(
                "Since it was loaded",
                {"{{model}} {{version}}": _since("ranking_model_loaded_timestamp_seconds")},
                "s",
            ),
            Panel(
                "Since it was exported",
                {"{{model}} {{version}}": _since("ranking_model_created_timestamp_seconds")},
                "s",
            ),
            Panel(
                "Catalogue: candidates by what it knew",
                {"{{result}}": _by("result", "ranking_catalogue_lookups_total", _MODEL)},
            ),
            Panel("Catalogue: items", {"{{model}}": f"max by (model) (ranking_catalogue_items{{{_MODEL}}})"}),
            Panel(
                "Catalogue: age",
                {"{{model}}": f"time() - min by (model) (ranking_catalogue_created_timestamp_seconds{{{_MODEL}}} > 0)"},
                *("s", "timeseries", 8, (172_800.0,)),
            ),
        ),
    ),
    Row(
        "Scores and features",
        (
            Panel(
                "Mean answer, by task",
                {"{{version}} {{task}}": _mean("version, task", "ranking_task_score", _MODEL)},
                note="In the task's own unit.",
            ),
            Panel(
                "Mean answer against that of the export",
                {"{{version}} {{task}}": f"task:ranking_score_mean:ratio1h{{{_MODEL}}}"},
                *("short", "timeseries", 8, (0.5, 2.0)),
                note="Over an hour; 1 is as it was.",
            ),
            Panel(
                "Mean answer at the export",
                {"{{version}} {{task}}": f"max by (version, task) (ranking_task_score_reference_mean{{{_MODEL}}})"},
            ),
            Panel(
                "Drift of answers",
                {"{{version}} {{task}}": f"max by (version, task) (ranking_score_drift{{{_MODEL}}})"},
                *("short", "timeseries", 12),
                note="What tells is a change: candidates are not the impressions that the reference is of.",
            ),
            Panel(
                "Drift of features, the ten largest",
                {"{{version}} {{feature}}": f"topk(10, max by (version, feature) (ranking_feature_drift{{{_MODEL}}}))"},
                *("short", "timeseries", 12),
                note="What tells is a change: candidates are not the impressions that the reference is of.",
            ),
            Panel(
                "Combined score", {"{{le}}": _by("le", "ranking_combined_score_bucket", _MODEL)}, "short", "heatmap", 12
            ),
            Panel(
                "Answers of all tasks",
                {"{{le}}": _by("le", "ranking_task_score_bucket", _MODEL)},
                "short",
                "heatmap",
                12,
            ),
            Panel(
                "Values that took a default",
                {"{{feature}}": f"topk(10, {_by('feature', 'ranking_feature_missing_total', _MODEL)})"},
                *("short", "timeseries", 12),
            ),
            Panel(
                "Ids that no table holds",
                {"{{feature}}": f"topk(10, {_by('feature', 'ranking_feature_oov_total', _MODEL)})"},
                *("short", "timeseries", 12),
            ),
        ),
    ),
    Row(
        "Shadow version",
        (
            Panel(
                "Requests taken",
                {"{{version}} {{result}}": _by("version, result", "ranking_shadow_requests_total", _MODEL)},
            ),
            Panel(
                "Its ranking beside the one answered",
                {
                    "Kendall's tau": _mean("version", "ranking_shadow_rank_correlation", _MODEL),
                    "share of the ten best": _mean("version", "ranking_shadow_top10_overlap", _MODEL),
                },
            ),
            Panel(
                "Shift of a task's mean",
                {
                    "{{version}} {{task}}": f"({_shadow_answers('shadow')} - {_shadow_answers('stable')})"
                    f" / on (version) group_left {_by('version', 'ranking_shadow_candidates_total', _MODEL)}"
                },
            ),
        ),
    ),
    Row(
        "Processes",
        (
            Panel("Workers", {"{{instance}} {{state}}": f"sum by (instance, state) (ranking_workers{{{_JOB}}})"}),
            Panel(
                "Workers replaced, 15 min",
                {"{{instance}}": f"sum by (instance) (increase(ranking_worker_restarts_total{{{_JOB}}}[15m]))"},
                limits=(2.0,),
            ),
            Panel("Scrapes answered", {"{{instance}}": f"up{{{_JOB}}}"}),
            Panel(
                "Log lines dropped, a second",
                {"{{instance}}": _by("instance", "ranking_log_lines_dropped_total", _JOB)},
            ),
            Panel(
                "Room for workers' metrics",
                {"{{instance}}": f"min by (instance) (ranking_metrics_folder_free_bytes{{{_JOB}}})"},
                "bytes",
            ),
            Panel(
                "TLS certificate, until it expires",
                {
                    "{{instance}}": f"min by (instance) "
                    f"((ranking_tls_certificate_expiry_timestamp_seconds{{{_JOB}}} > 0) - time())"
                },
                "s",
            ),
            Panel(
                "Impression log: lines", {"{{result}}": _by("result", "ranking_impression_log_total", _JOB)}, width=12
            ),
            Panel(
                "Impression log: oldest files removed, and not made Parquet, a second",
                {
                    "removed {{instance}}": _by("instance", "ranking_impression_log_files_removed_total", _JOB),
                    "failed {{instance}}": _by("instance", "ranking_impression_log_conversions_failed_total", _JOB),
                },
                width=12,
            ),
        ),
    ),
    Row(
        "Alerts",
        (Panel("Firing and pending", {"": f"ALERTS{{{_JOB}}}"}, "short", "table", 24),),
    ),
)
