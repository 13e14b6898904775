"""The canary's share: which requests the version labelled `canary` answers.

In: the label, and who sends a request. Out: yes or no, the same for one user in every worker and replica, after
restarts, and while the share grows. Requests without a user go by their ids. What decided is counted. The choice is
made before anything is encoded, and by the user feature of the stable version.
"""

from collections.abc import Callable
from typing import NamedTuple

from model.buckets import bucket_of, buckets_within
from model.rollout.labels import Canary
from service.metrics.metrics import Metrics

UNITS = ("user", "request_id")


class Sender(NamedTuple):
    """Sender of a request: its id, and its user by the name of the feature that has it, None where that has none."""

    request_id: str
    user_by: Callable[[str], str | None]


class CanaryShare:
    """The share of a model's requests that its canary, `version`, answers. `user` is the feature that names users, if
    there is one. Whose user is in the share of one version is not for that reason in that of the next."""

    def __init__(self, model: str, canary: Canary, user: str | None, metrics: Metrics) -> None:
        self.version = str(canary.version)
        self._salt = f"{model}/{canary.version}"
        self._buckets = buckets_within(canary.share)
        self._user = user
        self._by_user, self._by_request_id = (metrics.canary_choices.labels(model, unit) for unit in UNITS)

    def takes_request(self, sender: Sender) -> bool:
        """True for a request that the canary answers. Each call is counted."""
        unit = None if self._user is None else sender.user_by(self._user)
        if unit is None:
            self._by_request_id.inc()
            unit = sender.request_id
        else:
            self._by_user.inc()
        return bucket_of(self._salt, unit) < self._buckets
