"""Several requests of one version at once -> the answers of each, for less than one after another.

In: encoded requests, each with its candidates. Out: `Scored` of each. Requests are multiplied by the network's weights
together, and so are candidates, in calls of a few hundred rows. Compiled code is made for one request and is called for
each.

Shapes: R requests, N candidates of one, S distinct ones of all, D columns of the dense row, F outputs over the raw
row, O outputs, B rows of a block, K single-id features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from model.features.block import EncodedBlock
from model.features.distinct import Positions, distinct, picked, spread, stacked
from model.features.encoder import Encoded
from model.scorer.scorer import NamedCandidates, Scored, Scorer

# Candidates of requests with at most so many are one product, to which their requests' sums are added after it. More
# rows are worth a product for each request, which adds them on its way. Measured with `make bench-batch`'s network.
FEW_CANDIDATES = 20
# Rows of a call. More gain nothing, and their sums outgrow the processor's caches.
ROWS_OF_A_CALL = 256

Request = tuple[Encoded, Encoded | NamedCandidates]


def score_together(scorer: Scorer, requests: Sequence[Request]) -> list[Scored]:
    """Answers of each request. They differ from `scorer.score` of it alone by the rounding of float32. Raises
    NonFiniteScoresError where those of any are not finite."""
    few = [number for number, (_, candidates) in enumerate(requests) if _count(candidates) <= FEW_CANDIDATES]
    many = {
        number: block
        for number, (_, candidates) in enumerate(requests)
        if _count(candidates) > FEW_CANDIDATES and (block := _described(candidates)) is not None
    }
    if scorer.compiled is not None or len(few) + len(many) < 2:
        return [scorer.score(*one) for one in requests]
    numbers = [*few, *many]
    with torch.inference_mode():
        of_few, of_many = [[requests[number][0].block for number in some] for some in (few, many)]
        sums_RF = scorer.request_sums(stacked(*of_few, *of_many))
        answers = _answers_of_few(scorer, of_few, [requests[number][1] for number in few], sums_RF[: len(few)])
        answers += _answers_of_many(scorer, of_many, [*many.values()], sums_RF[len(few) :])
    scored: dict[int, Scored] = {}
    for number, answers_NO in zip(numbers, answers, strict=True):
        request, candidates = requests[number]
        scored[number] = scorer.scored(answers_NO, request, candidates.missing, candidates.oov)
    return [scored[number] if number in scored else scorer.score(*one) for number, one in enumerate(requests)]


def _count(candidates: Encoded | NamedCandidates) -> int:
    return len(candidates.block.ids_BK if isinstance(candidates, Encoded) else candidates.rows_N)


def _described(candidates: Encoded | NamedCandidates) -> EncodedBlock | None:
    """The candidates' block, None where a catalogue has the sums of some."""
    if isinstance(candidates, Encoded):
        return candidates.block
    return candidates.encoded if candidates.encoded is not None and candidates.is_encoded_N.all() else None


class _Rows(NamedTuple):
    """Distinct candidates of requests, one request's after another's: their block, the request of each, and where those
    of each request stand."""

    block: EncodedBlock
    request_of_S: Positions
    places: list[Positions]


def _distinct_rows(blocks: Sequence[EncodedBlock]) -> _Rows:
    sizes = [len(block.ids_BK) for block in blocks]
    block, request_of_S = stacked(*blocks), np.repeat(np.arange(len(blocks)), sizes)
    of_all = np.arange(len(request_of_S))
    found = distinct(block, request_of_S)
    if found is not None:
        block, request_of_S, of_all = picked(block, found.first_S), request_of_S[found.first_S], found.of_N
    return _Rows(block, request_of_S, np.split(of_all, np.cumsum(sizes)[:-1]))


def _answers_of_many(
    scorer: Scorer, requests: Sequence[EncodedBlock], blocks: Sequence[EncodedBlock], sums_RF: torch.Tensor
) -> list[torch.Tensor]:
    """answers_NO of each request, in calls for requests of some hundred candidates together."""
    if not blocks:
        return []
    rows = _distinct_rows(blocks)
    rows_SD = scorer.candidate_rows(rows.block, stacked(*requests), rows.request_of_S)
    counts: list[int] = np.bincount(rows.request_of_S, minlength=len(blocks)).tolist()
    answers: list[torch.Tensor] = []
    first = start = 0
    for last in range(1, len(counts) + 1):
        size = sum(counts[first:last])
        if last < len(counts) and size + counts[last] <= ROWS_OF_A_CALL:
            continue
        of_call_SD = rows_SD[start : start + size]
        answers.append(scorer.module.answer_together(of_call_SD, sums_RF[first:last], counts[first:last]))
        first, start = last, start + size
    answers_SO = torch.cat(answers)
    return [spread(answers_SO, places_N) for places_N in rows.places]


def _answers_of_few(
    scorer: Scorer,
    requests: Sequence[EncodedBlock],
    of_requests: Sequence[Encoded | NamedCandidates],
    sums_RF: torch.Tensor,
) -> list[torch.Tensor]:
    """answers_NO of each request, in one call."""
    if not of_requests:
        return []
    described: dict[int, EncodedBlock] = {}
    named: dict[int, NamedCandidates] = {}
    for number, candidates in enumerate(of_requests):
        block = _described(candidates)
        if block is not None:
            described[number] = block
        else:
            assert isinstance(candidates, NamedCandidates)
            named[number] = candidates
    # Candidates' sums by the way that they are found, the request of each, and where those of a request stand.
    sums: list[torch.Tensor] = []
    request_of: list[Positions] = []
    places: dict[int, Positions] = {}
    if described:
        rows = _distinct_rows([*described.values()])
        request_of.append(np.array([*described])[rows.request_of_S])
        rows_SD = scorer.candidate_rows(rows.block, stacked(*requests), request_of[0])
        sums.append(scorer.module.candidate_sums(rows_SD))
        places |= dict(zip(described, rows.places, strict=True))
    start = sum(len(sums_SF) for sums_SF in sums)
    for number, candidates in named.items():
        sums_SF, of_N = scorer.named_sums(candidates, requests[number])
        sums.append(sums_SF)
        request_of.append(np.full(len(sums_SF), number))
        places[number] = start + of_N
        start += len(sums_SF)
    of_request = torch.from_numpy(np.concatenate(request_of))
    answers_SO = scorer.module.answer_sums(torch.cat(sums), sums_RF.index_select(0, of_request))
    return [spread(answers_SO, places[number]) for number in range(len(of_requests))]
