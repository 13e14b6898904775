"""A simulated town: its users come by the hour of each day, are shown what was ranked for them, and act by its truth.

In: a seed, sizes, and the day from which users like other things. Out: `Visits` of an hour, each a user with candidates
and the chance that decides what becomes of each candidate. One chance serves every way of ranking, so ways differ by
what they put on top alone. The laws are those of training.datasets.feed_world, position bias included.

Shapes: R requests, N candidates of each, K places that are shown; B rows of outcomes, T tasks.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from training.datasets import feed_world as feed
from training.datasets.feed_world import Chances, FeedWorld, Floats, Integers, Outcomes
from training.datasets.simulate import DAYS, FIRST_DAY, HOURLY_INTENSITY

HOURS = 24
PLACES = feed.PAGE
# The days before the first are those of the simulated log, which the first model learns from.
_BEFORE = timedelta(days=DAYS)
# Features of a user that the service keeps: a request that names its user has none of them.
USER, ACTIVITY, HISTORY = "user_id", "user_activity", "history"
KEPT = (ACTIVITY, HISTORY)
TASTES = 1  # the seed of what users like after the shift, beside the town's own


@dataclass(frozen=True)
class Town:
    """Users, items and when tastes shift, in days from 0."""

    seed: int
    users: int
    items: int
    requests_per_day: int
    candidates: int
    shift_day: int

    def first_day(self) -> datetime:
        """The beginning of day 0, UTC."""
        return datetime.fromisoformat(str(FIRST_DAY)).replace(tzinfo=UTC) + _BEFORE

    def world(self) -> FeedWorld:
        """The town before its tastes shift."""
        return FeedWorld(self.seed, users=self.users, items=self.items)

    def tastes(self) -> int:
        """Seed of the tastes after the shift."""
        return self.seed * 1000 + TASTES


@dataclass(frozen=True)
class Visits:
    """Requests of one hour, in the order of time. Arrays [R * N] are by request and candidate."""

    world: FeedWorld
    time: datetime
    ids: list[str]
    users_R: Integers
    devices_R: Integers
    device_is_null_R: npt.NDArray[np.bool_]
    items_RN: Integers
    ages_RN: Floats
    age_is_null_RN: npt.NDArray[np.bool_]
    at_top: Outcomes
    chances: Chances

    def bodies(self, model: str, histories: Sequence[Sequence[int]] | None = None) -> list[dict[str, Any]]:
        """Bodies for POST /v1/rank. `histories` are the items that each request's user clicked, oldest first. Without
        them a request has the user's id and its own context alone."""
        bodies = []
        for r, request_id in enumerate(self.ids):
            device = None if self.device_is_null_R[r] else feed.DEVICES[self.devices_R[r]]
            history = np.array([] if histories is None else histories[r][-feed.MAX_HISTORY :], np.int64)
            user = self.world.user_features(int(self.users_R[r]), history, self.time.hour, device)
            if histories is None:
                user = {name: value for name, value in user.items() if name not in KEPT}
            candidates = self.world.candidates(self.items_RN[r], self.ages_RN[r], self.age_is_null_RN[r])
            body = {"request_id": request_id, "model": model, "user": user, "candidates": candidates, "top_k": PLACES}
            bodies.append(body)
        return bodies

    def shown(self, order_RK: Integers) -> "Shown":
        """Actions of users on the candidates [R, K] that they are shown, in this order."""
        picked, true = self._true(order_RK)
        uniform = {task: values[picked] for task, values in self.chances.uniform.items()}
        chances = Chances(uniform, self.chances.play_noise[picked])
        labels = {task: label.reshape(order_RK.shape) for task, label in chances.labels(true).items()}
        items_RK = np.take_along_axis(self.items_RN, order_RK, axis=1)
        return Shown(self, items_RK, labels, chances.play_time_ms(true).reshape(order_RK.shape))

    def expected(self, order_RK: Integers, worth: Mapping[str, float]) -> Floats:
        """Expected value [R, K] of what users do at each place of an order, by the worth of labels."""
        _, true = self._true(order_RK)
        value_RK: Floats = np.zeros(order_RK.shape)
        for task, weight in worth.items():
            value_RK += weight * true.probabilities[task].reshape(order_RK.shape)
        return value_RK

    def _true(self, order_RK: Integers) -> tuple[Integers, Outcomes]:
        """Rows of these candidates, and the laws of what users do there."""
        requests, places = order_RK.shape
        picked = (np.arange(requests)[:, None] * self.items_RN.shape[1] + order_RK).ravel()
        positions = np.tile(np.arange(places), requests)
        at_top = self.at_top
        probabilities = {task: values[picked] for task, values in at_top.probabilities.items()}
        probabilities["click"] = np.array(feed.PROPENSITIES)[positions] * at_top.click_at_top[picked]
        return picked, Outcomes(
            at_top.affinity_BT[picked], probabilities, at_top.click_at_top[picked], at_top.median_play_time_ms[picked]
        )


@dataclass(frozen=True)
class Shown:
    """Places that were shown, and what users did there: labels of the binary tasks, and play times, all [R, K]."""

    visits: Visits
    items_RK: Integers
    labels: dict[str, npt.NDArray[np.int8]]
    play_time_ms_RK: Integers

    def inverted(self, tasks: Collection[str]) -> "Shown":
        """The same with the labels of some tasks turned round: a client that reports the opposite."""
        turned = {task: (1 - label_RK).astype(np.int8) for task, label_RK in self.labels.items() if task in tasks}
        return Shown(self.visits, self.items_RK, {**self.labels, **turned}, self.play_time_ms_RK)


class Days:
    """Visits by day and hour. The same day and hour are the same visits, whoever ranks."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self._before = town.world()
        self._after = self._before.with_other_tastes(town.tastes())
        shares = np.cumsum(HOURLY_INTENSITY) / HOURLY_INTENSITY.sum()
        self._until = np.rint(shares * town.requests_per_day).astype(int)

    def visits(self, day: int, hour: int) -> Visits:
        """The visits of an hour."""
        town = self.town
        world = self._before if day < town.shift_day else self._after
        first = int(self._until[hour - 1]) if hour else 0
        count = int(self._until[hour]) - first
        rng = np.random.default_rng([town.seed, 3, day, hour])
        users_R = world.draw_users(rng, count)
        devices_R = rng.choice(len(feed.DEVICES), count, p=feed.DEVICE_SHARES)
        items_RN = world.draw_pages(rng, count, town.candidates)
        time = town.first_day() + timedelta(days=day, hours=hour)
        since_start_hours = (DAYS + day) * HOURS + hour
        ages_RN = np.round(world.age_at_start_hours[items_RN] + since_start_hours, 2)
        flat = count * town.candidates
        at_top = world.outcomes(
            np.repeat(users_R, town.candidates),
            items_RN.ravel(),
            np.zeros(flat, np.int64),
            np.full(flat, hour),
            np.repeat(devices_R, town.candidates),
            ages_RN.ravel(),
        )
        return Visits(
            world,
            time,
            # Places are drawn by it: two towns must not have the same draws.
            [f"d{day:02}-{number:06}-{town.seed}" for number in range(first, first + count)],
            users_R,
            devices_R,
            rng.random(count) < feed.NULL_SHARES["device"],
            items_RN,
            ages_RN,
            rng.random(items_RN.shape) < feed.NULL_SHARES["item_age_hours"],
            at_top,
            Chances.draw(rng, flat),
        )
