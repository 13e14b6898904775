"""The service that one writes first: FastAPI, a pydantic model per row, torch.jit. What others are compared with.

In: AS_TRAINED, the path of the ranker as it was trained (benchmarks/as_trained.py). Out: `make_app()`, with POST /rank
taking candidates as rows. It is written with care, in the usual way: hashing vectorised, one torch thread, the module
frozen. Its rows are parsed, validated, looped over and answered as pydantic objects. Its network scores whole rows.

Shapes: N candidates, O outputs.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, create_model

from benchmarks.as_trained_calls import AsTrainedFile, Inputs
from benchmarks.reference_feed import TASKS, names_of

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


def inputs_of(rows: list[Any], ids: list[str], lists: list[str], numbers: list[str]) -> Inputs:
    """The module's inputs of some rows."""
    return Inputs.of(
        np.array([[getattr(row, name) for name in ids] for row in rows], np.int64),
        [
            (
                np.array([value for row in rows for value in getattr(row, name)], np.int64),
                np.array([len(getattr(row, name)) for row in rows], np.int64),
            )
            for name in lists
        ],
        np.array([[getattr(row, name) for name in numbers] for row in rows], np.float32),
    )


def make_app() -> FastAPI:
    """The application."""
    as_trained = AsTrainedFile(Path(os.environ["AS_TRAINED"]))
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/rank")
    def rank(question: Question) -> Answer:
        user = inputs_of([question.user], USER_IDS, USER_LISTS, USER_NUMBERS)
        answers_NO = as_trained(user, inputs_of(question.candidates, IDS, LISTS, []))
        ranked = []
        for candidate, answers in zip(question.candidates, answers_NO.tolist(), strict=True):
            tasks = dict(zip(TASKS, answers, strict=True))
            ranked.append(Ranked(id=candidate.id, score=sum(answers), tasks=tasks))  # type: ignore[attr-defined]
        ranked.sort(key=lambda row: row.score, reverse=True)
        return Answer(candidates=ranked)

    return app
