"""Sampling of scored requests for drift: features and answers, counted beside the way of the request.

In: scored requests, some of a second, with their columns and answers. Out: counts by bin in the windows of
service/metrics/drift_windows.py.

A thread of its own, of low priority, counts. No answer waits for it. Values from a catalogue are not in the columns, so
candidate features are then left out. The reference is of impressions, and requests are of candidates, which a ranker
chose fewer of. So read the change of an index, not its height on the first day.

Shapes: N candidates, O outputs, K bins.
"""

import threading
import time
from contextlib import suppress
from queue import Empty, Full, Queue

from model.features.block import BLOCKS
from model.features.encoder import EncodedBlock
from model.scorer.scorer import NamedCandidates
from service.base.background import nice
from service.base.log import FieldLogger
from service.metrics.drift_windows import DriftWindows
from service.rank.scored_request import EncodedRequest, ScoredRequest

SAMPLED_PER_SECOND = 5
_NICENESS = 19
_WRITE_SECONDS = 1.0
_MOST_WAITING = 8
_STOP_SECONDS = 5.0

_log = FieldLogger("drift")


class Drift:
    """Counting of one worker. `take_request` never waits."""

    def __init__(self, windows: DriftWindows) -> None:
        self._windows = windows
        self._queue: Queue[ScoredRequest | None] = Queue(_MOST_WAITING)
        self._next_at = 0.0
        self._written_at = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="drift", daemon=True)

    def start(self) -> None:
        """Start the counting thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. What waits is dropped."""
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def take_request(self, request: ScoredRequest) -> None:
        """Sample a scored request."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + 1 / SAMPLED_PER_SECOND
        with suppress(Full):
            self._queue.put_nowait(request)

    def _work(self) -> None:
        nice(_NICENESS)
        while True:
            with suppress(Empty):
                sample = self._queue.get(timeout=_WRITE_SECONDS)
                if sample is None:
                    return
                try:
                    self._count(sample)
                except Exception:  # a bad version never stops the thread for the others
                    _log.exception("counting for drift failed")
                del sample  # an idle thread keeps no version alive
            now = time.monotonic()
            if now - self._written_at >= _WRITE_SECONDS:
                self._windows.decay(now - self._written_at)
                self._written_at = now

    def _count(self, sample: ScoredRequest) -> None:
        scorer = sample.encoded.model.scorer
        answers_NO = scorer.as_exported(sample.answers)  # the reference knows no calibration that was fitted later
        reference = scorer.reference
        counted = {
            ("task", output): reference.scores[output].counts(answers_N)
            for output, answers_N in zip(scorer.outputs, answers_NO.T, strict=True)
        }
        for block, encoded in zip(BLOCKS, _blocks(sample.encoded), strict=True):
            if encoded is not None:
                of_block = reference.features.counts(scorer.schema, block, encoded)
                counted |= {("feature", name): counts_K for name, counts_K in of_block.items()}
        for (what, name), counts_K in counted.items():
            self._windows.add((what, sample.encoded.model.name, scorer.version, name), counts_K)


def _blocks(request: EncodedRequest) -> tuple[EncodedBlock, EncodedBlock | None]:
    """Encoded request and candidates, None for candidates of which a catalogue gave features."""
    candidates = request.candidates
    if isinstance(candidates, NamedCandidates):
        return request.request.block, None if candidates.uses_catalogue else candidates.encoded
    return request.request.block, candidates.block
