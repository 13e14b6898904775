"""CPU time of a scoring request inside feedrank, stage by stage, and how near the network is to a GEMM.

In: an artifact of the reference feed, request bodies. Out: microseconds a stage, one torch thread: the functions that
service/app.py calls, in its order, whole requests one after the other in this process, so that every stage finds the
caches as the one before it left them. What is around them is measured by a server of its own (frame_service.py). Of
FLOP, a multiplication and an addition are two.

Shapes: R rows of a block, B rows, K single-id features, Q numbers, D columns of the dense row, N
candidates, F outputs over the raw row, O outputs.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.as_trained_calls import AsTrainedFile, Inputs
from benchmarks.reference_feed import NETWORK, SCHEMA, TASKS, names_of
from model.artifact.compiled import CompiledAnswers, open_compiled
from model.features.kinds.columns import Column
from model.ranker import row_width
from model.schema import Block
from model.scorer.scorer import Engine, Scorer
from model.value_models.value_model import DEFAULT, ValueModels
from service.base.record import RequestRecord
from service.metrics.metrics import RANK, Metrics
from service.metrics.model_metrics import ModelMetrics
from service.models.version import ServedModel
from service.rank.answer import write
from service.rank.question import Question, read_features
from service.rank.read import read_question
from service.rank.scored_request import EncodedRequest, ScoredRequest

MAX_CANDIDATES = 2_000
SECONDS = 0.5
FEWEST = 30
MODEL_STAGES = ("user part", "look-ups", "network")

Network = Callable[[Tensor, Tensor], Tensor]


def stages(scorer: Scorer, network: Network, body: bytes) -> dict[str, float]:
    """CPU microseconds of each stage of a request, medians over many. `network` is what an engine computes."""
    encoder = scorer.encoder
    metrics = ModelMetrics(Metrics(), "reference", scorer)
    question = _read(body)
    rows = len(question.ids)
    row, columns = read_features(question, encoder)
    request, candidates = encoder.encode_both(row, columns, rows)
    served = ServedModel("reference", scorer, ValueModels.built_in(scorer.domain), None, metrics)
    encoded = EncodedRequest("bench", served, DEFAULT, question, columns, request, candidates, len(body))
    scored = scorer.score(request, candidates)

    def one_request() -> dict[str, float]:
        spent: dict[str, float] = {}
        clock = time.thread_time_ns()

        def end(stage: str) -> None:
            nonlocal clock
            now = time.thread_time_ns()
            spent[stage] = (now - clock) / 1e3
            clock = time.thread_time_ns()

        question = _read(body)
        end("parse")
        row, columns = read_features(question, encoder)
        end("columns")
        request, encoded_candidates = encoder.encode_both(row, columns, rows)
        block = encoded_candidates.block
        end("features")
        sums_1F = scorer.request_sums(request.block)
        end("user part")
        rows_ND = scorer.candidate_rows(block)
        end("look-ups")
        answers_NO = network(rows_ND, sums_1F).numpy()
        end("network")
        score_N = served.value_models[DEFAULT].score(answers_NO)
        end("value model")
        metrics.observe(scored, DEFAULT, score_N)
        end("metrics")
        write(ScoredRequest(encoded, scored._replace(answers_NO=answers_NO), score_N))
        end("answer")
        return spent

    seen: list[dict[str, float]] = []
    with torch.inference_mode():
        for _ in range(FEWEST):
            one_request()
        started = time.process_time()
        while len(seen) < FEWEST or time.process_time() - started < SECONDS:
            seen.append(one_request())
    return {stage: statistics.median(one[stage] for one in seen) for stage in seen[0]}


def _read(body: bytes) -> Question:
    return read_question(body, MAX_CANDIDATES, RequestRecord("bench", RANK))


def microseconds(call: Callable[[], Any]) -> float:
    """CPU microseconds of a call, the median over many."""
    spent: list[int] = []
    for _ in range(FEWEST):
        call()
    while len(spent) < FEWEST or sum(spent) < SECONDS * 1e9:
        started = time.thread_time_ns()
        call()
        spent.append(time.thread_time_ns() - started)
    return statistics.median(spent) / 1e3


def flop_per_candidate(columns: int) -> int:
    """FLOP of the reference network for a candidate of which it reads so many columns, products and mixes alone."""
    tasks, experts = len(TASKS), len(TASKS) * NETWORK["fusion"]["experts_per_task"]
    flop, width = 0, columns
    for level in NETWORK["fusion"]["levels"]:
        # Every expert and every gate reads one row. A gate and the native weights then mix the experts' outputs.
        flop += 2 * width * (experts * level + tasks * experts) + 2 * tasks * experts * level
        width = level
    for hidden in (*NETWORK["tower"], 1):
        flop += 2 * tasks * width * hidden
        width = hidden
    return flop


def largest_weight() -> tuple[int, int]:
    """Outputs and inputs of the network's largest product: the candidate's columns into the first level's experts."""
    experts = len(TASKS) * NETWORK["fusion"]["experts_per_task"]
    return experts * NETWORK["fusion"]["levels"][0], row_width(SCHEMA, "candidate")


def gemm_flops(rows: int) -> float:
    """FLOP/s of one float32 product of `rows` rows by the largest weight, one thread, in this run."""
    outputs, width = largest_weight()
    inputs, weight = torch.rand(rows, width), torch.rand(outputs, width)
    with torch.inference_mode():
        spent = microseconds(lambda: torch.nn.functional.linear(inputs, weight))
    return 2 * rows * outputs * width / (spent / 1e6)


def measure(
    artifact: Path, as_trained: Path, bodies: dict[int, dict[str, bytes]], engines: Sequence[Engine]
) -> dict[str, Any]:
    """By size, engine and shape the stages. By size the GEMM of this run and the ranker as it was trained, alone."""
    torch.set_num_threads(1)
    scorer = Scorer.load(artifact, "torchscript")
    networks: dict[Engine, Network] = {"torchscript": scorer.module.answer}
    if "compiled" in engines:
        networks["compiled"] = CompiledAnswers(open_compiled(scorer.artifact)[1])
    plain = AsTrainedFile(as_trained)
    candidate, request = row_width(SCHEMA, "candidate"), row_width(SCHEMA, "request")
    sizes: dict[str, Any] = {}
    for size, by_shape in bodies.items():
        inputs = _inputs(scorer, by_shape["columns"])
        sizes[str(size)] = {
            "gemm_flops_per_second": gemm_flops(size),
            "as_trained_us": microseconds(lambda inputs=inputs: plain(*inputs)),  # type: ignore[misc]
            "stages_us": {
                engine: {shape: stages(scorer, network, body) for shape, body in by_shape.items()}
                for engine, network in networks.items()
            },
        }
    return {
        "gemm_shape": list(largest_weight()),
        "flop_per_candidate": {
            "needed": flop_per_candidate(candidate),
            "as_trained": flop_per_candidate(request + candidate),
        },
        "sizes": sizes,
    }


def _inputs(scorer: Scorer, body: bytes) -> tuple[Inputs, Inputs]:
    question = _read(body)
    candidates = read_features(question, scorer.encoder)[1]
    return _block_inputs("request", question.request_columns(scorer.encoder)), _block_inputs("candidate", candidates)


def _block_inputs(block: Block, columns: Mapping[str, Column]) -> Inputs:
    ids, lists, numbers = names_of(block)
    ids_RK = np.stack([np.asarray(columns[name].values, np.int64) for name in ids], axis=1)
    numbers_QR = [np.asarray(columns[name].values, np.float32) for name in numbers]
    pairs = []
    for name in lists:
        lengths_R = columns[name].lengths_B
        assert lengths_R is not None
        pairs.append((np.asarray(columns[name].values, np.int64), lengths_R))
    numbers_RQ = np.stack(numbers_QR, axis=1) if numbers else np.zeros((len(ids_RK), 0), np.float32)
    return Inputs.of(ids_RK, pairs, numbers_RQ)
