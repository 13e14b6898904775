"""Metrics of ranking policies: requests that they ordered, candidates that they dropped, caps that they relaxed.

Shapes: K of a request's candidates are answered.
"""

from prometheus_client import Counter

from model.policies.place import Placed
from model.policies.policies import Policies
from service.metrics.family import Families, Family


class PolicyMetrics(Families):
    """The metrics of policies."""

    requests = Family(
        Counter, "ranking_policy_requests", "Scored requests that a policy put in order", ("model", "policy")
    )
    dropped = Family(
        Counter,
        "ranking_policy_dropped",
        "Candidates that a policy dropped, by the stage that did",
        ("model", "policy", "stage"),
    )
    relaxed = Family(
        Counter,
        "ranking_policy_relaxed",
        "Places at which a policy's cap was relaxed, as every candidate that was left would have broken it",
        ("model", "policy"),
    )
    empty = Family(
        Counter,
        "ranking_policy_empty_answers",
        "Answers without a candidate, as the policy dropped all of them",
        ("model", "policy"),
    )

    explored = Family(
        Counter,
        "ranking_policy_explored",
        "Requests whose first places a policy drew",
        ("model", "policy"),
    )
    repeated_ids = Family(
        Counter,
        "ranking_policy_repeated_ids",
        "Explored requests whose id came before, so that they are drawn alike",
        ("model", "policy"),
    )

    def add_policies(self, model: str, policies: Policies) -> None:
        """Export what these policies count from 0."""
        for name in policies.names:
            for counter in (self.requests, self.relaxed, self.empty, self.explored, self.repeated_ids):
                counter.labels(model, name)
            for stage in policies[name].stages:
                self.dropped.labels(model, name, stage)

    def count(self, model: str, policy: str, placed: Placed) -> None:
        """Count one request."""
        self.requests.labels(model, policy).inc()
        for stage, rows in placed.dropped.items():
            self.dropped.labels(model, policy, stage).inc(len(rows))
        if placed.relaxed:
            self.relaxed.labels(model, policy).inc(placed.relaxed)
        if not len(placed.order_K):
            self.empty.labels(model, policy).inc()

    def count_explored(self, model: str, policy: str, *, is_repeated: bool) -> None:
        """Count one request that explored."""
        self.explored.labels(model, policy).inc()
        if is_repeated:
            self.repeated_ids.labels(model, policy).inc()
