"""A question's candidates in the model's catalogue, which knows them by their ids alone.

In: a question and its candidates' columns. Out: `NamedCandidates`. Each feature comes from the request, then from the
catalogue, then from its default. Candidates that neither describes are refused or scored by defaults, as the service is
set.

Shapes: N candidates.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.features.encoder import Column
from model.schema import FeedSchema
from model.scorer.scorer import NamedCandidates
from service.base.errors import FAULTS_SHOWN, Fault, Problem
from service.models.version import ServedModel
from service.rank.question import Question

UnknownCandidates = Literal["refuse", "defaults"]


def named_candidates(
    model: ServedModel, question: Question, columns: Mapping[str, Column], unknown: UnknownCandidates
) -> NamedCandidates | None:
    """A question's candidates as the model's catalogue knows them. None where it has none. Raises Problem 422 for
    candidates that nothing describes."""
    scorer = model.scorer
    found = None
    if scorer.catalogue is not None:
        found = scorer.name(question.ids, columns, nulls(question, scorer.schema))
    if found is None:
        if question.featureless is not None:
            rule = "expected an object of features, got nothing; this model has no catalogue to take them from"
            raise Problem.wrong_content([Fault(question.featureless, rule)])
        return None
    model.metrics.count_lookups(found.results)
    if found.unknown and unknown == "refuse":
        place = "candidates.id[{}]" if question.rows is None else "candidates[{}].id"
        rule = "not in the catalogue, and the request has no features of it"
        faults = [Fault(place.format(position), rule) for position in found.unknown[:FAULTS_SHOWN]]
        more = len(found.unknown) - 1
        detail = f"{faults[0].path}: {rule}" + (f", and {more} more" if more else "")
        raise Problem(422, detail, faults=faults)
    return found


def nulls(question: Question, schema: FeedSchema) -> dict[str, NDArray[np.bool_]]:
    """Masks of the lists that are null, which is not the same as empty: the catalogue's are then taken."""
    nulls = {}
    for feature in schema.requested("candidate"):
        if not feature.is_list:
            continue
        values: list[Any] | None = None
        if question.rows is not None:
            values = [row.get(feature.name) for row in question.rows]
        elif isinstance(given := question.features.get(feature.name), list):
            values = given
        if values is not None:
            nulls[feature.name] = np.fromiter((value is None for value in values), np.bool_, len(values))
    return nulls
