"""feedrank's frame without what it carries: the application as it is, but answers are remembered by size of the body.

In: FRAME_MODELS, a models folder. Out: `make_app()`, served as service/serve.py serves its own. HTTP, the event
loop, the way to a scoring thread and back are the service's. A body of a size that was answered before gets that
answer. What a request costs here, no faster model or data path can win. `make_bare_app()` answers alike on the event
loop, past all of the application: the cost of the HTTP server and the kernel. `make_unscored_app()` does all but score.
"""

import os
from pathlib import Path
from typing import Any

import torch
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.scorer.scorer import Scorer
from service.app import create_app
from service.base.record import RequestRecord
from service.metrics.metrics import RANK
from service.pipeline import Ranking
from service.rank.answer import Reply
from service.settings import Settings


def make_app() -> ASGIApp:
    """The application. It changes a class of the service, so a process can have only one."""
    remembered: dict[int, Reply] = {}
    answer = Ranking.answer

    def remember(ranking: Ranking, body: bytes, record: RequestRecord, deadline: float | None) -> Reply:
        size = len(body)
        if size not in remembered:
            remembered[size] = answer(ranking, body, record, deadline)
        return remembered[size]

    Ranking.answer = remember  # type: ignore[method-assign, assignment]
    return _app()


def make_bare_app() -> ASGIApp:
    """The application that answers what it has not seen before. The rest comes from a dictionary."""
    full = _app()
    remembered: dict[int, list[Message]] = {}

    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != RANK:
            await full(scope, receive, send)
            return
        message = await receive()
        body: bytes = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        if len(body) not in remembered:
            answer: list[Message] = []

            async def once() -> Message:
                return {"type": "http.request", "body": body, "more_body": False}

            async def keep(part: Message) -> None:
                answer.append(part)

            await full(scope, once, keep)
            remembered[len(body)] = answer
        for part in remembered[len(body)]:
            await send(part)

    return bare


def make_unscored_app() -> ASGIApp:
    """The application whose exported module remembers its answers by number of candidates."""
    load = Scorer.load

    def remembering(*arguments: Any, **options: Any) -> Scorer:
        scorer = load(*arguments, **options)
        scorer.module = _Remembering(scorer.module)  # type: ignore[assignment]
        return scorer

    Scorer.load = remembering  # type: ignore[method-assign]
    return _app()


class _Remembering:
    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._module = module
        self._answers: dict[int, torch.Tensor] = {}

    def __call__(self, request: list[torch.Tensor], candidates: list[torch.Tensor]) -> torch.Tensor:
        rows = len(candidates[0])
        if rows not in self._answers:
            self._answers[rows] = self._module(request, candidates)
        return self._answers[rows]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _app() -> ASGIApp:
    return create_app(
        Settings.model_validate({"models": Path(os.environ["FRAME_MODELS"]), "threads": 1, "queue_seconds": 60})
    )
