"""Logged requests placed again by a ranking policy.

In: the policy's name, its file and a model version. Out: for a logged request with its scores, the order that the
policy makes of it, and how probable that makes an order which was answered. A request keeps its id, and so its draws:
under the policy and version that it was answered by it has the order that it was answered in.

Shapes: N candidates, K places.
"""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.features.encoder import Column, ColumnErrors
from model.policies.candidates import CandidateValues, Readable
from model.policies.place import Placed, Placing
from model.policies.policies import FILE_NAME, Policies, Policy, PolicyDefinition
from model.scorer.scorer import Scorer
from model.untrusted_files import read_bytes
from service.impressions.record import Logged

# Of a policy that the command line does not name.
BY_SCORE = "descending score"


class PolicyReplay:
    """A policy over logged requests, whose features it reads as a version does."""

    def __init__(self, policy: Policy, scorer: Scorer) -> None:
        self._scorer = scorer
        self.policy = policy
        self.dropped: Counter[str] = Counter()
        self.relaxed = 0
        self.explored = 0

    @classmethod
    def of_file(cls, file: Path, name: str | None, scorer: Scorer) -> "PolicyReplay":
        """A policy of a file. `name` None is descending score. Raises ValueError where there is no such policy, or the
        file does not fit the version."""
        return cls(_policy(file, name, scorer), scorer)

    def placing(self, logged: Logged, score_N: NDArray[np.float64], answers: Mapping[str, Any]) -> Placing:
        """The policy's view of a request. Raises ValueError where the log lacks what it reads."""
        line = logged.line
        if self._reads_features and (line.catalogue or line.hashes is not None):
            lacking = "a catalogue gave features" if line.catalogue else "hashes stand for features"
            raise ValueError(f"{lacking} that the policy reads and the log does not have")
        columns = self._columns(logged) if self._reads_features else {}
        seen = self.policy.definition.seen
        if seen is not None and seen.field not in (line.histories or {}):
            raise ValueError(
                f"seen: the log has no history '{seen.field}' of the user; the model's state.yaml did not keep it then"
                if line.hashes is None
                else "seen: hashes stand for features, and the log has no history of the user"
            )
        by_output = {name: np.asarray(answer_N, np.float32) for name, answer_N in answers.items()}
        return Placing(
            score_N,
            by_output,
            CandidateValues(self.policy.readable, columns, logged.ids),
            line.histories or {},
            lambda feature: self._vectors(feature, columns, len(logged.ids)),
            datetime.fromisoformat(line.time).timestamp(),
            line.top_k,
            line.request_id,
        )

    def place(self, placing: Placing) -> Placed:
        """The policy's order of a request, counted."""
        placed = self.policy.place(placing)
        self.dropped.update({stage: len(rows) for stage, rows in placed.dropped.items()})
        self.relaxed += placed.relaxed
        self.explored += placed.propensity_K is not None
        return placed

    def document(self) -> dict[str, Any]:
        """Counts of what it did, for JSON."""
        return {
            "name": self.policy.name,
            "version": self.policy.version,
            "dropped": dict(self.dropped),
            "relaxed": self.relaxed,
            "explored": self.explored,
        }

    @property
    def _reads_features(self) -> bool:
        definition = self.policy.definition
        stages = (definition.filter, definition.seen, definition.dedup, definition.boost, definition.decay)
        select = definition.select
        return any(stages) or (select is not None and bool(select.cap or select.mmr))

    def _columns(self, logged: Logged) -> Mapping[str, Column]:
        known = {feature.name for feature in self._scorer.schema.requested("candidate")}
        features = {name: values for name, values in logged.features.items() if name in known}
        try:
            return self._scorer.encoder.columns("candidate", features, len(logged.ids))
        except ColumnErrors as error:
            raise ValueError(str(error)) from None

    def _vectors(self, feature: str, columns: Mapping[str, Column], rows: int) -> NDArray[np.float32]:
        encoded = self._scorer.encoder.encode("candidate", columns, rows, as_served=True)
        return self._scorer.candidate_vectors(feature, encoded)


def order_scores(order_K: NDArray[np.intp], score_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers by which candidates stand as answered, those that are not answered behind them by their score."""
    rest = np.ones(len(score_N), np.bool_)
    rest[order_K] = False
    left = np.flatnonzero(rest)
    whole = np.concatenate([order_K, left[(-score_N[left]).argsort(kind="stable")]])
    number_N = np.empty(len(score_N))
    number_N[whole] = -np.arange(len(whole))
    return number_N


def _policy(file: Path, name: str | None, scorer: Scorer) -> Policy:
    if name is None:
        return Policy(BY_SCORE, PolicyDefinition(), scorer.schema, Readable.of(scorer.schema), scorer.domain)
    try:
        content = read_bytes(file)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); it has the policies of --policy") from None
    policies = Policies.from_bytes(content, str(file), scorer.schema, scorer.domain)
    if name not in policies:
        raise ValueError(f"no policy '{name}'; {file} has: {', '.join(policies.names) or 'none'} ({FILE_NAME})")
    return policies[name]
