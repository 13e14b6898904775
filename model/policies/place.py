"""Input of a policy, a scored request, and its output, an order.

Shapes: N candidates, L of them left after the stages that drop, K of them answered, D columns of a vector.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from model.features.raw_values import Words
from model.policies.stages import Entry

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

# Names of the order before any stage and after the last one.
SCORE, SELECT = "score", "select"


class RawValues(Protocol):
    """Raw values of the candidates of a request (model/policies/candidates.py)."""

    def numbers(self, feature: str) -> Floats:
        """number_N of a feature."""

    def words(self, feature: str) -> Words:
        """Words of the N ids of a feature."""


class Placing(NamedTuple):
    """A scored request. `answer_by_output` are its answers_N. `seen` are histories of the user by their names, and
    `vectors` gives vector_ND of an id feature. `now` is in seconds of Unix. `top_k` None is for all.

    Scores are finite, and within the range of a float32 (model/value_models/finite_scores.py)."""

    score_N: Floats
    answer_by_output: Mapping[str, NDArray[np.float32]]
    values: RawValues
    seen: Mapping[str, Sequence[Entry]]
    vectors: Callable[[str], NDArray[np.float32]]
    now: float
    top_k: int | None
    request_id: str


class Move(NamedTuple):
    """Utilities of the rows that were left, after a stage."""

    stage: str
    rows_L: Rows
    utility_L: Floats


class Placed(NamedTuple):
    """The order of a request, as rows. `propensity_K` is the probability of each place given the places before it, None
    unless the request explored. `dropped` are rows by the stage that dropped them, where one did. `relaxed` is the
    number of places at which the cap was relaxed."""

    order_K: Rows
    propensity_K: Floats | None
    dropped: dict[str, Rows]
    relaxed: int
    moves: tuple[Move, ...]

    def places(self) -> dict[str, NDArray[np.int64]]:
        """By stage place_K, from 0 and among all that were left: where each answered candidate stood after it."""
        order = self.order_K.tolist()
        places = {}
        for stage, rows_L, utility_L in self.moves:
            ranked = rows_L[(-utility_L).argsort(kind="stable")].tolist()
            place_of = {row: place for place, row in enumerate(ranked)}
            places[stage] = np.array([place_of[row] for row in order], np.int64)
        return {**places, SELECT: np.arange(len(order))}
