"""Acceptance of an engine by quality: how far its answers move what a feed shows, on rows kept in the artifact.

Beside the strict tolerance of golden requests (model/scorer/golden.py), for engines that compute in fewer bits: bounds
on single answers, on each task's normalised entropy against labels, and on the top of the ranking. Answers are those of
TorchScript on one side, of the engine on the other, calibrated both.

Shapes: R rows, S sets, N candidates of a set, D columns of one, X columns or sums, F outputs over the raw row, O
outputs, T tasks.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artifact.compiled import Quality, compiled_sums_dtype
from model.artifact.quality_rows import CANDIDATES, QUALITY_ROWS, SETS, QualityRows
from model.features.distinct import picked
from model.schema import FeedSchema
from model.scorer.golden import PROBABILITY_LIMIT, QUANTITY_LIMIT
from model.scorer.scorer import Scorer

Answer = Callable[[Tensor, Tensor], Tensor]
Floats = NDArray[np.float32]
# score_N of answers_NO.
Combined = Callable[[Floats], NDArray[np.float64]]

# Differences that all but a thousandth of answers are below. That of quantities is relative above 1.
USUAL_PROBABILITY, USUAL_QUANTITY = 2e-3, 1e-2
USUAL_SHARE = 0.999
NE_LIMIT = 1e-4
TOP, OVERLAP_LIMIT = 20, 0.995
# Answers of float32 may be 0 and 1.
_FLOOR = 1e-7
_ROWS_AT_ONCE = 1000


def measured_quality(
    scorer: Scorer, rows: QualityRows, expected: Answer, answers: Answer, combined: Combined
) -> Quality:
    """Differences of `answers` from `expected`, both functions of rows_ND and sums_1F, on the sets and labels kept."""
    with torch.inference_mode():
        of_sets = [
            (scorer.as_answered(expected(*inputs)), scorer.as_answered(answers(*inputs)))
            for inputs in inputs_of_sets(scorer, rows)
        ]
        of_rows = [
            (scorer.as_answered(expected(*inputs)), scorer.as_answered(answers(*inputs)))
            for inputs in _inputs_of_rows(scorer, rows)
        ]
    expected_XO, answers_XO = (np.concatenate(side) for side in zip(*of_sets, strict=True))
    expected_RO, answers_RO = (np.concatenate(side) for side in zip(*of_rows, strict=True))
    is_probability_O = np.array([task.is_probability for task in scorer.schema.tasks for _ in task.outputs])
    error_XO = np.abs(answers_XO - expected_XO) / np.maximum(1.0, np.abs(expected_XO))
    usual_O = np.where(is_probability_O, USUAL_PROBABILITY, USUAL_QUANTITY)
    shares_O = (error_XO < usual_O).mean(0)

    def figures(chosen_O: NDArray[np.bool_]) -> tuple[float | None, float | None]:
        if not chosen_O.any():
            return None, None
        return float(error_XO[:, chosen_O].max()), float(shares_O[chosen_O].min())

    probability, usual_probabilities = figures(is_probability_O)
    quantity, usual_quantities = figures(~is_probability_O)
    overlaps = [_overlap(combined(one), combined(other)) for one, other in of_sets]
    return Quality(
        sets=len(of_sets),
        candidates=len(expected_XO) // max(1, len(of_sets)),
        rows=len(expected_RO),
        probability_error=probability,
        usual_probabilities=usual_probabilities,
        quantity_error=quantity,
        usual_quantities=usual_quantities,
        ne_change=_ne_changes(scorer.schema, rows.labels_RT, expected_RO, answers_RO),
        overlap=float(np.mean(overlaps)),
    )


def quality_fault(quality: Quality) -> str | None:
    """The first bound that is broken, with its figure. None where all hold."""
    if quality.sets < SETS or quality.candidates < CANDIDATES:
        measured = f"measured on {quality.sets} sets of {quality.candidates} candidates"
        return f"{measured}, needs {SETS} of {CANDIDATES}; export a run with more validation rows"
    bounds = (
        ("a probability is off by", quality.probability_error, PROBABILITY_LIMIT),
        ("a quantity is off by the share", quality.quantity_error, QUANTITY_LIMIT),
        *((f"{task}: NE changes by the share", change, NE_LIMIT) for task, change in quality.ne_change.items()),
    )
    for what, figure, limit in bounds:
        if figure is not None and not abs(figure) <= limit:
            return f"{what} {figure:.2g}, limit {limit:g}"
    least = (
        (f"probabilities off by less than {USUAL_PROBABILITY:g}", quality.usual_probabilities, USUAL_SHARE),
        (f"quantities off by less than {USUAL_QUANTITY:g}", quality.usual_quantities, USUAL_SHARE),
        (f"overlap of the top {TOP}", quality.overlap, OVERLAP_LIMIT),
    )
    for what, figure, limit in least:
        if figure is not None and not figure >= limit:
            return f"{what}: {figure:.4f}, needs {limit:g}"
    return None


def served_fault(scorer: Scorer, combined: Combined) -> str | None:
    """The first bound that the scorer's compiled package breaks in this process, by columns or by sums. None where all
    hold. Raises ArtifactError for a version without kept rows."""
    assert scorer.compiled is not None
    assert scorer.compiled_sums is not None
    rows = QualityRows.of_artifact(scorer.artifact)
    if rows is None:
        return f"the version has no {QUALITY_ROWS}"
    sums_of = sums_by_columns(scorer)
    compiled_sums, answer_sums = scorer.compiled_sums, scorer.module.answer_sums
    by_columns = measured_quality(scorer, rows, scorer.module.answer, scorer.compiled, combined)
    by_sums = measured_quality(
        scorer,
        rows,
        lambda rows_ND, sums_1F: answer_sums(sums_of(rows_ND), sums_1F),
        lambda rows_ND, sums_1F: compiled_sums(sums_of(rows_ND), sums_1F),
        combined,
    )
    return next((fault for one in (by_columns, by_sums) if (fault := quality_fault(one)) is not None), None)


def sums_by_columns(scorer: Scorer) -> Callable[[Tensor], Tensor]:
    """The function that gives the sums that a package answers by, of candidates' rows_ND."""
    dtype = compiled_sums_dtype(scorer.schema)

    def sums_of(rows_ND: Tensor) -> Tensor:
        sums_NF: Tensor = scorer.module.candidate_sums(rows_ND).to(dtype)
        return sums_NF

    return sums_of


def inputs_of_sets(scorer: Scorer, rows: QualityRows) -> Iterator[tuple[Tensor, Tensor]]:
    """rows_ND and sums_1F of each set."""
    for set_N in rows.sets_SN:
        request = picked(rows.request, set_N[:1])
        block = picked(rows.candidate, set_N)
        yield scorer.candidate_rows(block, request), scorer.request_sums(request)


def _inputs_of_rows(scorer: Scorer, rows: QualityRows) -> Iterator[tuple[Tensor, Tensor]]:
    """Each row's candidate under its own request, which its labels are of."""
    count = len(rows.labels_RT)
    for start in range(0, count, _ROWS_AT_ONCE):
        some_R = np.arange(start, min(start + _ROWS_AT_ONCE, count))
        requests = picked(rows.request, some_R)
        sums_RF = scorer.request_sums(requests)
        rows_RD = scorer.candidate_rows(picked(rows.candidate, some_R), requests, np.arange(len(some_R)))
        yield from zip(torch.split(rows_RD, 1), torch.split(sums_RF, 1), strict=True)


def _overlap(one_N: NDArray[np.float64], other_N: NDArray[np.float64]) -> float:
    tops = (set(np.argsort(-scores_N, kind="stable")[:TOP].tolist()) for scores_N in (one_N, other_N))
    first, second = tops
    return len(first & second) / len(first)


def _ne_changes(
    schema: FeedSchema, labels_RT: Floats, expected_RO: Floats, answers_RO: Floats
) -> dict[str, float | None]:
    """Change of each task's normalised entropy as a share of it. None where all labels are one. Quantities have none.

    The base rate's entropy divides both sides, so the share is that of the cross entropy alone."""
    changes: dict[str, float | None] = {}
    for task, labels_R in zip(schema.tasks, labels_RT.T, strict=True):
        if not task.is_probability:
            continue
        counts_R = np.isfinite(labels_R)
        labels_N, outputs = labels_R[counts_R].astype(np.int64), schema.output_slices[task.name]
        if len(np.unique(labels_N)) < 2:
            changes[task.name] = None
            continue
        before, after = (_cross_entropy(side[counts_R, outputs], labels_N) for side in (expected_RO, answers_RO))
        changes[task.name] = after / before - 1
    return changes


def _cross_entropy(answers_NO: Floats, labels_N: NDArray[np.int64]) -> float:
    """Mean log loss of a label's probability: of one output that it is 1, of several their classes'."""
    wide_NO = np.clip(answers_NO.astype(np.float64), _FLOOR, 1 - _FLOOR)
    if wide_NO.shape[1] == 1:
        return float(-np.log(np.where(labels_N == 1, wide_NO[:, 0], 1 - wide_NO[:, 0])).mean())
    return float(-np.log(wide_NO[np.arange(len(labels_N)), labels_N]).mean())
