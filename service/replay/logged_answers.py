"""Answers to a logged request: those of the log, or those that a version gives to what was logged.

Shapes: N candidates, O outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.features.encoder import ColumnErrors
from model.schema import Block
from model.scorer.scorer import NonFiniteScoresError, Scorer
from service.impressions.record import Logged

# The features of a block that a version reads, of those that are given.
Known = Callable[[Block, Mapping[str, Any]], Mapping[str, Any]]


def logged_answers(logged: Logged, outputs: Sequence[str], remedy: str = "") -> NDArray[np.float32]:
    """answers_NO of the log. Raises ValueError, which ends in `remedy`, where it lacks one."""
    lacking = [output for output in outputs if output not in logged.line.tasks]
    if lacking:
        raise ValueError(f"the log has no answers of task {', '.join(lacking)}{remedy}")
    return np.array([logged.line.tasks[output] for output in outputs], np.float32).T


def new_answers(logged: Logged, scorer: Scorer, known: Known) -> NDArray[np.float32]:
    """answers_NO of a version. Raises ValueError where the log lacks values, or the version does not take them."""
    if logged.line.catalogue:
        raise ValueError("a catalogue gave features that are not in the log; score such requests by value model")
    if logged.line.hashes is not None:
        raise ValueError(
            "the log has a hash of the features, not their values (--impression-log-features hash); score such "
            "requests by value model"
        )
    rows, encoder = len(logged.ids), scorer.encoder
    user, features = known("request", logged.user), known("candidate", logged.features)
    try:
        request, candidates = encoder.request_columns(user), encoder.columns("candidate", features, rows)
        return scorer.score(*scorer.encode(request, candidates, rows)).answers_NO
    except (ColumnErrors, NonFiniteScoresError) as error:
        raise ValueError(str(error)) from None
