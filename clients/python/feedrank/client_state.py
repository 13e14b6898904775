"""Parts that both clients have: the service's address and key, what a call is made of, and the counts."""

from collections.abc import Mapping, Sequence
from typing import Any

from feedrank.call import Budget, checked_address, key_headers
from feedrank.counts import Counter, Counts
from feedrank.event_queue import EventQueue
from feedrank.questions import BatchCall, Question, RankCall
from feedrank.wire import RankRequest


class ClientState:
    """State of a client beside its connections and its sender of events. Raises ValueError for a wrong argument."""

    def __init__(self, base_url: str, key: str | None, timeout: float, most_events: int, *, strict: bool) -> None:
        self.address = checked_address(base_url)
        self.headers = key_headers(key)
        self._timeout = timeout
        self._strict = strict
        self._budget = Budget()
        self._counter = Counter()
        self.queue = EventQueue(most_events, self._counter)

    def counts(self) -> Counts:
        """Counts of what became of all requests and events so far."""
        return self._counter.snapshot(len(self.queue))

    def call(
        self, request: RankRequest | Mapping[str, Any], timeout: float | None, fallback: Sequence[str] | None
    ) -> RankCall:
        """A request at its beginning. `timeout` is in seconds, None that of the client."""
        question = Question(request, fallback, strict=self._strict)
        return RankCall(question, self._timeout if timeout is None else timeout, self._budget, self._counter)

    def batch_call(
        self,
        requests: Sequence[RankRequest | Mapping[str, Any]],
        timeout: float | None,
        fallbacks: Sequence[Sequence[str] | None] | None,
    ) -> BatchCall:
        """Several requests at their beginning. Raises ValueError for none, and for fallbacks of another number."""
        if not requests:
            raise ValueError("no requests; at least one is needed")
        if fallbacks is None:
            fallbacks = [None] * len(requests)
        if len(fallbacks) != len(requests):
            raise ValueError(f"{len(fallbacks)} fallbacks for {len(requests)} requests; give one for each")
        questions = [
            Question(request, fallback, strict=self._strict)
            for request, fallback in zip(requests, fallbacks, strict=True)
        ]
        return BatchCall(questions, self._timeout if timeout is None else timeout, self._budget, self._counter)
