"""A real Prometheus beside a service of two workers under load: counts, alerts, every query of rules and dashboard.

FEEDRANK_MONITORING_SECONDS is how long the load lasts that counts are compared after (10, or 60 for the long form).
"""

import json
import os
import re
import signal
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.dashboard import TEXTFILE_METRICS, queries, rules
from model.rollout.decisions import DAILY, DATA_GATE, DAY, FAIL, FINISH, JUDGE, QUARANTINE, WITHDRAW
from model.rollout.journal import Entry, Journal
from service.metrics.metrics import Metrics
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.monitored import Prometheus, prometheus_of
from tests.deploy.programs import ROOT, wait_for
from tests.items import tiny_items, write_items
from tests.service.running import RunningService
from training.publish.catalogue import build_catalogue

SECONDS = os.environ.get("FEEDRANK_MONITORING_SECONDS", "10")
SCORING = 'ranking_requests_total{endpoint="/v1/rank"}'
_EXPERIMENTS = """
layers: {ranking: {salt: "1", unit: user_id}}
experiments:
  - name: same
    layer: ranking
    buckets: {from: 0, to: 10000}
    start: 2026-01-01
    horizon: 24h
    realised: {click: 1}
    arms: {control: {}, other: {value_model: default}}
"""
# Five of a tag in a row are relaxed, and what is of one tag and video is dropped. One of two requests explores.
_POLICIES = """
default:
  dedup: [video_id, tag]
  select:
    cap: {per: tag, count: 1, within: 2, else: relax}
    explore: {temperature: 0.5, head: 2, share: 0.5}
"""
pytestmark = pytest.mark.slow


class Monitored:
    """A service, its models, a Prometheus and a file of requests."""

    def __init__(self, service: RunningService, prometheus: Prometheus, folder: Path) -> None:
        self.service = service
        self.prometheus = prometheus
        self.models = folder / "models"
        self._folder = folder
        self._requests = folder / "requests.jsonl"
        self._requests.write_text(json.dumps(TINY_REQUEST) + "\n")

    def load(self, *arguments: str) -> dict[str, Any]:
        """Report of the load test."""
        run = subprocess.run(self._command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        (step,) = json.loads((self._folder / "out/load_test.json").read_text())["steps"]
        found: dict[str, Any] = step
        return found

    @contextmanager
    def loading(self, *arguments: str) -> Iterator[None]:
        """Load for as long as the block lasts."""
        with subprocess.Popen(self._command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.send_signal(signal.SIGINT)

    def _command(self, *arguments: str) -> list[str]:
        url = str(self.service.client.base_url)
        command = [sys.executable, "-m", "deploy.load_test", url, "--requests", str(self._requests)]
        return [*command, "--timeout", "60", "--out", str(self._folder / "out"), *arguments]


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Two versions, the older one as shadow and canary of nobody, the newer one with a catalogue. Both logs and
    the state of users are on, and the journal has a decision of each step that metrics tell of."""
    folder = tmp_path_factory.mktemp("monitored")
    models = folder / "models"
    publish_artifact(models, seed=1)
    build_catalogue(publish_artifact(models, seed=2), write_items(folder / "items.parquet", tiny_items(10)))
    (models / "tiny/labels.yaml").write_text("{stable: 2, canary: {version: 1, share: 0.0}, shadow: 1}\n")
    (models / "tiny/state.yaml").write_text("key: user_id\nfields: [country]\n")
    (models / "tiny/experiments.yaml").write_text(_EXPERIMENTS)
    (models / "tiny/policies.yaml").write_text(_POLICIES)
    _decide(models / "tiny")
    for name in ("impressions", "events"):
        (folder / name).mkdir()
    flags = ("--workers", "2", "--threads", "1", "--queue-seconds", "0.2")
    logs = ("--impression-log", str(folder / "impressions"), "--event-log", str(folder / "events"))
    state = ("--state", f"sqlite:///{folder}/state.db")
    with RunningService(models, *flags, *logs, *state) as service:
        service.wait_ready().wait_workers(2)
        with prometheus_of(service.client.base_url, folder / "prometheus") as prometheus:
            wait_for(lambda: prometheus.value("sum(ranking_workers{state='ready'})") == 2)
            yield Monitored(service, prometheus, folder)


def _decide(model: Path) -> None:
    now = datetime.now(UTC)
    for step, decision in ((DAILY, FINISH), (DAILY, FAIL), (DATA_GATE, QUARANTINE), (JUDGE, WITHDRAW)):
        entry = Entry(time=now, step=step, decision=decision, figures={DAY: str(now.date())}, who="daily",
                      versions={"stable": "2", "canary": "9"})  # fmt: skip
        Journal(model).append(entry)


def send_event(monitored: Monitored) -> None:
    """A client displays a candidate."""
    event = {"request_id": "r-1", "type": "shown", "id": "a", "time": "2026-11-29T20:15:03Z"}
    assert monitored.service.client.post("/v1/events", json={"events": [event]}).status_code == 202


class Counted(NamedTuple):
    """Counts of scoring requests as Prometheus has them: their number by status, their candidates, and how many took at
    most so many seconds."""

    statuses: dict[str, float]
    candidates: float
    within: dict[float, float]

    @classmethod
    def of(cls, prometheus: Prometheus) -> "Counted":
        buckets = prometheus.query('ranking_request_duration_seconds_bucket{endpoint="/v1/rank"}')
        return cls(
            {one["metric"]["code"]: float(one["value"][1]) for one in prometheus.query(SCORING)},
            prometheus.value("sum(ranking_candidates_per_request_sum)"),
            {float(one["metric"]["le"]): float(one["value"][1]) for one in buckets},
        )

    def since(self, before: "Counted") -> "Counted":
        """Counts since then."""
        statuses = {code: count - before.statuses.get(code, 0) for code, count in self.statuses.items()}
        within = {bound: count - before.within.get(bound, 0) for bound, count in self.within.items()}
        return Counted({code: n for code, n in statuses.items() if n}, self.candidates - before.candidates, within)


def test_counters_and_p99_are_those_of_the_load_test(monitored: Monitored) -> None:
    prometheus = monitored.prometheus
    differences = []
    # Again where another program had the client wait for a core: that is in the client's figures alone.
    for _ in range(5):
        before = Counted.of(prometheus)
        step = monitored.load("--rate", "40", "--seconds", SECONDS, "--candidates", "200")
        requests = step["requests"]

        def is_all(before: Counted = before, requests: int = requests) -> bool:
            """The histograms of a worker are written a moment after its counters."""
            found = Counted.of(prometheus).since(before)
            return sum(found.statuses.values()) >= requests and found.within[np.inf] >= requests

        wait_for(is_all, lambda: Counted.of(prometheus))
        found = Counted.of(prometheus).since(before)
        assert step["statuses"] == found.statuses
        assert found.candidates == 200 * step["statuses"]["200"]
        assert found.within[np.inf] == requests
        # The client's clock begins when a request was due, the service's at its first byte: never later.
        bounds = sorted(found.within)
        of_service = next(place for place, bound in enumerate(bounds) if found.within[bound] >= 0.99 * requests)
        of_client = bisect_left(bounds, step["latency_ms"]["p99"] / 1e3)
        differences.append(of_client - of_service)
        # The client's percentiles are of answers with 200 alone. A few refusals hardly move the service's p99.
        if differences[-1] in (0, 1) and step["statuses"]["200"] > 0.95 * requests:
            return
    raise AssertionError(f"p99 of client and service are apart by {differences} buckets")


@pytest.mark.timeout(600)  # windows of minutes have to fill and to empty, on a machine that does other things
def test_an_overload_fires_the_shedding_alert_and_its_end_resolves_it(monitored: Monitored, tmp_path: Path) -> None:
    """Two hundred large requests at once, again and again: too much however fast the machine is."""
    arrivals = tmp_path / "arrivals"
    arrivals.write_text("\n".join(str(burst) for burst in range(300) for _ in range(200)))

    def firing() -> bool:
        return bool(monitored.prometheus.alerts("RankingShedding"))

    assert not firing()
    with monitored.loading("--arrivals", str(arrivals), "--seconds", "300", "--candidates", "2000"):
        wait_for(firing, lambda: monitored.prometheus.query("job:ranking_shed:ratio_rate5m"))
        (alert,) = monitored.prometheus.alerts("RankingShedding")
        assert re.search(r"[\d.]+% of the scoring requests of feedrank", alert["annotations"]["description"])
    wait_for(lambda: not firing(), lambda: monitored.prometheus.query("job:ranking_shed:ratio_rate5m"))


def test_a_corrupt_model_fires_the_load_alert(monitored: Monitored, tmp_path: Path) -> None:
    assert not monitored.prometheus.alerts("RankingModelLoadFailed")
    for seed in range(3):
        published = publish_artifact(tmp_path, seed=seed)
    ranker = published / "ranker.pt"
    content = bytearray(ranker.read_bytes())
    content[len(content) // 2] ^= 0xFF
    ranker.write_bytes(content)
    published.rename(monitored.models / "tiny" / published.name)
    wait_for(lambda: bool(monitored.prometheus.alerts("RankingModelLoadFailed")))
    (alert,) = monitored.prometheus.alerts("RankingModelLoadFailed")
    assert alert["labels"]["result"] == "quarantined"
    # The version before serves on.
    answer = monitored.service.client.post("/v1/rank", json=TINY_REQUEST)
    assert answer.json()["model_version"] == "2"


def _concrete(query: str) -> str:
    for variable, value in (("$job", "feedrank"), ("$model", ".*"), ("$__rate_interval", "10s")):
        query = query.replace(variable, value)
    assert "$" not in query, query
    return query


def test_every_panel_of_the_dashboard_shows_data(monitored: Monitored) -> None:
    # Drift is shown from a thousand values and more.
    monitored.load("--rate", "20", "--seconds", "5", "--candidates", "200")
    send_event(monitored)
    # An alert is to be seen too: that of an invalid file of task weights.
    (monitored.models / "tiny/value_models.yaml").write_text("default: {kind: none}\n")
    wait_for(lambda: bool(monitored.prometheus.query('ALERTS{alertname="RankingModelLoadFailed"}')))

    # This service speaks plain HTTP, so it has no certificate that could expire.
    panels = [(panel.title, query) for panel, query in queries()]
    # Nor does it write the textfiles of `training observed` and `training experiment`.
    shown = [
        (title, query)
        for title, query in panels
        if title != "TLS certificate, until it expires" and not any(metric in query for metric in TEXTFILE_METRICS)
    ]
    assert len(shown) == len(panels) - 8

    def empty() -> list[str]:
        return [
            f"{title}: {query}"
            for title, query in shown
            if not _has_numbers(monitored.prometheus.over_time(_concrete(query), 60))
        ]

    wait_for(lambda: not empty(), empty)


def _has_numbers(series: list[dict[str, Any]]) -> bool:
    return any(value != "NaN" for one in series for _, value in one["values"])


def _names(query: str) -> dict[str, dict[str, list[Any]]]:
    """Metric -> label -> the matchers of it, of an expression. Labels that are grouped by have none."""
    found: dict[str, dict[str, list[Any]]] = {}

    def selectors(expression: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
        seen: list[promql_parser.VectorSelector] = []

        def keep(one: promql_parser.Expr) -> bool:
            if isinstance(one, promql_parser.VectorSelector):
                seen.append(one)
            return True

        promql_parser.walk(expression, keep)
        return seen

    def visit(expression: promql_parser.Expr) -> bool:
        if isinstance(expression, promql_parser.VectorSelector):
            labels = found.setdefault(str(expression.name), {})
            for matcher in expression.matchers.matchers:
                labels.setdefault(matcher.name, []).append(matcher)
        elif isinstance(expression, promql_parser.AggregateExpr) and expression.modifier is not None:
            for selector in selectors(expression.expr):
                for label in expression.modifier.labels:
                    found.setdefault(str(selector.name), {}).setdefault(label, [])
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def _matches(matcher: Any, value: str) -> bool:
    if matcher.op in (promql_parser.MatchOp.Equal, promql_parser.MatchOp.NotEqual):
        return bool(matcher.value == value)
    return re.fullmatch(matcher.value, value) is not None


def test_every_metric_and_label_of_rules_and_dashboard_exists(monitored: Monitored) -> None:
    """By Prometheus' own grammar, against the series of a service under load. A matcher has to match one of them."""
    monitored.load("--rate", "20", "--seconds", "2")
    send_event(monitored)
    wait_for(lambda: bool(monitored.prometheus.query("task:ranking_score_mean:ratio1h")))
    known: dict[str, list[dict[str, str]]] = {}
    wrong = set()
    for query in [*(rule["expr"] for rule in rules()), *(_concrete(query) for _, query in queries())]:
        for metric, labels in _names(query).items():
            if metric == "ALERTS":  # there while something is pending or fires
                continue
            if metric in TEXTFILE_METRICS:  # whose labels tests/training reads
                continue
            if metric not in known:
                known[metric] = monitored.prometheus.label_sets(metric)
            series = known[metric]
            if not series:
                wrong.add(f"{metric}: no such metric")
            for label, matchers in labels.items():
                values = {one[label] for one in series if label in one}
                if not values:
                    wrong.add(f"{metric}: no label {label}")
                wrong |= {
                    f"{metric}: no {label} is {matcher.value}"
                    for matcher in matchers
                    if not any(_matches(matcher, value) for value in values)
                }
    assert wrong == set()
    # And the other way round: a panel shows what the service exports.
    exported = {family.name for family in text_string_to_metric_families(Metrics().exposition().decode())}
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in known} >= exported


def test_a_wrong_name_would_be_found() -> None:
    found = _names('sum by (le) (rate(ranking_x_bucket{code=~"5..", le="0.1"}[5m])) / max(up unless other{a!="b"})')
    assert {metric: set(labels) for metric, labels in found.items()} == {
        "ranking_x_bucket": {"code", "le"},
        "up": set(),
        "other": {"a"},
    }
