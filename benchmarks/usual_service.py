"""The service that one writes first: FastAPI, a pydantic model per row, torch.jit. What request_cost compares with.

In: USUAL_SERVICE_ARTIFACT, the folder of an artifact of request_cost's schema. Out: `app`, with POST /rank taking
candidates as rows. It is written with care, in the usual way: the same TorchScript file, user and context encoded
once, hashing vectorised. Its rows are parsed, validated, looped over and answered as pydantic objects.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel, create_model

from benchmarks.reference_feed import BUCKETS, TASKS, names_of
from model.features import hash_integers
from model.scorer import Scorer

USER_IDS, USER_LISTS, USER_NUMBERS = names_of("request")
IDS, LISTS, _ = names_of("candidate")


def _fields(ids: list[str], lists: list[str], numbers: list[str]) -> dict[str, Any]:
    types = dict.fromkeys(ids, int) | dict.fromkeys(lists, list[int]) | dict.fromkeys(numbers, float)
    return {name: (type_, ...) for name, type_ in types.items()}


User = create_model("User", **_fields(USER_IDS, USER_LISTS, USER_NUMBERS))
Candidate = create_model("Candidate", id=(str, ...), **_fields(IDS, LISTS, []))


class Question(BaseModel):
    """One user and the candidates to rank."""

    user: User
    candidates: list[Candidate]


class Ranked(BaseModel):
    """One candidate of an answer."""

    id: str
    score: float
    tasks: dict[str, float]


class Answer(BaseModel):
    """The candidates in descending score."""

    candidates: list[Ranked]


torch.set_num_threads(1)
_module = Scorer.load(Path(os.environ["USUAL_SERVICE_ARTIFACT"]), "torchscript").module
app = FastAPI()


def _rows(values: NDArray[np.int64]) -> torch.Tensor:
    hashed = (hash_integers(values) % np.uint64(BUCKETS)).astype(np.int64) + 1
    return torch.from_numpy(hashed)


def _block(rows: list[Any], ids: list[str], lists: list[str], numbers: list[str]) -> tuple[torch.Tensor, ...]:
    """The module's tensors of one block: ids, list values, list lengths, numbers."""
    return (
        _rows(np.array([[getattr(row, name) for name in ids] for row in rows], np.int64)),
        _rows(np.array([value for name in lists for row in rows for value in getattr(row, name)], np.int64)),
        torch.tensor([[len(getattr(row, name)) for row in rows] for name in lists]),
        torch.tensor([[getattr(row, name) for name in numbers] for row in rows]).reshape(len(rows), len(numbers)),
    )


@app.get("/ready")
def ready() -> dict[str, str]:
    """The module is loaded."""
    return {"status": "ready"}


@app.post("/rank")
def rank(question: Question) -> Answer:
    """Scores and ranks."""
    with torch.inference_mode():
        answers_NT = _module(
            *_block([question.user], USER_IDS, USER_LISTS, USER_NUMBERS), *_block(question.candidates, IDS, LISTS, [])
        )
    ranked = []
    for candidate, answers in zip(question.candidates, answers_NT.tolist(), strict=True):
        tasks = dict(zip(TASKS, answers, strict=True))
        ranked.append(Ranked(id=candidate.id, score=sum(answers), tasks=tasks))  # type: ignore[attr-defined]
    ranked.sort(key=lambda row: row.score, reverse=True)
    return Answer(candidates=ranked)
