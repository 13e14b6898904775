"""One way of ranking in the town: a model behind a service, what its users clicked there, and what they got of it.

In: visits. Out: what was shown and done, and the realised value of each request. Each arm is a town of its own: a
user's history is of the clicks that were reported under this arm.

Shapes: R requests, N candidates, K places, U users.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy.loop.asking import Backend
from deploy.loop.town import Shown, Visits
from training.datasets.feed_world import MAX_HISTORY, Floats, Integers, item_name

# What a request is worth, by label: the value model's weights, and what the judge observes.
VALUE = {"click": 1.0, "long_view": 1.0}


class Arm:
    """One way of ranking, by its name. With `by_id` its requests name their users, and the service has the rest."""

    def __init__(self, name: str, backend: Backend, users: int, *, by_id: bool = False) -> None:
        self.name = name
        self.backend = backend
        self._by_id = by_id
        self._histories: list[list[int]] = [[] for _ in range(users)]

    def serve(self, visits: Visits) -> tuple[Shown, list[str]]:
        """Have the visits ranked, shown and acted on. Returns that, and the version that answered each."""
        histories = None if self._by_id else self.histories(visits)
        answers = self.backend.rank(visits.bodies(self.backend.model, histories))
        return visits.shown(_orders(visits, answers)), [answer["model_version"] for answer in answers]

    def histories(self, visits: Visits) -> list[list[int]]:
        """Items that the user of each request clicked, as was reported, oldest first."""
        return [list(self._histories[user]) for user in visits.users_R]

    def take_clicks(self, reported: Shown) -> list[int]:
        """Keep the clicks of an hour, by the time of their events: from the top place down. Returns their users."""
        users_R = reported.visits.users_R
        clicks = np.argwhere(reported.labels["click"].T)
        for k, r in clicks.tolist():
            history = self._histories[int(users_R[r])]
            history.append(int(reported.items_RK[r, k]))
            del history[:-MAX_HISTORY]
        return sorted(set(users_R[clicks[:, 1]].tolist()))

    def history_of(self, user: int) -> list[str]:
        """Names of the items of a user's history."""
        return [item_name(item) for item in self._histories[user]]


def value_of(shown: Shown) -> Floats:
    """Realised value of each request [R]."""
    value_R: Floats = np.zeros(len(shown.items_RK))
    for label, weight in VALUE.items():
        value_R += weight * shown.labels[label].sum(axis=1)
    return value_R


def _orders(visits: Visits, answers: Sequence[Mapping[str, Any]]) -> Integers:
    """Candidates as they were answered [R, K], as places in the request."""
    rows = []
    for items_N, answer in zip(visits.items_RN, answers, strict=True):
        places = {item_name(item): n for n, item in enumerate(items_N)}
        rows.append([places[name] for name in answer["candidates"]["id"]])
    return np.array(rows, np.int64)
