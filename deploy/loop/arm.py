"""One way of ranking in the town: a model behind a service, what its users clicked there, and what they got of it.

In: visits. Out: what was shown and done, and the realised value of each request. Each arm is a town of its own: a
user's history is of the clicks under this arm.

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
    """One way of ranking, by its name."""

    def __init__(self, name: str, backend: Backend, users: int) -> None:
        self.name = name
        self.backend = backend
        self._histories: list[list[int]] = [[] for _ in range(users)]

    def serve(self, visits: Visits) -> tuple[Shown, list[str]]:
        """Have the visits ranked, shown and acted on. Returns that, and the version that answered each."""
        histories = [self._histories[user] for user in visits.users_R]
        answers = self.backend.rank(visits.bodies(self.backend.model, histories))
        shown = visits.shown(_orders(visits, answers))
        for r, k in zip(*np.nonzero(shown.labels["click"]), strict=True):
            history = self._histories[int(visits.users_R[r])]
            history.append(int(shown.items_RK[r, k]))
            del history[:-MAX_HISTORY]
        return shown, [answer["model_version"] for answer in answers]


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
