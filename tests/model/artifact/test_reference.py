"""References of a version at its export: bins of about equal share, and how far counts have moved from them."""

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from model.artifact.reference import BINS, MOST_ROWS, FeatureReference, IdBins, NumberBins, of_features, of_scores
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.schema import FeedSchema

SCHEMA: dict[str, Any] = {
    "name": "small",
    "features": [
        {"name": "user_id", "side": "user", "kind": "id", "buckets": 100_000, "dim": 4},
        {"name": "seen", "side": "user", "kind": "id_list", "vocabulary": [7, 8, 9], "dim": 4, "max_length": 4},
        {"name": "position", "side": "training_only", "kind": "number", "serving_value": 0},
        {"name": "video_id", "side": "candidate", "kind": "id", "vocabulary": list(range(100)), "dim": 4},
        {"name": "duration", "side": "candidate", "kind": "number", "missing": 0},
    ],
    "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
}


def psi(reference: list[float], counts: list[int]) -> float:
    """The index with half a value more in every bin, term by term."""
    n, k = sum(counts), len(counts)
    total = 0.0
    for share, count in zip(reference, counts, strict=True):
        p, q = (count + 0.5) / (n + 0.5 * k), (share * n + 0.5) / (n + 0.5 * k)
        total += (p - q) * math.log(p / q)
    return total


def test_drift_is_the_population_stability_index() -> None:
    bins = NumberBins(edges=(1.0, 2.0), shares=(0.5, 0.3, 0.2))
    assert bins.drift(np.array([50.0, 30.0, 20.0])) == pytest.approx(0, abs=1e-12)
    for counts in ([10, 30, 60], [0, 0, 7], [1, 1, 1]):
        assert bins.drift(np.array(counts, np.float64)) == pytest.approx(psi([0.5, 0.3, 0.2], counts), rel=1e-12)
    # A share that the reference never had does not make it infinite.
    assert math.isfinite(NumberBins(edges=(1.0,), shares=(1.0, 0.0)).drift(np.array([0.0, 1e6])))


def test_numbers_fall_between_their_edges() -> None:
    bins = NumberBins(edges=(1.0, 2.0), shares=(0.5, 0.3, 0.2))
    values = [-5.0, 1.0, 1.5, 2.0, 2.0001, 1e9]
    expected = [sum(v <= 1 for v in values), sum(1 < v <= 2 for v in values), sum(v > 2 for v in values)]
    assert bins.counts(np.array(values)).tolist() == expected


def test_a_quantile_is_the_lowest_edge_that_a_share_does_not_exceed() -> None:
    values = np.random.default_rng(0).integers(0, 30, 1000).astype(np.float64)
    edges = np.unique(np.quantile(values, [0.1, 0.5, 0.9], method="inverted_cdf"))
    shares = np.bincount(np.searchsorted(edges, values), minlength=4) / 1000
    bins = NumberBins(edges=tuple(edges), shares=tuple(shares))
    assert [bins.quantile(share) for share in (0.1, 0.5, 0.9)] == edges.tolist()
    assert bins.quantile(0.999) is None


def test_rows_fall_into_the_bins_of_their_frequency() -> None:
    bins = IdBins(rows=((5,), (9, 2)), shares=(0.1, 0.4, 0.3, 0.2))
    assert bins.counts(np.array([0, 5, 5, 2, 9, 77, 1, 0])).tolist() == [2, 2, 2, 2]
    assert IdBins(rows=(), shares=(0.5, 0.5)).counts(np.array([0, 3])).tolist() == [1, 1]


@pytest.mark.parametrize("content", [{"kind": "number", "edges": [1.0], "shares": [1.0]}, {"kind": "id", "rows": []}])
def test_bins_and_shares_must_fit(content: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FeatureReference.model_validate({"features": {"x": {"shares": [1.0], **content}}})


def test_scores_are_binned_by_about_equal_shares() -> None:
    generator = np.random.default_rng(0)
    answers = generator.beta(1, 8, 20_000)
    edges = np.linspace(0, 1, 51)
    counts, _ = np.histogram(answers, edges)
    bins = of_scores(edges, counts.astype(np.float64))
    measured = bins.counts(answers) / len(answers)
    # An answer on an edge of the histogram is counted above it there and below it here.
    assert measured == pytest.approx(bins.shares, abs=1e-3)
    assert set(bins.edges) <= set(edges)
    widest = counts.max() / counts.sum()  # no bin can be finer than the histogram
    assert max(bins.shares) <= 1 / BINS + widest
    assert sum(bins.shares) == pytest.approx(1)
    assert of_scores(np.array([0.0, 1.0]), np.array([5.0])).shares == (1.0,)


def test_the_features_of_the_same_rows_have_not_drifted_and_of_others_have() -> None:
    schema = FeedSchema.from_mapping(SCHEMA, "here")

    encoder = FeatureEncoder(schema, FittedFeatures.model_validate({"numbers": {"duration": [], "position": []}}))

    generator = np.random.default_rng(1)

    def encoded(rows: int, shift: int) -> dict[Any, Any]:
        users = generator.zipf(1.3, rows) % 5_000 + shift
        lists = [[7, 8][: generator.integers(0, 3)] + [9] * bool(shift) for _ in range(rows)]
        videos = [None if shift and v < 20 else int(v) for v in generator.integers(0, 100, rows)]
        request = encoder.columns("request", {"user_id": users.tolist(), "seen": lists}, rows)
        candidate = encoder.columns(
            "candidate", {"video_id": videos, "duration": (generator.normal(size=rows) + shift).tolist()}, rows
        )
        return {
            "request": encoder.encode("request", request, rows, as_served=True).block,
            "candidate": encoder.encode("candidate", candidate, rows, as_served=True).block,
        }

    before = encoded(20_000, 0)
    reference = of_features(schema, before)
    assert set(reference.features) == {"user_id", "seen", "video_id", "duration"}  # not what requests cannot give

    def drifts(blocks: dict[Any, Any]) -> dict[str, float]:
        return {
            name: reference.features[name].drift(counts)
            for block, content in blocks.items()
            for name, counts in reference.counts(schema, block, content).items()
        }

    # Chance alone gives about (bins - 1)(1/n + 1/m): .002 with 12 bins, 20,000 values and 10,000 of the reference.
    assert max(drifts(encoded(20_000, 0)).values()) < 0.01
    assert min(drifts(encoded(20_000, 3)).values()) > 0.1
    # What is kept of ids is bounded, whatever the table's size.
    kept = reference.features["user_id"]
    assert isinstance(kept, IdBins)
    assert sum(map(len, kept.rows)) <= MOST_ROWS
    shares = np.array(kept.shares)
    assert shares.sum() == pytest.approx(1)
    # Each bin of rows is about a tenth, give or take the most frequent row.
    most = np.unique(before["request"].ids_BK[:, 0], return_counts=True)[1].max() / 20_000
    assert shares[1:-1].max() <= 1 / BINS + most
    # What is written is what is read.
    assert FeatureReference.model_validate(reference.model_dump(mode="json")) == reference
