"""The policy of a request: which it is, and its order of the candidates.

In: a scored request of a model with policies. Out: the same with its order. A request without a policy never comes
here: it is answered by descending score.

Shapes: N candidates, O outputs, K places.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from model.policies.candidates import CandidateValues
from model.policies.place import Placed, Placing
from model.policies.policies import DEFAULT, Policy
from model.policies.stages import Entry
from model.scorer.scorer import NamedCandidates
from service.base.clock import Clock
from service.base.errors import Fault, Problem, value_or_kind
from service.base.record import RequestRecord
from service.metrics.policy_metrics import PolicyMetrics
from service.models.version import ServedModel
from service.policy.repeats import RepeatedIds
from service.rank.scored_request import ScoredRequest


def policy_name(model: ServedModel, named: str | None, path: str) -> str | None:
    """The policy of a request that names one, or `default` where the model has that. None for descending score. Raises
    Problem 422 at `path` for one that the model does not have."""
    policies = model.policies
    if named is None:
        return DEFAULT if policies is not None and DEFAULT in policies else None
    if policies is None or named not in policies:
        has = ", ".join([] if policies is None else policies.names) or "none"
        rule = f"no such policy, {value_or_kind(named)}; model '{model.name}' has: {has}"
        raise Problem.wrong_content([Fault(path, rule)])
    return named


def placed_by_policy(scored: ScoredRequest, clock: Clock) -> Placed:
    """The order of a request's policy. Nothing is counted."""
    encoded, policy = scored.encoded, _policy_of(scored)
    received, scorer = encoded.received, encoded.model.scorer
    named = encoded.candidates if isinstance(encoded.candidates, NamedCandidates) else None
    histories: Mapping[str, Sequence[Entry]] = {} if received.hydrated is None else received.hydrated.entries
    return policy.place(
        Placing(
            scored.score_N,
            dict(zip(scorer.outputs, scored.answers.answers_NO.T, strict=True)),
            CandidateValues(policy.readable, encoded.columns, received.ids, named),
            histories,
            lambda feature: scorer.candidate_vectors(feature, encoded.candidates),
            clock.now().timestamp(),
            received.top_k,
            encoded.request_id,
        )
    )


def _policy_of(scored: ScoredRequest) -> Policy:
    name, policies = scored.encoded.policy, scored.encoded.model.policies
    assert name is not None, "without a policy nothing is placed"
    assert policies is not None
    return policies[name]


@dataclass(frozen=True, slots=True)
class PolicyPlacing:
    """Places the candidates of a service's requests."""

    clock: Clock
    metrics: PolicyMetrics
    explored: RepeatedIds

    def place(self, scored: ScoredRequest, record: RequestRecord) -> ScoredRequest:
        """The request with its policy's order, counted and noted in its record."""
        encoded = scored.encoded
        model, policy = encoded.model, _policy_of(scored)
        placed = placed_by_policy(scored, self.clock)
        record.policy, record.policy_version = policy.name, policy.version
        self.metrics.count(model.name, policy.name, placed)
        if placed.propensity_K is not None:
            is_repeated = self.explored.take_id(encoded.request_id, policy.version)
            self.metrics.count_explored(model.name, policy.name, is_repeated=is_repeated)
        return replace(scored, placed=placed)
