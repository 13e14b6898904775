"""Acceptance of compiled functions: by the tolerance of golden requests, or, where it is asked for, by quality.

In: a version's scorer, and functions of candidates that are compared with those of TorchScript. Out: by which rule each
is accepted, with its figures, or why it is not.

Shapes: N candidates, D their columns, X columns or sums, F outputs over the raw row, O outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.artifact.compiled import Acceptance, Quality
from model.artifact.quality_rows import QUALITY_ROWS, QualityRows
from model.scorer.golden import disagreement
from model.scorer.quality import Answer, measured_quality, quality_fault, sums_by_columns
from model.scorer.scorer import COMPILED_TOLERANCE, Scorer
from model.value_models.value_model import DEFAULT, ValueModels


@dataclass(frozen=True)
class Verdict:
    """The rule that a function is accepted by, None with `fault`, and the figures of its quality where they count."""

    acceptance: Acceptance | None
    quality: Quality | None = None
    fault: str = ""


def loosest(verdicts: Sequence[Verdict]) -> Acceptance:
    """The rule that all accepted functions hold."""
    return "tolerance" if all(one.acceptance == "tolerance" for one in verdicts) else "quality"


class Judge:
    """Judge of a version's compiled functions. Raises ValueError where the version has not what `accept` takes."""

    def __init__(self, scorer: Scorer, accept: Acceptance) -> None:
        self._scorer = scorer
        self._rows: QualityRows | None = None
        if accept == "quality":
            self._rows = QualityRows.of_artifact(scorer.artifact)
            if self._rows is None:
                raise ValueError(
                    f"{scorer.artifact.path}: --accept quality compares answers on kept validation rows, and this "
                    f"version has no {QUALITY_ROWS}; export its run again"
                )
            value_models = ValueModels.of_folder(scorer.artifact.path.parent, scorer.domain)
            self._combined = value_models[DEFAULT].score

    def by_columns(self, answers: Answer, rows_ND: Tensor, sums_1F: Tensor) -> Verdict:
        """Verdict on a function of candidates' columns."""
        return self._verdict(self._scorer.module.answer, answers, lambda rows_ND: rows_ND, rows_ND, sums_1F)

    def by_sums(self, answers: Answer, rows_ND: Tensor, sums_1F: Tensor) -> Verdict:
        """Verdict on a function of candidates' sums."""
        of_scorer = sums_by_columns(self._scorer)
        return self._verdict(self._scorer.module.answer_sums, answers, of_scorer, rows_ND, sums_1F)

    def _verdict(
        self,
        torchscript: Answer,
        answers: Answer,
        inputs_of: Callable[[Tensor], Tensor],
        rows_ND: Tensor,
        sums_1F: Tensor,
    ) -> Verdict:
        scorer = self._scorer
        with torch.inference_mode():
            inputs_NX = inputs_of(rows_ND)
            # As they are answered: a map to a label's mean may be steep, and widen what fewer bits change.
            expected_NO = scorer.as_answered(torchscript(inputs_NX, sums_1F))
            fault = disagreement(expected_NO, scorer.as_answered(answers(inputs_NX, sums_1F)), COMPILED_TOLERANCE)
        if fault is None:
            return Verdict("tolerance")
        if self._rows is None:
            return Verdict(None, fault=fault)
        quality = measured_quality(
            scorer,
            self._rows,
            lambda rows_ND, sums_1F: torchscript(inputs_of(rows_ND), sums_1F),
            lambda rows_ND, sums_1F: answers(inputs_of(rows_ND), sums_1F),
            self._combined,
        )
        fault = quality_fault(quality)
        return Verdict("quality" if fault is None else None, quality, fault or "")
