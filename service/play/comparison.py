"""POST /v1/play/logged: two ways to rank over the last logged requests, and how often they differ at the top.

In: `{"model", "first": side, "second": side}`. A side is `{"version", "value_model", "draft", "policy"}`, each
optional. Out: in how many requests the first, any of the first 5 and any of the first 10 are others, with counts of
what was left out. No request is in the answer. Answers of the log are kept where the side's version gave them, and
computed again otherwise.

One comparison runs at a time, in a thread of its own and of low priority: scoring threads have none of the work.

Shapes: N candidates, K of them placed, O outputs.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.schema import Block
from model.scorer.scorer import Scorer
from model.value_models.value_model import DEFAULT, ValueModel
from service.base.errors import Fault, Problem, value_or_kind
from service.base.ranking import ranking
from service.impressions.record import Logged
from service.models.store import ModelStore
from service.models.version import ServedModel
from service.play.body import read_object
from service.play.last_requests import last_requests
from service.play.trial import DRAFT, with_draft
from service.policy.placing import policy_name
from service.replay.logged_answers import logged_answers, new_answers
from service.replay.policy_replay import PolicyReplay

PATH = "/v1/play/logged"
MOST_REQUESTS = 500
TOP = (1, 5, 10)
# After so long it answers with what it has. A thread of low priority may get no time on a busy host.
MOST_SECONDS = 30.0


class SideAsked(msgspec.Struct, forbid_unknown_fields=True):
    """One way to rank, as the body has it."""

    version: str | None = None
    value_model: str | None = None
    draft: dict[str, Any] | None = None
    policy: str | None = None


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    first: SideAsked
    second: SideAsked
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One way to rank logged requests."""

    scorer: Scorer
    value_model: ValueModel
    policy: PolicyReplay | None

    def order(self, logged: Logged) -> NDArray[np.intp]:
        """order_K of the candidates of a logged request. Raises ValueError where the log lacks what it needs."""
        outputs = self.scorer.outputs
        if logged.line.model_version == self.scorer.version:
            answers_NO = logged_answers(logged, outputs)
        else:
            answers_NO = new_answers(logged, self.scorer, partial(_known, self.scorer))
        with np.errstate(all="ignore"):  # the next line is what looks for it
            score_N = self.value_model.score(answers_NO)
        if not np.isfinite(score_N).all():
            raise ValueError("the value model gives a score that is not finite")
        if self.policy is None:
            return ranking(score_N, None)
        by_output = dict(zip(outputs, answers_NO.T, strict=True))
        # All places: a request that was cut to its best would hide who stands behind them.
        placing = self.policy.placing(logged, score_N, by_output)._replace(top_k=None)
        return self.policy.place(placing).order_K


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides over a log, ready to run."""

    folder: Path
    model: str
    first: Side
    second: Side

    def run(self) -> dict[str, Any]:
        """The answer. Raises Problem 500 where the log cannot be read."""
        until = time.monotonic() + MOST_SECONDS
        try:
            found = last_requests(self.folder, self.model, MOST_REQUESTS)
        except OSError as error:
            raise Problem(500, f"the impression log cannot be read ({error.strerror})") from None
        compared, changes, reasons = 0, Counter[int](), Counter[str]()
        for logged in reversed(found.requests):  # the newest, where time runs out
            if time.monotonic() > until:
                reasons[f"the {MOST_SECONDS:g} s of a comparison were over"] += 1
                continue
            try:
                before_K, now_K = self.first.order(logged), self.second.order(logged)
            except ValueError as error:
                reasons[str(error)] += 1
                continue
            compared += 1
            changes.update(k for k in TOP if changes_within(k, before_K, now_K))
        times = [logged.line.time for logged in found.requests]
        return {
            "requests": compared,
            "since": min(times, default=None),
            "until": max(times, default=None),
            "changed": {str(k): changes[k] for k in TOP},
            "left_out": {**found.left_out, **dict(reasons.most_common(5))},
        }


def changes_within(k: int, before_K: NDArray[np.intp], now_K: NDArray[np.intp]) -> bool:
    """True where another candidate is among the first k."""
    return set(before_K[:k].tolist()) != set(now_K[:k].tolist())


def read_comparison(body: bytes, store: ModelStore, folder: Path | None) -> Comparison:
    """The comparison that a body asks for. Raises Problem: 404 without a log or such a version, 422, 503."""
    if folder is None:
        raise Problem(404, "no requests are logged: start the service with --impression-log DIR")
    asked = read_object(body, _Asked)
    first, second = (
        _side(place, side, store.find(asked.model, side.version))
        for place, side in (("first", asked.first), ("second", asked.second))
    )
    return Comparison(folder, store.serving(asked.model).default.name, first, second)


def _side(place: str, asked: SideAsked, model: ServedModel) -> Side:
    name = asked.value_model or DEFAULT
    if asked.draft is not None:
        model, name = with_draft(model, asked.draft, f"{place}.draft"), DRAFT
    elif name not in model.value_models:
        rule = f"no such value model, {value_or_kind(name)}; there are: {', '.join(model.value_models.names)}"
        raise Problem.wrong_content([Fault(f"{place}.value_model", rule)])
    policy = policy_name(model, asked.policy, f"{place}.policy")
    replayed = None
    if policy is not None:
        assert model.policies is not None, "its name was found among them"
        replayed = PolicyReplay(model.policies[policy], model.scorer)
    return Side(model.scorer, model.value_models[name], replayed)


def _known(scorer: Scorer, block: Block, given: Mapping[str, Any]) -> dict[str, Any]:
    names = {feature.name for feature in scorer.schema.requested(block)}
    return {name: value for name, value in given.items() if name in names}
