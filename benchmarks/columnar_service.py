"""The ranker as it was trained behind a raw ASGI application with columns, tuned by hand: what a fast frame gives.

In: AS_TRAINED, the path of the ranker as it was trained. Out: `make_app()`, with POST /v1/rank taking a columnar
request. It checks nothing, counts nothing and scores on the event loop: a bound, not a service.

Shapes: N candidates, O outputs.
"""

import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.as_trained_calls import AsTrainedFile, Inputs
from benchmarks.reference_feed import TASKS, names_of
from model.schema import Block

_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()
_NAMES: dict[Block, tuple[list[str], list[str], list[str]]] = {
    "request": names_of("request"),
    "candidate": names_of("candidate"),
}


def _inputs(block: Block, columns: Mapping[str, list[Any]], rows: int) -> Inputs:
    ids, lists, numbers = _NAMES[block]
    return Inputs.of(
        np.ascontiguousarray(np.array([columns[name] for name in ids], np.int64).T),
        [
            (
                np.fromiter(chain.from_iterable(columns[name]), np.int64),
                np.fromiter(map(len, columns[name]), np.int64, rows),
            )
            for name in lists
        ],
        np.ascontiguousarray(np.array([columns[name] for name in numbers], np.float32).reshape(len(numbers), rows).T),
    )


def answer(as_trained: AsTrainedFile, body: bytes) -> bytes:
    """The ranked candidates of a columnar request."""
    question = _decoder.decode(body)
    ids = question["candidates"]["id"]
    user = {name: [value] for name, value in question["user"].items()}
    answers_NO = as_trained(
        _inputs("request", user, 1), _inputs("candidate", question["candidates"]["features"], len(ids))
    )
    score_N = answers_NO.astype(np.float64).sum(axis=1)
    order_N = np.argsort(-score_N, kind="stable")
    candidates = {
        "id": [ids[n] for n in order_N.tolist()],
        "score": score_N[order_N].tolist(),
        "tasks": dict(zip(TASKS, answers_NO[order_N].T.tolist(), strict=True)),
    }
    return _encoder.encode({"candidates": candidates})


def make_app() -> ASGIApp:
    """The application. Any GET says that the module is loaded."""
    as_trained = AsTrainedFile(Path(os.environ["AS_TRAINED"]))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        content = b"{}"
        if scope["method"] == "POST":
            chunks, more = [], True
            while more:
                message = await receive()
                chunks.append(message.get("body", b""))
                more = message.get("more_body", False)
            content = answer(as_trained, b"".join(chunks))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return app
