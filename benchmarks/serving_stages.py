"""Where the CPU time of a scoring request goes inside feedrank, stage by stage, and how near the network is to a GEMM.

In: an artifact of the reference feed, request bodies. Out: microseconds a stage in a warm loop of this process, one
torch thread: the functions that service/app.py calls, in its order. What is around them is measured by a server of its
own (frame_service.py). Of FLOP, a multiplication and an addition are two.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.as_trained_calls import AsTrainedFile, Inputs
from benchmarks.reference_feed import NETWORK, SCHEMA, TASKS, names_of
from model.columns import Column
from model.ranker import row_width
from model.schema import Block
from model.scorer import Engine, Scorer, block_tensors
from model.value_model import DEFAULT, ValueModels
from service import answers, wire
from service.metrics import Metrics, ModelMetrics

MAX_CANDIDATES = 2_000
# A stage at a time, in turns, so that what else the machine does falls on all of them.
TURNS = 7
SECONDS_PER_TURN = 0.03
MODEL_STAGES = ("user part", "look-ups", "network")


def stages(scorer: Scorer, body: bytes) -> dict[str, float]:
    """Microseconds of each stage of one request."""
    read: Callable[[], wire.Question]
    if wire.read_columnar(body, MAX_CANDIDATES) is None:
        read = lambda: wire.parse(wire.decode(body), MAX_CANDIDATES)  # noqa: E731
    else:
        read = lambda: _not_none(wire.read_columnar(body, MAX_CANDIDATES))  # noqa: E731
    question = read()
    rows = len(question.ids)
    encoder, module = scorer.encoder, scorer.module
    request, candidates = wire.columns(question, encoder)
    request_tensors = block_tensors(encoder.encode("request", request, 1, as_served=True).block)
    candidate_tensors = block_tensors(encoder.encode("candidate", candidates, rows, as_served=True).block)
    scored = scorer.score(request, candidates, rows)
    value_model = ValueModels.built_in(scorer.schema)[DEFAULT]
    score_N = value_model.score(scored.answers_NT)
    metrics = ModelMetrics(Metrics(), scorer.schema, "reference", scorer.version, scorer.engine)

    def encode() -> None:
        encoder.encode("request", request, 1, as_served=True)
        encoder.encode("candidate", candidates, rows, as_served=True)

    with torch.inference_mode():
        timed = timings(
            {
                "parse": read,
                "columns": lambda: wire.columns(question, encoder),
                "features": encode,
                "user part": lambda: module.request_sums(*request_tensors),
                "look-ups": lambda: module.candidate_rows(*candidate_tensors),
                "network": lambda: scorer.score(request, candidates, rows),
                "value model": lambda: value_model.score(scored.answers_NT),
                "metrics": lambda: metrics.observe(scored, DEFAULT, score_N),
                "answer": lambda: answers.write(
                    {"model": scorer.version}, question, scorer.tasks, score_N, scored.answers_NT
                ),
            }
        )
    # Scoring is features, user part, look-ups and network; whatever engine computes the last.
    timed["network"] -= timed["features"] + timed["user part"] + timed["look-ups"]
    return timed


def timings(work: dict[str, Callable[[], Any]], seconds: float = SECONDS_PER_TURN) -> dict[str, float]:
    """CPU microseconds of a call of each: medians over turns of about `seconds` each."""
    repeats = {}
    for name, call in work.items():
        call()
        started = time.process_time()
        call()
        repeats[name] = max(1, int(seconds / max(time.process_time() - started, 1e-6)))
    turns: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(TURNS):
        for name, call in work.items():
            started = time.process_time()
            for _ in range(repeats[name]):
                call()
            turns[name].append((time.process_time() - started) / repeats[name] * 1e6)
    return {name: statistics.median(values) for name, values in turns.items()}


def flop_per_candidate(columns: int) -> int:
    """FLOP of the reference network for a candidate of which it reads so many columns; products and mixes alone."""
    tasks, experts = len(TASKS), len(TASKS) * NETWORK["fusion"]["experts_per_task"]
    flop, width = 0, columns
    for level in NETWORK["fusion"]["levels"]:
        # Every expert and every gate reads one row; a gate and the native weights then mix the experts' outputs.
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


def gemm_flops(rows: int, shape: tuple[int, int]) -> float:
    """FLOP/s of one float32 product of `rows` rows by a weight of this shape, one thread, in this run."""
    inputs, weight = torch.rand(rows, shape[1]), torch.rand(*shape)
    with torch.inference_mode():
        microseconds = timings({"gemm": lambda: torch.nn.functional.linear(inputs, weight)}, seconds=0.1)["gemm"]
    return 2 * rows * shape[0] * shape[1] / (microseconds / 1e6)


def as_trained_microseconds(path: Path, scorer: Scorer, body: bytes) -> float:
    """The ranker as it was trained, alone: a call with inputs that are there already."""
    module = AsTrainedFile(path)
    question = wire.read_columnar(body, MAX_CANDIDATES)
    assert question is not None
    request, candidates = wire.columns(question, scorer.encoder)
    inputs = _inputs("request", request), _inputs("candidate", candidates)
    return timings({"as trained": lambda: module(*inputs)}, seconds=0.1)["as trained"]


def measure(
    artifact: Path, as_trained: Path, bodies: dict[int, dict[str, bytes]], engines: Sequence[Engine]
) -> dict[str, Any]:
    """By size, engine and shape the stages; by size the GEMM of this run and the ranker as it was trained, alone."""
    torch.set_num_threads(1)
    scorers = {engine: Scorer.load(artifact, engine) for engine in engines}
    needed, as_written = (
        flop_per_candidate(row_width(SCHEMA, "candidate")),
        flop_per_candidate(row_width(SCHEMA, "request") + row_width(SCHEMA, "candidate")),
    )
    result: dict[str, Any] = {
        "gemm_shape": list(largest_weight()),
        "flop_per_candidate": {"needed": needed, "as_trained": as_written},
        "sizes": {},
    }
    for size, by_shape in bodies.items():
        result["sizes"][str(size)] = {
            "gemm_flops_per_second": gemm_flops(size, largest_weight()),
            "as_trained_us": as_trained_microseconds(as_trained, scorers[engines[0]], by_shape["columns"]),
            "stages_us": {
                engine: {shape: stages(scorer, body) for shape, body in by_shape.items()}
                for engine, scorer in scorers.items()
            },
        }
    return result


def _inputs(block: Block, columns: dict[str, Column]) -> Inputs:
    ids, lists, numbers = names_of(block)
    rows = len(next(iter(columns.values())).values) if ids else 1
    ids_RK = np.stack([np.asarray(columns[name].values, np.int64) for name in ids], axis=1)
    pairs = [(np.asarray(columns[name].values, np.int64), _not_none(columns[name].lengths_B)) for name in lists]
    numbers_RD = [np.asarray(columns[name].values, np.float32) for name in numbers]
    return Inputs.of(ids_RK, pairs, np.stack(numbers_RD, axis=1) if numbers else np.zeros((rows, 0), np.float32))


def _not_none(value: Any) -> Any:
    assert value is not None
    return value
