"""Metrics: what a request adds to them, against counts made by hand, and what is there from the start."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from starlette.testclient import TestClient

from service.metrics.batched_histogram import BatchedHistogram
from service.metrics.metrics import Metrics
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of, sample, samples

CONTRACT = {
    "ranking_requests_total",
    "ranking_request_duration_seconds_bucket",
    "ranking_queue_duration_seconds_bucket",
    "ranking_inference_duration_seconds_bucket",
    "ranking_candidates_per_request_bucket",
    "ranking_requests_in_flight",
    "ranking_requests_rejected_total",
    "ranking_task_score_bucket",
    "ranking_combined_score_bucket",
    "ranking_feature_missing_total",
    "ranking_feature_oov_total",
    "ranking_model_info",
    "ranking_model_loaded_timestamp_seconds",
    "ranking_model_created_timestamp_seconds",
    "ranking_model_load_total",
    "ranking_task_score_reference_mean",
    "ranking_workers",
    "ranking_worker_restarts_total",
    "ranking_impression_log_total",
    "ranking_impression_log_conversions_failed_total",
    "ranking_impression_log_files_removed_total",
    "ranking_catalogue_lookups_total",
    "ranking_catalogue_items",
    "ranking_catalogue_created_timestamp_seconds",
}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        yield client


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_every_metric_is_there_before_the_first_request(client: TestClient, name: str) -> None:
    assert samples(client, name)


def test_versions_that_have_gone_take_their_metrics_along_but_for_the_last_eight() -> None:
    metrics = Metrics()

    def known() -> set[str]:
        return {
            sample.labels["version"]
            for family in metrics.registry.collect()
            for sample in family.samples
            if "version" in sample.labels
        }

    def serve(version: int) -> None:
        metrics.add_version("tiny", str(version))
        metrics.task_score.labels("tiny", version, "click").observe(0.5)
        metrics.combined_score.labels("tiny", version, "default").observe(0.5)
        metrics.model_requests.labels("tiny", version, 200).inc()
        metrics.info.labels("tiny", version, "torchscript", "").set(1)
        for gauge in (metrics.loaded_at, metrics.created_at):
            gauge.labels("tiny", version).set(1)
        metrics.reference_mean.labels("tiny", version, "click").set(1)
        metrics.shadow.add_version("tiny", str(version), ["click"])

    for version in range(1, 13):
        serve(version)
        if version > 1:
            metrics.retire_version("tiny", str(version - 1))
    assert known() == {str(version) for version in range(4, 13)}
    # One that comes back counts on, and is not the next to go.
    serve(4)
    for version in (12, 13):
        metrics.retire_version("tiny", str(version))
    assert known() == {str(version) for version in [4, *range(6, 13)]}
    assert metrics.registry.get_sample_value(
        "ranking_model_requests_total", {"model": "tiny", "version": "4", "code": "200"}
    ) == pytest.approx(2)


def test_feature_counters_start_at_0_for_every_feature_of_a_request(client: TestClient) -> None:
    missing = samples(client, "ranking_feature_missing_total")
    asked = {*TINY_REQUEST["user"], *TINY_REQUEST["candidates"]["features"]}
    assert {dict(labels)["feature"] for labels in missing} == asked
    assert set(missing.values()) == {0}
    oov = samples(client, "ranking_feature_oov_total")
    assert {dict(labels)["feature"] for labels in oov} == asked - {"age_days", "duration_ms"}
    assert set(oov.values()) == {0}


def test_one_request_counts_what_it_holds(client: TestClient) -> None:
    request = {
        "user": {"country": "it", "tab": None, "history": [1, 2]},  # "it" is in no vocabulary. user_id is left out
        "candidates": {
            "id": list("abc"),
            "features": {"video_id": [1, None, None], "topics": [[7, 55, 56], [], None], "duration_ms": [1, 2, 3]},
        },
    }
    answer = client.post("/v1/rank", json=request).json()

    def missing(feature: str) -> float:
        return sample(client, "ranking_feature_missing_total", model="tiny", feature=feature)

    def oov(feature: str) -> float:
        return sample(client, "ranking_feature_oov_total", model="tiny", feature=feature)

    assert [missing(name) for name in ("user_id", "country", "history", "age_days", "tab")] == [1, 0, 0, 1, 1]
    assert [missing(name) for name in ("video_id", "tag", "topics", "duration_ms")] == [2, 3, 2, 0]
    assert [oov(name) for name in ("country", "tab", "topics", "video_id")] == [1, 0, 2, 0]

    assert sample(client, "ranking_requests_total", endpoint="/v1/rank", code="200") == 1
    assert sample(client, "ranking_request_duration_seconds_count", endpoint="/v1/rank") == 1
    assert sample(client, "ranking_queue_duration_seconds_count") == 1
    assert sample(client, "ranking_inference_duration_seconds_count") == 1
    assert sample(client, "ranking_candidates_per_request_sum") == 3
    assert sample(client, "ranking_requests_in_flight") == 0
    labels = {"model": "tiny", "version": "1"}
    for task, scores in answer["candidates"]["tasks"].items():
        assert sample(client, "ranking_task_score_count", **labels, task=task) == 3
        # float32 sums against float64 sums of three values
        assert sample(client, "ranking_task_score_sum", **labels, task=task) == pytest.approx(sum(scores), rel=1e-6)
    assert sample(client, "ranking_combined_score_bucket", **labels, value_model="default", le="+Inf") == 3


def test_a_version_tells_its_age_and_the_answers_it_was_exported_with(client: TestClient, tmp_path: Path) -> None:
    manifest = json.loads((tmp_path / "tiny/1/manifest.json").read_text())
    reference = json.loads((tmp_path / "tiny/1/reference_scores.json").read_text())
    labels = {"model": "tiny", "version": "1"}
    created = sample(client, "ranking_model_created_timestamp_seconds", **labels)
    assert datetime.fromtimestamp(created, UTC).isoformat() == manifest["created"]
    for task, histogram in reference.items():
        assert sample(client, "ranking_task_score_reference_mean", **labels, task=task) == histogram["mean"]


def test_a_worker_counts_as_ready_when_it_can_score(tmp_path: Path) -> None:
    with client_of(tmp_path, poll_seconds=0.1) as client:
        assert sample(client, "ranking_workers", state="ready") == 0
        assert sample(client, "ranking_workers", state="unready") == 1
        publish_artifact(tmp_path)
        deadline = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
        assert sample(client, "ranking_workers", state="ready") == 1
        assert sample(client, "ranking_workers", state="unready") == 0


def test_refusals_are_counted_by_their_status(client: TestClient) -> None:
    client.post("/v1/rank", content=b"{")
    client.post("/v1/rank", json={})
    client.get("/wp-login.php")
    client.get("/wp-admin.php")
    codes = {
        dict(labels)["code"]: value
        for labels, value in samples(client, "ranking_requests_total").items()
        if dict(labels)["endpoint"] == "/v1/rank" and value
    }
    assert codes == {"400": 1, "422": 1}
    assert sample(client, "ranking_requests_total", endpoint="other", code="404") == 2


BUCKETS = (-1.0, 0.0, 0.1, 0.3, 0.5, 1.0, 4.0)
# Numbers beside a bound, which no float32 is.
BESIDE = [float(np.nextafter(np.float32(bound), np.float32(to))) for bound in BUCKETS for to in (-9, bound, 9)]


@given(
    values=st.lists(st.floats(-5, 5, width=32) | st.sampled_from(BESIDE), max_size=30),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_an_array_observed_at_once_equals_one_value_after_the_other(
    values: list[float], dtype: type[np.floating]
) -> None:
    buckets = BUCKETS
    registry = CollectorRegistry()
    one = Histogram("one", "one by one", buckets=buckets, registry=registry)
    all_at_once = BatchedHistogram("all", "all at once", buckets=buckets, registry=registry)
    for value in values:
        one.observe(value)
    half = len(values) // 2
    all_at_once.observe_soon(np.array(values[:half], dtype))
    all_at_once.flush()
    for value in values[half:]:
        all_at_once.observe_soon(value)
    all_at_once.flush()
    for bound in (*map(str, buckets), "+Inf"):
        counts = [registry.get_sample_value(f"{name}_bucket", {"le": bound}) for name in ("one", "all")]
        assert counts[0] == counts[1]


def test_the_columns_of_matrices_are_counted_as_their_values_one_by_one() -> None:
    matrices = [np.random.default_rng(rows).uniform(-2, 5, (rows, 3)).astype(np.float32) for rows in (1, 7, 40)]
    buckets = BUCKETS[1:]  # with negative bounds no sum is exported
    registry = CollectorRegistry()
    one = Histogram("one", "one by one", ["output"], buckets=buckets, registry=registry)
    together = BatchedHistogram("all", "all at once", ["output"], buckets=buckets, registry=registry)
    first, *others = [together.labels(str(output)) for output in range(3)]
    first.observe_matrices(others)
    for matrix in matrices:
        first.observe_soon(matrix)
        for output, values in enumerate(matrix.T.tolist()):
            for value in values:
                one.labels(str(output)).observe(value)
    together.flush()
    for label in map(str, range(3)):
        for bound in (*map(str, buckets), "+Inf"):
            labels = {"output": label, "le": bound}
            counts = [registry.get_sample_value(f"{name}_bucket", labels) for name in ("one", "all")]
            assert counts[0] == counts[1] is not None
        sums = [registry.get_sample_value(f"{name}_sum", {"output": label}) for name in ("one", "all")]
        assert sums[0] == pytest.approx(sums[1], rel=1e-9)  # the order of a float64 sum


def test_no_feature_value_and_no_id_is_in_the_metrics(client: TestClient) -> None:
    request = {"user": {"country": "xq7secret"}, "candidates": {"id": ["xq7id"], "features": {"tag": ["xq7tag"]}}}
    client.post("/v1/rank", json=request)
    assert "xq7" not in client.get("/metrics").text
