"""feedrank's service without a part of what it carries, of this checkout or of another.

    python benchmarks/frame_service.py PART [flags of the service]

It serves the checkout that is the working directory, as `python -m service` does, but for a part that it remembers:

* `server`: answers, on the event loop, past all of the application. The rest is the HTTP server and the kernel.
* `frame`: answers by size of the body, in the scoring thread. No faster model or data path can win what is left.
* `unscored`: inputs and answers of the exported module, by number of candidates. The rest is the frame and the data
  path.
* `all`: nothing.

Shapes: B rows of a block, Q numbers.
"""

import os
import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

RANK = "/v1/rank"
# Where a checkout has a class, the newest place first.
_PLACES = {"Ranking": ("service.pipeline", "service.ranking"), "Scorer": ("model.scorer.scorer", "model.scorer")}


def remember_in_the_server() -> None:
    """The application, which answers what it has not seen before. The rest comes from a dictionary."""
    app: Any = import_module("service.app")
    create = app.create_app

    def create_app(*arguments: Any) -> Any:
        full = create(*arguments)
        remembered: dict[int, list[Any]] = {}

        async def bare(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or scope["path"] != RANK:

                async def send_without_state(message: Any) -> None:
                    # What answers past this application, in a checkout that has it.
                    scope.get("state", {}).pop("direct", None)
                    await send(message)

                await full(scope, receive, send_without_state)
                return
            message = await receive()
            body: bytes = message["body"]
            while message["more_body"]:
                message = await receive()
                body += message["body"]
            if len(body) not in remembered:
                answer: list[Any] = []

                async def once() -> Any:
                    return {"type": "http.request", "body": body, "more_body": False}

                async def keep(part: Any) -> None:
                    answer.append(part)

                await full(scope, once, keep)
                remembered[len(body)] = answer
            for part in remembered[len(body)]:
                await send(part)

        return bare

    app.create_app = create_app


def remember_answers() -> None:
    """The scoring of requests, which knows a body that it has seen by its size."""
    ranking = _find("Ranking")
    answer = ranking.answer
    remembered: dict[int, Any] = {}

    def remember(self: Any, body: bytes, record: Any, deadline: float | None) -> Any:
        size = len(body)
        if size not in remembered:
            remembered[size] = answer(self, body, record, deadline)
        return remembered[size]

    ranking.answer = remember


def remember_module() -> None:
    """The exported module, which knows the answers of so many candidates, and the look-ups of a checkout where they
    stand before it."""
    scorer = _find("Scorer")
    load = scorer.load

    def remembering(*arguments: Any, **options: Any) -> Any:
        loaded = load(*arguments, **options)
        loaded.module = _Remembering(loaded.module)
        if hasattr(loaded, "inputs"):  # else the module makes them itself
            loaded.inputs = _RememberingInputs(loaded.inputs)
        return loaded

    scorer.load = remembering


class _Remembering:
    def __init__(self, module: Any) -> None:
        self._module = module
        self._answers: dict[int, Any] = {}

    def __call__(self, *inputs: Any) -> Any:
        # The candidates' rows, before the request's sums, or their last tensor, behind the request's.
        last = inputs[0] if len(inputs) == 2 and not isinstance(inputs[0], list) else inputs[-1]
        while isinstance(last, list):
            last = last[-1]
        rows = len(last)
        if rows not in self._answers:
            self._answers[rows] = self._module(*inputs)
        return self._answers[rows]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _RememberingInputs:
    """Inputs of the module that a checkout makes of a block: its tensors, or rows and sums."""

    def __init__(self, inputs: Any) -> None:
        self._inputs = inputs
        self._made: dict[tuple[str, int], Any] = {}

    def of(self, block: str, encoded: Any) -> Any:
        return self._remembered(block, encoded, lambda: self._inputs.of(block, encoded))

    def request_sums(self, encoded: Any) -> Any:
        return self._remembered("request", encoded, lambda: self._inputs.request_sums(encoded))

    def candidate_rows(self, encoded: Any, *requests: Any) -> Any:
        return self._remembered("candidate", encoded, lambda: self._inputs.candidate_rows(encoded, *requests))

    def _remembered(self, block: str, encoded: Any, make: Callable[[], Any]) -> Any:
        key = block, len(encoded.numbers_BQ)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _find(name: str) -> Any:
    for place in _PLACES[name]:
        try:
            return getattr(import_module(place), name)
        except ImportError:
            continue
    raise RuntimeError(f"this checkout has {name} in none of {', '.join(_PLACES[name])}")


PARTS: dict[str, Callable[[], None]] = {
    "server": remember_in_the_server,
    "frame": remember_answers,
    "unscored": remember_module,
    "all": lambda: None,
}


def main() -> None:
    """Serve until a signal."""
    part, *flags = sys.argv[1:]
    sys.path[0] = os.getcwd()  # the checkout's packages, not the folder of this script
    sys.argv = ["service", *flags]
    PARTS[part]()
    runpy.run_module("service", run_name="__main__")


if __name__ == "__main__":
    main()
