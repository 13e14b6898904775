"""Shadow scoring: the version labelled `shadow` scores what the stable one has answered, and the two are compared.

In: requests with their columns and scores, offered after their answers have left. Out: metrics
(service/metrics/shadow_metrics.py). A thread of its own does it, of low priority, and begins nothing while every
scoring thread is busy. Beyond a few waiting requests, the rest are dropped and counted. No answer waits for any of it.

The shadow version encodes the request's columns itself: features that its schema does not know are left out, and those
that the request does not have take their defaults.

Shapes: N candidates, O outputs.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from queue import Full, Queue
from typing import NamedTuple

import numpy as np
import torch

from model.features.encoder import Column, FeatureEncoder
from model.features.kinds import Feature
from model.schema import Block
from model.scorer.scorer import Scored, Scorer
from service.base.background import nice
from service.base.log import FieldLogger, Throttle
from service.base.record import RequestRecord
from service.metrics.metrics import Metrics
from service.metrics.ranking_distance import movement
from service.models.labels import SHADOW_SEED, falls_within
from service.models.store import ModelStore
from service.models.version import ServedModel
from service.rank.catalogue import nulls
from service.rank.question import Question
from service.rank.scored_request import EncodedRequest, ScoredRequest

MOST_WAITING = 32
NICENESS = 10
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.001

_log = FieldLogger("shadow")


class ShadowRequest(NamedTuple):
    """A request that the stable version has scored, for the shadow version."""

    shadow: ServedModel
    stable: ScoredRequest


class ShadowScoring:
    """Shadow scoring of one worker. `take_request` never waits. `is_busy` says that no scoring thread is free."""

    def __init__(self, store: ModelStore, metrics: Metrics, sample: float, is_busy: Callable[[], bool]) -> None:
        self._store = store
        self._metrics = metrics.shadow
        self._sample = sample
        self._is_busy = is_busy
        self._queue: Queue[ShadowRequest | None] = Queue(MOST_WAITING)
        self._is_closing = threading.Event()
        self._throttle = Throttle()
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. What waits is dropped."""
        self._is_closing.set()
        with suppress(Full):  # a full queue wakes the thread as well
            self._queue.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def take_request(self, record: RequestRecord, request: ScoredRequest) -> None:
        """Score a request by the shadow once its answer has left, where there is one and the sample has its id."""
        shadow = self._store.shadow_of(request.encoded.model)
        if shadow is not None and falls_within(record.request_id, self._sample, SHADOW_SEED):
            record.after_answer.append(partial(self._enqueue, ShadowRequest(shadow, request)))

    def _enqueue(self, taken: ShadowRequest) -> None:
        """Queue a request, or count it as dropped where too many wait already."""
        try:
            self._queue.put_nowait(taken)
        except Full:
            self._count(taken, "dropped")

    def _work(self) -> None:
        torch.set_num_threads(1)
        nice(NICENESS)
        while (taken := self._queue.get()) is not None and self._has_time():
            try:
                result = self._compare(taken)
            except Exception as error:  # a version on trial never stops the thread
                result = "failed"
                self._log_failure(taken, error)
            self._count(taken, result)
            del taken  # an idle thread keeps no version alive

    def _has_time(self) -> bool:
        """Wait while every scoring thread is busy. Returns whether there is anything to do after that."""
        while self._is_busy() and not self._is_closing.is_set():
            time.sleep(_POLL_SECONDS)
        return not self._is_closing.is_set()

    def _compare(self, taken: ShadowRequest) -> str:
        shadow, stable, request = taken.shadow, taken.stable, taken.stable.encoded
        if request.catalogue_generation is not None and shadow.scorer.catalogue is None:
            return "skipped"
        scored = _scored(shadow.scorer, request)
        with np.errstate(over="ignore", invalid="ignore"):  # the next line is what looks for it
            score_N = shadow.value_models[request.value_model].score(scored.answers_NO)
        if not np.isfinite(score_N).all():
            raise ValueError(f"value model '{request.value_model}' gave a combined score that is not finite")
        self._metrics.observe(
            shadow.name,
            shadow.scorer.version,
            movement(stable.score_N, score_N),
            dict(zip(request.model.scorer.outputs, stable.answers.answers_NO.T, strict=True)),
            dict(zip(shadow.scorer.outputs, scored.answers_NO.T, strict=True)),
            len(score_N),
        )
        return "scored"

    def _count(self, taken: ShadowRequest, result: str) -> None:
        self._metrics.count(taken.shadow.name, taken.shadow.scorer.version, result)

    def _log_failure(self, taken: ShadowRequest, error: Exception) -> None:
        if not self._throttle.is_due():
            return
        fields = {"model": taken.shadow.name, "model_version": taken.shadow.scorer.version}
        _log.error(
            "the shadow version failed; the metrics count how often",
            **fields,
            reason=str(error) or repr(error),
        )


def _scored(scorer: Scorer, given: EncodedRequest) -> Scored:
    """A request by the shadow's scorer."""
    received, parsed_by = given.received, given.model.scorer.encoder
    request = fitting("request", received.request_columns(parsed_by), parsed_by, scorer.encoder)
    candidates = fitting("candidate", given.columns, parsed_by, scorer.encoder)
    named = None
    if isinstance(received, Question):  # the other wire has positions for ids, which are in no catalogue
        named = scorer.name(received.ids, candidates, nulls(received, scorer.schema))
    if named is None:
        return scorer.score(*scorer.encode(request, candidates, len(received.ids)))
    return scorer.score(scorer.encoder.encode("request", request, 1, as_served=True), named)


def fitting(
    block: Block, columns: Mapping[str, Column], parsed_by: FeatureEncoder, wanted_by: FeatureEncoder
) -> dict[str, Column]:
    """Columns of a block, as one encoder parsed them, that another takes for a feature of the same kind."""
    kinds = {feature.name: _kind(parsed_by, feature) for feature in parsed_by.schema.requested(block)}
    wanted = {feature.name: _kind(wanted_by, feature) for feature in wanted_by.schema.requested(block)}
    return {name: column for name, column in columns.items() if wanted.get(name) == kinds[name]}


def _kind(encoder: FeatureEncoder, feature: Feature) -> tuple[str | None, bool]:
    return encoder.dtype(feature.name), feature.is_list
