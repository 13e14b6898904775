"""Acceptance by quality: figures against a loop over single requests, bounds one by one, and what the service does.

Shapes: N candidates, O outputs, D their columns, F outputs over the raw row.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artifact.artifact import MANIFEST, Artifact, ArtifactError
from model.artifact.compiled import Quality, compiled_sums_dtype
from model.artifact.quality_rows import CANDIDATES, SETS, QualityRows, most_rows, sets_of
from model.features.distinct import picked
from model.scorer.quality import Answer, measured_quality, quality_fault
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact
from tests.model.scorer.kept_rows import ROWS, keep_rows, tiny_rows
from tests.service.models.test_store import loads, store_of
from training.metrics.metrics import normalized_entropy

GOOD: dict[str, Any] = {
    "sets": SETS,
    "candidates": CANDIDATES,
    "rows": 1000,
    "probability_error": 0.009,
    "usual_probabilities": 0.9995,
    "quantity_error": 0.029,
    "usual_quantities": 0.9992,
    "ne_change": {"click": 9e-5, "like": -9e-5, "hide": None},
    "overlap": 0.996,
}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep_rows(publish_artifact(tmp_path_factory.mktemp("models")))


def total(answers_NO: NDArray[np.float32]) -> NDArray[np.float64]:
    sums_N: NDArray[np.float64] = answers_NO[:, :2].sum(1, dtype=np.float64)
    return sums_N


def moved(answer: Answer, by: float) -> Answer:
    """Answers that are off by a wave over candidates, whose height is relative above 1."""

    def answers(candidates_NX: Tensor, sums_1F: Tensor) -> Tensor:
        answers_NO = answer(candidates_NX, sums_1F)
        wave_N1 = torch.sin(1e2 * candidates_NX.float().sum(1, keepdim=True))
        return answers_NO + by * wave_N1 * answers_NO.abs().clamp(min=1)

    return answers


def test_the_figures_are_those_of_a_loop_over_requests(version: Path) -> None:
    scorer = Scorer.load(version, "torchscript")
    rows = QualityRows.of_artifact(scorer.artifact)
    assert rows is not None
    answer = scorer.module.answer
    got = measured_quality(scorer, rows, answer, moved(answer, 0.01), total)
    probabilities: list[float] = []
    quantities: list[float] = []
    overlaps: list[float] = []
    for of_set in rows.sets_SN[:60]:
        pairs = {}
        for name, function in (("expected", answer), ("got", moved(answer, 0.01))):
            request = scorer.request_sums(picked(rows.request, of_set[:1]))
            with torch.inference_mode():
                pairs[name] = function(scorer.candidate_rows(picked(rows.candidate, of_set)), request).numpy()
        for column in range(3):
            for one, other in zip(pairs["expected"][:, column], pairs["got"][:, column], strict=True):
                (probabilities if column < 2 else quantities).append(abs(one - other) / max(1, abs(one)))
        best = {name: sorted(range(CANDIDATES), key=lambda n: -total(pairs[name])[n])[:20] for name in pairs}
        overlaps.append(len({*best["expected"]} & {*best["got"]}) / 20)
    some = measured_quality(scorer, rows._replace(sets_SN=rows.sets_SN[:60]), answer, moved(answer, 0.01), total)
    assert (some.sets, got.sets, got.candidates, got.rows) == (60, SETS, CANDIDATES, ROWS)
    assert some.probability_error == pytest.approx(max(probabilities), rel=1e-3)
    assert some.quantity_error == pytest.approx(max(quantities), rel=1e-3)
    assert some.usual_quantities == pytest.approx(np.mean(np.array(quantities) < 0.01), abs=1e-3)
    assert some.overlap == pytest.approx(np.mean(overlaps), abs=1e-9)
    assert some.overlap < 1


def test_the_change_of_normalised_entropy_is_that_of_each_row_under_its_own_request(version: Path) -> None:
    scorer = Scorer.load(version, "torchscript")
    rows = tiny_rows(version)
    answer = scorer.module.answer
    got = measured_quality(scorer, rows._replace(sets_SN=rows.sets_SN[:1]), answer, moved(answer, 0.05), total)
    before, after = [], []
    with torch.inference_mode():
        for row in range(ROWS):
            place = np.array([row])
            request = scorer.request_sums(picked(rows.request, place))
            inputs = scorer.candidate_rows(picked(rows.candidate, place)), request
            before.append(answer(*inputs).numpy()[0])
            after.append(moved(answer, 0.05)(*inputs).numpy()[0])
    assert list(got.ne_change) == ["click", "like"]
    for task, name in enumerate(got.ne_change):
        counts = np.isfinite(rows.labels_RT[:, task])
        labels = rows.labels_RT[counts, task]
        first, second = (
            normalized_entropy(labels, np.clip(np.array(side)[counts, task], 0, 1)) for side in (before, after)
        )
        assert first
        assert second
        assert got.ne_change[name] == pytest.approx(second / first - 1, rel=1e-3)
        assert abs(second / first - 1) > 1e-4


def test_a_task_whose_labels_are_all_one_has_no_entropy(version: Path) -> None:
    scorer = Scorer.load(version, "torchscript")
    rows = tiny_rows(version)
    rows.labels_RT[:, 1] = np.where(np.isnan(rows.labels_RT[:, 1]), np.nan, 0)
    answer = scorer.module.answer
    quality = measured_quality(scorer, rows, answer, answer, total)
    assert quality.ne_change == {"click": 0.0, "like": None}
    assert (quality.probability_error, quality.overlap, quality_fault(quality)) == (0.0, 1.0, None)


@pytest.mark.parametrize(("changed", "fault"), [
    ({}, None),
    ({"quantity_error": None, "usual_quantities": None}, None),
    ({"sets": 499}, "499 sets of 100 candidates"),
    ({"candidates": 99}, "500 sets of 99 candidates"),
    ({"probability_error": 0.011}, "a probability is off by 0.011, limit 0.01"),
    ({"probability_error": float("nan")}, "a probability is off by nan"),
    ({"usual_probabilities": 0.9989}, r"probabilities off by less than 0.002: 0.9989, needs 0.999"),
    ({"quantity_error": 0.031}, "a quantity is off by the share 0.031"),
    ({"usual_quantities": 0.998}, "quantities off by less than 0.01"),
    ({"ne_change": {"click": -1.1e-4}}, "click: NE changes by the share -0.00011, limit 0.0001"),
    ({"overlap": 0.9949}, "overlap of the top 20: 0.9949"),
])  # fmt: skip
def test_each_bound_is_a_fault_of_its_own(changed: dict[str, Any], fault: str | None) -> None:
    got = quality_fault(Quality(**{**GOOD, **changed}))
    assert (got is None) if fault is None else (fault in (got or ""))


def test_the_rows_are_read_as_they_were_written(version: Path) -> None:
    rows = tiny_rows(version)
    again = QualityRows.of_artifact(Artifact.open(version))
    assert again is not None
    for one, other in zip(arrays_of(rows), arrays_of(again), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def arrays_of(rows: QualityRows) -> list[NDArray[Any]]:
    return [*rows.request, *rows.candidate, rows.labels_RT, rows.sets_SN]


def damaged(rows: QualityRows, name: str) -> QualityRows:
    return {
        "labels": rows._replace(labels_RT=rows.labels_RT[:, :1]),
        "sets": rows._replace(sets_SN=rows.sets_SN + 100),
        "ids": rows._replace(candidate=rows.candidate._replace(ids_BK=rows.candidate.ids_BK[:, :1])),
        "values": rows._replace(request=rows.request._replace(list_values_V=rows.request.list_values_V[1:])),
        "rows": rows._replace(request=picked(rows.request, np.arange(5))),
    }[name]


@pytest.mark.parametrize(("name", "reason"), [
    ("labels", "the schema has 3 tasks"),
    ("sets", "other rows than the 150"),
    ("ids", "candidate block has not the schema's features"),
    ("values", "other list values"),
    ("rows", "request block has not"),
])  # fmt: skip
def test_rows_of_another_schema_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    version = publish_artifact(tmp_path)
    keep_rows(version, damaged(tiny_rows(version), name).content())
    with pytest.raises(ArtifactError, match=rf"quality_rows\.npz: .*{reason}.*export the run again"):
        QualityRows.of_artifact(Artifact.open(version))


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_archive_of_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    version = keep_rows(publish_artifact(tmp_path), content)
    with pytest.raises(ArtifactError, match=r"quality_rows\.npz: no encoded rows"):
        QualityRows.of_artifact(Artifact.open(version))


@pytest.mark.parametrize("rows", [100, 130, 2000])
def test_sets_are_of_distinct_rows_and_begin_with_every_row_in_turn(rows: int) -> None:
    sets_SN = sets_of(rows)
    assert sets_SN.shape == (SETS, CANDIDATES)
    assert all(len({*of_set}) == CANDIDATES for of_set in sets_SN.tolist())
    assert len({*sets_SN[:, 0].tolist()}) == min(rows, SETS)
    assert sets_SN.min() >= 0
    assert sets_SN.max() < rows


def test_the_size_of_kept_rows_is_bounded() -> None:
    assert most_rows(10) == 20_000
    assert most_rows(2**14) == 1024
    assert most_rows(2**30) == CANDIDATES


@pytest.mark.parametrize(("off", "engine"), [(0.0, "compiled"), (0.05, "torchscript")])
def test_the_service_checks_quality_on_its_own_host_and_goes_back_to_torchscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float, engine: str
) -> None:
    """The package is the module itself here: off as on another kind of CPU."""
    version = keep_rows(publish_artifact(tmp_path))

    def take(scorer: Scorer) -> None:
        scorer.engine, scorer.acceptance = "compiled", "quality"
        functions = scorer.module.answer, scorer.module.answer_sums
        scorer.compiled, scorer.compiled_sums = (moved(one, off) for one in functions)  # type: ignore[assignment]

    monkeypatch.setattr(Scorer, "_take_compiled", take)
    folder = version.parent / "derived" / "1" / "compiled"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    store = store_of(tmp_path)
    begun = store.find(None, None).scorer
    (before,) = store.entry("tiny")["versions"]
    assert (before["engine"], before["acceptance"], before["reason"]) == ("compiled", "quality", None)
    store.refresh()
    (after,) = store.entry("tiny")["versions"]
    assert after["engine"] == engine
    info = {
        name: store._metrics.registry.get_sample_value(
            "ranking_model_info", {"model": "tiny", "version": "1", "calibration": "", "engine": name}
        )
        for name in ("compiled", "torchscript")
    }
    if engine == "compiled":
        assert (after["acceptance"], after["reason"]) == ("quality", None)
        assert info == {"compiled": 1, "torchscript": None}
        return
    assert after["acceptance"] is None
    assert "accepted by quality, and on this host a probability is off by 0.05" in after["reason"]
    assert info == {"compiled": 0, "torchscript": 1}
    assert loads(store, "compiled_refused") == 1
    assert begun.compiled is not None  # for the requests that run
    served = store.find(None, None).scorer
    assert (served.compiled, served.compiled_sums) == (None, None)
    assert compiled_sums_dtype(served.schema) == torch.bfloat16
    store.refresh()
    assert store.find(None, None).scorer is served
