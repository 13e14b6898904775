"""`"strict": true`: a request says something of every feature, or is refused.

In: a question, the model's schema, and which candidates a catalogue knows. Out: nothing, or Problem 422 with every
feature that is left out, by name. A null says that a value is missing. A catalogue describes the candidates that it
has. The state store answers for its features of a user whom the request names, found or not.

Shapes: N candidates.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from model.schema import FeedSchema
from service.base.errors import FAULTS_SHOWN, Fault, Problem
from service.rank.question import Question

_RULE = "left out, and the request is strict; send its values, or null"


def check_strict(question: Question, schema: FeedSchema, is_known_N: NDArray[np.bool_] | None) -> None:
    """Raise Problem 422 naming the features that the question leaves out. `is_known_N` are the candidates of a
    catalogue, None where there is none."""
    covered = frozenset() if question.hydrated is None else question.hydrated.covers
    given = covered | question.user.keys()
    names = [feature.name for feature in schema.requested("request") if feature.name not in given]
    faults = [Fault(f"user.{name}", _RULE) for name in names]
    unknown = range(len(question.ids)) if is_known_N is None else np.flatnonzero(~is_known_N).tolist()
    asked = [feature.name for feature in schema.requested("candidate")]
    of_candidates = _rows(question, asked, unknown) if question.rows is not None else _columns(question, asked, unknown)
    # One more than is shown says that there are more.
    faults += islice(of_candidates, FAULTS_SHOWN + 1)
    if faults:
        raise Problem.wrong_content(faults)


def _columns(question: Question, asked: list[str], unknown: range | list[int]) -> Iterator[Fault]:
    for name in asked:
        if name not in question.features and unknown:
            in_part = len(unknown) < len(question.ids)
            whose = f"; the catalogue does not know candidates.id[{unknown[0]}]" if in_part else ""
            yield Fault(f"candidates.features.{name}", _RULE + whose)


def _rows(question: Question, asked: list[str], unknown: range | list[int]) -> Iterator[Fault]:
    assert question.rows is not None
    for position in unknown:
        for name in asked:
            if name not in question.rows[position]:
                yield Fault(f"candidates[{position}].features.{name}", _RULE)
