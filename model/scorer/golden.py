"""Comparison of answers with those that are expected, of golden requests and of other ways to compute them.

Shapes: N candidates, O outputs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from model.artifact.artifact import ArtifactError
from model.artifact.compiled import CompiledManifest
from model.calibration import calibrated
from model.recalibration import Recalibration
from model.schema import FeedSchema

# Of an engine that is accepted by quality. That of quantities is relative above 1.
PROBABILITY_LIMIT, QUANTITY_LIMIT = 1e-2, 3e-2


def check_expected(
    place: str,
    outputs: Sequence[str],
    expected: Mapping[str, Sequence[float]],
    answers_NO: NDArray[np.float32],
    tolerance: float,
) -> None:
    """Raise ArtifactError where an answer is off by more than the tolerance (above 1, relative)."""
    for position, output in enumerate(outputs):
        expected_N = np.asarray(expected[output], np.float64)
        error_N = np.abs(answers_NO[:, position] - expected_N) / np.maximum(1.0, np.abs(expected_N))
        if not error_N.max() <= tolerance:
            raise ArtifactError(
                f"{place}, output {output}: the answer is off by {error_N.max():.2g}, tolerance {tolerance:g}"
            )


def check_recalibration(
    recalibration: Recalibration, outputs: Sequence[str], raw: Sequence[NDArray[np.float32]], tolerance: float
) -> None:
    """Raise ArtifactError where a generation does not make its golden answers of the raw ones."""
    place = f"calibration {recalibration.manifest.generation}"
    if len(raw) != len(recalibration.golden):
        raise ArtifactError(f"{place}: answers {len(recalibration.golden)} golden requests, there are {len(raw)}")
    for number, (raw_NO, expected) in enumerate(zip(raw, recalibration.golden, strict=True)):
        try:
            answers_NO = calibrated(raw_NO, recalibration.mappings)
            check_expected(f"{place}: request {number}", outputs, expected, answers_NO, tolerance)
        except ArtifactError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{place}: no answers to golden request {number} ({error!r})") from None


def disagreement(expected_NO: NDArray[np.float32], answers_NO: NDArray[np.float32], tolerance: float) -> str | None:
    """Difference of answers from the expected ones, None if there is none. It is a score off by more than the tolerance
    (above 1, relative), or two candidates in another order although their scores differ by more than that."""
    scale_NO = np.maximum(1.0, np.abs(expected_NO))
    error = float((np.abs(answers_NO - expected_NO) / scale_NO).max())
    if not error <= tolerance:
        return f"an answer is off by {error:.2g}, tolerance {tolerance:g}"
    for output, (expected_N, got_N) in enumerate(zip(expected_NO.T, answers_NO.T, strict=True)):
        apart_NN = expected_N[:, None] - expected_N[None, :] > tolerance * scale_NO[:, output, None]
        if (apart_NN & (got_N[:, None] <= got_N[None, :])).any():
            return f"output {output} ranks candidates in another order"
    return None


def compiled_fault(
    manifest: CompiledManifest,
    schema: FeedSchema,
    expected_NO: NDArray[np.float32],
    answers_NO: NDArray[np.float32],
) -> str | None:
    """Difference of a compiled package's answers from the expected ones, by the rule that it was accepted by. None if
    there is none."""
    if manifest.acceptance == "tolerance":
        return disagreement(expected_NO, answers_NO, manifest.tolerance)
    error_NO = np.abs(answers_NO - expected_NO) / np.maximum(1.0, np.abs(expected_NO))
    for task in schema.tasks:
        limit = PROBABILITY_LIMIT if task.is_probability else QUANTITY_LIMIT
        error = error_NO[:, schema.output_slices[task.name]].max()
        if not error <= limit:
            return f"task {task.name}: an answer is off by {error:.2g}, limit {limit:g}"
    return None
