"""`python -m service replay LOG... --estimate DIR`: what users would have done under another value model or policy.

In: logged requests that explored, as a replay scores and places them, and joined rows that say what users did. Out: the
cascade estimates of the value a request, their intervals, and the effective sample (model/policies/cascade.py).
Requests of hours that are not joined are counted and left out. A request of a joined hour without rows had nothing
shown, and counts as worth 0.

Shapes: N candidates, K places, I requests.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.policies.cascade import LEAST_EFFECTIVE, Estimate, Explored, estimate
from model.policies.place import Placing
from model.policies.policies import Policy
from model.schema import FeedSchema
from model.strict_yaml import unknown_key
from service.impressions.record import Logged
from service.replay.joined_rewards import JoinedRewards, LabelWorth

Floats = NDArray[np.float64]


def label_worths(schema: FeedSchema, realised: Mapping[str, float]) -> dict[str, LabelWorth]:
    """Worth of each label's column, of the worth of outputs: of a task, or of one of its classes. Raises ValueError for
    an output that the schema does not have."""
    for output in realised:
        if output not in schema.outputs:
            raise ValueError(f"realised: {unknown_key(output, list(schema.outputs), 'output')}")
    worths = {}
    for task in schema.tasks:
        given = {output: realised[output] for output in task.outputs if output in realised}
        if not given:
            continue
        if task.label_values is None:
            worths[task.label] = LabelWorth(realised[task.name])
        else:
            values = zip(task.label_values, task.outputs, strict=True)
            worths[task.label] = LabelWorth(0.0, {str(value): given.get(output, 0.0) for value, output in values})
    return worths


class _Request(NamedTuple):
    """One explored request, by places."""

    user: str
    weight_K: Floats
    predicted_K: Floats
    expected_K: Floats
    own_K: Floats
    worth: dict[int, float]


class Estimation:
    """Explored requests of a replay. `realised` is the worth of each output's label, `places` the number of places that
    count, None for as many as were shown."""

    def __init__(
        self, policy: Policy, rewards: JoinedRewards, realised: Mapping[str, float], places: int | None
    ) -> None:
        self._policy = policy
        self._rewards = rewards
        self._realised = dict(realised)
        self._places = places
        self._requests: list[_Request] = []
        self.counts = {"explored": 0, "not_explored": 0, "not_joined": 0, "without_user": 0}

    def add(self, logged: Logged, placing: Placing) -> None:
        """Add a request, with its scores and answers under what is estimated. Raises ValueError for an order or
        probabilities that no policy makes."""
        line = logged.line
        if line.propensity is None or line.order is None:
            self.counts["not_explored"] += 1
            return
        time = datetime.fromisoformat(line.time)
        if not self._rewards.has_hour(time):
            self.counts["not_joined"] += 1
            return
        propensity_K = np.array(line.propensity, np.float64)
        if not ((propensity_K > 0) & (propensity_K <= 1)).all():
            raise ValueError("propensity: needs probabilities above 0 and at most 1")
        order_K = np.array(line.order, np.intp)[: self._places]
        logged_K = propensity_K[: self._places].cumprod()
        value_N = np.zeros(len(logged.ids))
        for output, worth in self._realised.items():
            value_N += worth * placing.answer_by_output[output].astype(np.float64)
        found = self._policy.follow(placing, order_K, value_N)
        above_K = np.append(1.0, logged_K)[: len(order_K)]
        self.counts["explored"] += 1
        self.counts["without_user"] += line.user_hash is None
        self._requests.append(
            _Request(
                line.user_hash or f"request {line.request_id}",
                found.probability_K / logged_K,
                value_N[order_K],
                found.expected_K / above_K,
                value_N[self._policy.place_unexplored(placing).order_K[: self._places]],
                self._rewards.of_request(line.request_id, time),
            )
        )

    def document(self) -> dict[str, Any]:
        """The estimates, for JSON, or why there are none."""
        shown = [1 + max(one.worth, default=-1) for one in self._requests]
        places = min(max(shown, default=0), self._places or max(shown, default=0))
        about = {"requests": self.counts, "realised": self._realised, "places": places}
        if not places:
            return {**about, "refused": "no request that explored has a place that was shown"}
        explored = self._explored(places)
        found = estimate(explored)
        enough = int(np.count_nonzero(np.minimum.accumulate(found.effective_K) >= LEAST_EFFECTIVE))
        refused = None
        if found.self_normalised is None:
            refused = (
                f"{found.effective:.0f} effective users of all places together, {LEAST_EFFECTIVE:.0f} are needed: the "
                "policy puts elsewhere what was explored"
            )
            if enough:
                refused += f"; --places {enough} estimates what is done at the first {enough}"
        return {
            **about,
            "refused": refused,
            "observed": float(explored.reward_IK.sum(axis=1).mean()),
            "self_normalised": _document(found.self_normalised),
            "doubly_robust": _document(found.doubly_robust),
            "effective_users": found.effective_K.tolist(),
            "mean_weight": found.mean_weight_K.tolist(),
        }

    def _explored(self, places: int) -> Explored:
        codes = {user: code for code, user in enumerate(dict.fromkeys(one.user for one in self._requests))}
        reward_IK = np.zeros((len(self._requests), places))
        for row, one in enumerate(self._requests):
            for place, worth in one.worth.items():
                if place < places:
                    reward_IK[row, place] = worth
        return Explored(
            # An order that ends before the last place keeps its weight.
            np.array([_padded(one.weight_K, places, np.append(1.0, one.weight_K)[-1]) for one in self._requests]),
            reward_IK,
            np.array([_padded(one.predicted_K, places, 0.0) for one in self._requests]),
            np.array([_padded(one.expected_K, places, 0.0) for one in self._requests]),
            np.array([_padded(one.own_K, places, 0.0) for one in self._requests]),
            np.array([codes[one.user] for one in self._requests], np.int64),
        )


def _padded(values_K: Floats, places: int, rest: float) -> Floats:
    return np.append(values_K, np.full(max(0, places - len(values_K)), rest))[:places]


def _document(found: Estimate | None) -> dict[str, float] | None:
    return None if found is None else found._asdict()
