"""Answers of a request as the scorer gives them.

Shapes: N candidates, O outputs, G fused units and E experts of a level.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class NonFiniteScoresError(RuntimeError):
    """The ranker answered NaN or infinity. Such scores are never passed on."""


class Scored(NamedTuple):
    """Answers of one request, and per feature how many values were missing or unknown to a vocabulary. `raw_NO` are the
    answers before calibration, the same array where there is none. `calibration` is the generation that they are
    calibrated by, None of the version's own."""

    answers_NO: NDArray[np.float32]
    missing: dict[str, int]
    oov: dict[str, int]
    raw_NO: NDArray[np.float32]
    calibration: str | None = None


class ExpertWeights(NamedTuple):
    """One fusion level of a network that mixes experts: weights_NGE of every expert in every unit, by candidate.

    Where experts are gated, the gate's weight and the native one together. A network may also mix them by fixed
    numbers, the same for all candidates."""

    units: list[str]
    experts: list[str]
    weights_NGE: NDArray[np.float32]
