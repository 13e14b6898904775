"""feedrank's frame without what it carries: the application as it is, but answers are remembered by size of the body.

In: FRAME_MODELS, a models folder. Out: `make_app()`, served as service/__main__.py serves its own. HTTP, the event
loop, the way to a scoring thread and back are the service's; a body of a size that was answered before gets that
answer. What a request costs here, no faster model or data path can win.
"""

import os
from pathlib import Path

from starlette.types import ASGIApp

from service.answers import Reply
from service.app import create_app
from service.ranking import Ranking
from service.request_log import RequestRecord
from service.settings import Settings


def make_app() -> ASGIApp:
    """The application; it changes a class of the service, so one of them is all that a process holds."""
    remembered: dict[int, Reply] = {}
    answer = Ranking.answer

    def remember(ranking: Ranking, body: bytes, record: RequestRecord, deadline: float | None) -> Reply:
        size = len(body)
        if size not in remembered:
            remembered[size] = answer(ranking, body, record, deadline)
        return remembered[size]

    Ranking.answer = remember  # type: ignore[method-assign, assignment]
    return create_app(
        Settings.model_validate({"models": Path(os.environ["FRAME_MODELS"]), "threads": 1, "queue_seconds": 60})
    )
