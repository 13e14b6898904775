"""Several requests of one version at once -> the answers of each, for less than one after another.

In: encoded requests, each with its candidates. Out: `Scored` of each. Requests are multiplied by the network's weights
together, and so are the candidates of those that have few, each with its own request's sums. Compiled code is made for
one request and is called for each.

Shapes: R requests, N candidates of one, S distinct ones of all, F outputs over the raw row, O outputs, B rows of a
block, K single-id features.
"""

from collections.abc import Sequence

import numpy as np
import torch

from model.features.block import EncodedBlock
from model.features.distinct import Positions, distinct, picked, spread, stacked
from model.features.encoder import Encoded
from model.scorer.scorer import NamedCandidates, Scored, Scorer

# What a call of the network costs besides its rows is worth so many. Requests with more are faster alone: their sums
# stay in the processor's caches (benchmarks/results/batch.md).
MOST_CANDIDATES = 50

Request = tuple[Encoded, Encoded | NamedCandidates]


def score_together(scorer: Scorer, requests: Sequence[Request]) -> list[Scored]:
    """Answers of each request. They differ from `scorer.score` of it alone by the rounding of float32. Raises
    NonFiniteScoresError where those of any are not finite."""
    small = [number for number, (_, candidates) in enumerate(requests) if _count(candidates) <= MOST_CANDIDATES]
    if scorer.compiled is not None or len(small) < 2:
        small = []
    scored: dict[int, Scored] = {}
    if small:
        with torch.inference_mode():
            parts = _answers(scorer, [requests[number] for number in small])
        for number, answers in zip(small, parts, strict=True):
            request, candidates = requests[number]
            scored[number] = scorer.scored(answers, request, candidates.missing, candidates.oov)
    return [scored[number] if number in scored else scorer.score(*one) for number, one in enumerate(requests)]


def _count(candidates: Encoded | NamedCandidates) -> int:
    return len(candidates.block.ids_BK if isinstance(candidates, Encoded) else candidates.rows_N)


def _answers(scorer: Scorer, requests: Sequence[Request]) -> list[torch.Tensor]:
    """answers_NO of each request."""
    described: dict[int, EncodedBlock] = {}
    named: dict[int, NamedCandidates] = {}
    for number, (_, candidates) in enumerate(requests):
        if isinstance(candidates, Encoded):
            described[number] = candidates.block
        elif candidates.encoded is not None and candidates.is_encoded_N.all():
            described[number] = candidates.encoded
        else:
            named[number] = candidates
    # Candidates' sums by the way that they are found, the request of each, and where those of a request stand.
    sums: list[torch.Tensor] = []
    request_of: list[Positions] = []
    places: dict[int, Positions] = {}
    if described:
        sizes = [len(block.ids_BK) for block in described.values()]
        block, request_of_S = stacked(*described.values()), np.repeat(list(described), sizes)
        of_all = np.arange(len(request_of_S))
        found = distinct(block, request_of_S)
        if found is not None:
            block, request_of_S, of_all = picked(block, found.first_S), request_of_S[found.first_S], found.of_N
        sums.append(scorer.module.candidate_sums(scorer.candidate_rows(block)))
        request_of.append(request_of_S)
        places |= dict(zip(described, np.split(of_all, np.cumsum(sizes)[:-1]), strict=True))
    start = sum(len(sums_SF) for sums_SF in sums)
    for number, candidates in named.items():
        sums_SF, of_N = scorer.named_sums(candidates)
        sums.append(sums_SF)
        request_of.append(np.full(len(sums_SF), number))
        places[number] = start + of_N
        start += len(sums_SF)
    sums_RF = scorer.request_sums(stacked(*(request.block for request, _ in requests)))
    of_request = torch.from_numpy(np.concatenate(request_of))
    answers_SO = scorer.module.answer_sums(torch.cat(sums), sums_RF.index_select(0, of_request))
    return [spread(answers_SO, places[number]) for number in range(len(requests))]
