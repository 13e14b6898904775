"""What a combined score is made of: the answer to `"explain": true`, computed only for requests that ask.

In: a request's answers and the value model that combined them. Out: each task's contribution to every candidate's
score, by the value model's own rule (model/value_model.py), measured against the task's mean answer at export.

Shapes: N candidates, K of them answered, T tasks of the ranker.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.scorer import NonFiniteScoresError, Scorer
from model.value_model import ValueModel


class Explanation(NamedTuple):
    """By task that the value model reads, contribution_N in request order."""

    contributions: dict[str, NDArray[np.float64]]

    def of(self, order_K: NDArray[np.intp]) -> dict[str, Any]:
        """`explain` of an answer that holds the candidates at positions order_K, in that order."""
        return {
            "contributions": {task: given_N[order_K].tolist() for task, given_N in self.contributions.items()},
            "expert_weights": None,
        }


def explain(scorer: Scorer, value_model: ValueModel, answers_NT: NDArray[np.float32]) -> Explanation:
    """The explanation of a request's combined scores. Raises NonFiniteScoresError."""
    with np.errstate(all="ignore"):  # the next line is what looks for it
        contributions = value_model.contributions(answers_NT, scorer.reference_T)
    if not all(np.isfinite(given_N).all() for given_N in contributions.values()):
        raise NonFiniteScoresError(f"value model '{value_model.name}' gave a contribution that is not finite")
    return Explanation(contributions)
