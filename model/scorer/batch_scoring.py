"""Many requests at once -> answers: what batch scoring computes, by the same scorer and the same module as a service.

In: the request columns of R requests, the candidate columns of N candidates, and which request each belongs to. Out:
answers_NO. A request's part is computed once for all its candidates, and so are equal candidates of equal requests.
By TorchScript all candidates go through the network together, each with its own request's sums. Compiled code is made
for one request and is called for each.

Shapes: R requests, N candidates, S distinct pairs of both, D columns of the dense row, F outputs over the raw row, O
outputs, L list features, V list values, B rows of a block, K single-id features, Q numbers.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from model.artifact.compiled import CompiledAnswers
from model.features.distinct import distinct, once, picked, spread
from model.features.encoder import Column, EncodedBlock
from model.features.kinds.columns import Ids
from model.scorer.scorer import Scored, Scorer


def score_requests(
    scorer: Scorer,
    requests: Mapping[str, Column],
    num_requests: int,
    candidates: Mapping[str, Column],
    request_of_N: Ids,
) -> Scored:
    """Answers of all candidates, in their order, and what was missing or unknown, once a request and once a candidate.

    Differs from `scorer.score` of each request alone by the rounding of float32. Raises NonFiniteScoresError."""
    rows = len(request_of_N)
    encoded_requests = scorer.encoder.encode("request", requests, num_requests, as_served=True)
    encoded = scorer.encoder.encode("candidate", candidates, rows, as_served=True)
    requests_block, of_R = once(encoded_requests.block)
    if of_R is not None:
        request_of_N = of_R[request_of_N]
    found = distinct(encoded.block, request_of_N)
    block = encoded.block if found is None else picked(encoded.block, found.first_S)
    request_of_S = request_of_N if found is None else request_of_N[found.first_S]
    with torch.inference_mode():
        rows_SD = scorer.candidate_rows(block, requests_block, request_of_S)
        if scorer.compiled is None:
            sums_RF = scorer.request_sums(requests_block)
            sums_SF = scorer.module.candidate_sums(rows_SD)
            if len(sums_RF) < len(sums_SF) or found is not None or of_R is not None:
                sums_RF = sums_RF.index_select(0, torch.from_numpy(request_of_S))
            answers = scorer.module.answer_sums(sums_SF, sums_RF)
        else:
            answers = _by_request(scorer, scorer.compiled, requests_block, rows_SD, request_of_S)
        if found is not None:
            answers = spread(answers, found.of_N)
    return scorer.scored(answers, encoded_requests, encoded.missing, encoded.oov)


def _by_request(
    scorer: Scorer, compiled: CompiledAnswers, requests: EncodedBlock, rows_ND: Tensor, request_of_N: Ids
) -> Tensor:
    """answers_NO, request by request. Each one's sums are computed alone too, for in bfloat16 a last digit may become
    visible."""
    order_N = torch.from_numpy(np.argsort(request_of_N, kind="stable"))
    counts_R = np.bincount(request_of_N, minlength=len(requests.numbers_BQ)).tolist()
    parts = torch.split(rows_ND.index_select(0, order_N), counts_R)
    answers = [
        compiled(part_ND, scorer.request_sums(request))
        for part_ND, request in zip(parts, _each(requests), strict=True)
        if len(part_ND)
    ]
    answers_NO = answers[0].new_empty(len(rows_ND), answers[0].shape[1])
    answers_NO[order_N] = torch.cat(answers)
    return answers_NO


def _each(block: EncodedBlock) -> Iterator[EncodedBlock]:
    """Every row of a block as a block of its own."""
    ends_LB = np.cumsum(block.list_lengths_LB.reshape(-1)).reshape(block.list_lengths_LB.shape)
    starts_LB = ends_LB - block.list_lengths_LB
    for row in range(len(block.numbers_BQ)):
        spans = zip(starts_LB[:, row].tolist(), ends_LB[:, row].tolist(), strict=True)
        values = [block.list_values_V[start:end] for start, end in spans]
        yield EncodedBlock(
            block.ids_BK[row : row + 1],
            np.concatenate(values) if values else block.list_values_V,
            block.list_lengths_LB[:, row : row + 1],
            block.numbers_BQ[row : row + 1],
        )
