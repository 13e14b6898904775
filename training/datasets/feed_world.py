"""A made-up short-video feed whose laws are known: users, items, and what the one thinks of the other.

Input: a seed and how many users and items. Output: a `FeedWorld`, from which `training.datasets.simulate` draws logged
impressions, and the load test draws scoring requests. Every constant here goes into the log's simulated.json,
so that a test can ask of the data, or of a trained ranker, what was put into it.

The laws. A user and an item have an affinity for each task, of mean 0 and variance 1, the sum of a match
(user vector times item vector), the item's quality and the user's habit. All three are drawn with
TASK_CORRELATION across tasks, and so the affinities have this correlation too. A binary task has the logit
bias + scale * affinity + known effects of context. Play time is log-normal around the same kind of sum. A
click needs an examination first, which happens with PROPENSITIES[position] for every item: that is the
position bias, and the ratio of click rates of two positions is the ratio of their propensities.

Shapes: B impressions, T tasks, K width of the vectors, U users, I items.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

BINARY_TASKS = ("click", "long_view", "like", "hide")
TASKS = (*BINARY_TASKS, "play_time")
TASK_CORRELATION = np.array(
    [  # click  long  like  hide  play
        [1.00, 0.75, 0.50, -0.40, 0.65],
        [0.75, 1.00, 0.45, -0.45, 0.90],
        [0.50, 0.45, 1.00, -0.30, 0.40],
        [-0.40, -0.45, -0.30, 1.00, -0.45],
        [0.65, 0.90, 0.40, -0.45, 1.00],
    ]
)
BIAS = {"click": -0.90, "long_view": -1.10, "like": -4.60, "hide": -5.30}
SCALE = {"click": 1.30, "long_view": 1.30, "like": 1.10, "hide": 1.10, "play_time": 0.80}
# Chance that the user examines a position at all. The top one is always examined.
PROPENSITIES = (1.00, 0.86, 0.76, 0.68, 0.62, 0.57, 0.53, 0.50, 0.47, 0.45)
PAGE = len(PROPENSITIES)

VECTOR_WIDTH = 4
# Shares of an affinity's variance, and of the variance of an item's vector and quality. Each line sums to 1.
MATCH_SHARE, QUALITY_SHARE, HABIT_SHARE = 0.55, 0.30, 0.15
TOPIC_SHARE, CREATOR_SHARE, OWN_SHARE = 0.45, 0.25, 0.30

TOPICS = (
    *("animals", "art", "beauty", "books", "cars", "comedy", "cooking", "crafts", "dance", "fashion"),
    *("fitness", "football", "games", "gardening", "history", "music", "news", "science", "software", "travel"),
)
DEVICES = ("phone", "tablet", "desktop", "television")
DEVICE_SHARES = (0.70, 0.10, 0.12, 0.08)
DEVICE_LONG_VIEW = (0.0, 0.2, 0.3, 0.8)  # added to the logit of long_view, and half of it to the log of play time
MAX_TOPICS = 3
ITEMS_PER_CREATOR = 8
POPULARITY_EXPONENT = 0.8  # exposure of the item of rank r goes with (r + 1) ** -0.8
POPULARITY_CLICK = 0.30  # on the logit of click, per standard deviation of log exposure
ACTIVITY_SPREAD = 1.0  # standard deviation of the log of a user's activity
MEDIAN_DURATION_MS, DURATION_SPREAD = 20_000, 0.7
DURATION_LONG_VIEW = -0.35  # on the logit of long_view, per standard deviation of log duration
DURATION_PLAY_TIME = 0.6  # power of the duration in the play time
MEDIAN_PLAY_SHARE, PLAY_NOISE = 0.45, 0.5  # at affinity 0 and the median duration, and spread of the log
AGE_CLICK = -0.15  # on the logit of click, per unit of log(1 + age in days)
EVENING_CLICK = 0.25  # amplitude over the day on the logit of click, highest at 21 h
MAX_AGE_DAYS = 30
# How much of the chance behind long_view and play time is the same: one viewing decides both.
VIEWING_CORRELATION = 0.6
NULL_SHARES = {"user_activity": 0.05, "device": 0.01, "duration_ms": 0.03, "item_age_hours": 0.02}
MAX_HISTORY = 20


def constants() -> dict[str, Any]:
    """Constants of the made data, as JSON."""
    return {
        "tasks": list(TASKS),
        "task_correlation": TASK_CORRELATION.tolist(),
        "bias": BIAS,
        "scale": SCALE,
        "propensities": list(PROPENSITIES),
        "vector_width": VECTOR_WIDTH,
        "affinity_shares": {"match": MATCH_SHARE, "quality": QUALITY_SHARE, "habit": HABIT_SHARE},
        "item_shares": {"topics": TOPIC_SHARE, "creator": CREATOR_SHARE, "own": OWN_SHARE},
        "popularity_exponent": POPULARITY_EXPONENT,
        "activity_spread": ACTIVITY_SPREAD,
        "median_duration_ms": MEDIAN_DURATION_MS,
        "duration_spread": DURATION_SPREAD,
        "median_play_share": MEDIAN_PLAY_SHARE,
        "play_noise": PLAY_NOISE,
        "effects": {
            "popularity_click": POPULARITY_CLICK,
            "duration_long_view": DURATION_LONG_VIEW,
            "duration_play_time": DURATION_PLAY_TIME,
            "age_click": AGE_CLICK,
            "evening_click": EVENING_CLICK,
            "device_long_view": dict(zip(DEVICES, DEVICE_LONG_VIEW, strict=True)),
        },
        "null_shares": NULL_SHARES,
        "max_history": MAX_HISTORY,
        "viewing_correlation": VIEWING_CORRELATION,
    }


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Laws of impressions [B] before chance decides: probabilities per binary task, and play time in
    milliseconds.
    """

    affinity_BT: Floats
    probabilities: dict[str, Floats]  # click: with the position bias
    click_at_top: Floats  # the click probability with the position bias taken out
    median_play_time_ms: Floats

    @property
    def mean_play_time_ms(self) -> Floats:
        """Mean of the log-normal play time, which is above its median."""
        return self.median_play_time_ms * float(np.exp(PLAY_NOISE**2 / 2))


@dataclass(frozen=True, slots=True)
class Chances:
    """Chance of B impressions, drawn before it is known at which positions they are. `uniform` decides each binary
    task, `play_noise` is the noise of the log of play time."""

    uniform: dict[str, Floats]
    play_noise: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int) -> "Chances":
        """Chance of so many impressions. That of long_view moves with the noise of play time."""
        play_noise, other_noise = rng.normal(size=count), rng.normal(size=count)
        viewing = VIEWING_CORRELATION * play_noise + np.sqrt(1 - VIEWING_CORRELATION**2) * other_noise
        return cls({task: rng.random(count) for task in BINARY_TASKS} | {"long_view": ndtr(-viewing)}, play_noise)

    def labels(self, true: Outcomes) -> dict[str, npt.NDArray[np.int8]]:
        """Labels of the binary tasks, 0 or 1, under these laws."""
        return {task: (self.uniform[task] < true.probabilities[task]).astype(np.int8) for task in BINARY_TASKS}

    def play_time_ms(self, true: Outcomes) -> Integers:
        """Play times in whole milliseconds, at least 1."""
        play_time = true.median_play_time_ms * np.exp(PLAY_NOISE * self.play_noise)
        return np.maximum(1, np.rint(play_time)).astype(np.int64)


class FeedWorld:
    """Users and items of one seed. The same arguments give the same world. Nothing in it changes afterwards.

    Raises ValueError for fewer than 2 users, or for items that two pages would use up.
    """

    def __init__(self, seed: int, *, users: int = 5_000, items: int = 2_000) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        if users < 2:
            raise ValueError(f"users must be 2 or more, got {users}")
        if items < 2 * PAGE:
            raise ValueError(f"items must be {2 * PAGE} or more, two pages of {PAGE}; got {items}")
        rng = np.random.default_rng([seed, 0])
        self.users, self.items = users, items
        self._draw_users(rng)
        self._draw_items(rng)

    def _draw_users(self, rng: np.random.Generator) -> None:
        self._user_vectors_UK = rng.normal(size=(self.users, VECTOR_WIDTH)) / np.sqrt(VECTOR_WIDTH)
        self._habits_UT = _correlated(rng, self.users)
        activity = rng.lognormal(sigma=ACTIVITY_SPREAD, size=self.users)
        self.activity = np.round(activity / activity.mean(), 3)  # in units of the mean user's
        self.activity_is_null = rng.random(self.users) < NULL_SHARES["user_activity"]
        self._user_cumulative = _cumulative(activity)

    def _draw_items(self, rng: np.random.Generator) -> None:
        creators = max(1, self.items // ITEMS_PER_CREATOR)
        self.creator = rng.integers(0, creators, self.items)
        topic_counts = rng.integers(1, MAX_TOPICS + 1, self.items)
        ranked_topics = rng.random((self.items, len(TOPICS))).argsort(axis=1)
        has_topic = ranked_topics < topic_counts[:, None]  # [I, topics]
        self.topic_offsets = np.concatenate(([0], np.cumsum(topic_counts)))
        self.topic_values = np.nonzero(has_topic)[1]
        self._topic_weights = has_topic / np.sqrt(topic_counts)[:, None]  # [I, topics]
        self._draw_affinities(rng)
        exposure: Floats = np.power(rng.permutation(self.items) + 1.0, -POPULARITY_EXPONENT)
        self.popularity = exposure / exposure.sum()
        log_exposure = np.log(exposure)
        self._popularity_z = (log_exposure - log_exposure.mean()) / log_exposure.std()
        self._item_cumulative = _cumulative(exposure)
        self._duration_z = rng.normal(size=self.items)
        durations = MEDIAN_DURATION_MS * np.exp(DURATION_SPREAD * self._duration_z)
        self.duration_ms = np.maximum(1, np.rint(durations)).astype(np.int64)
        self.duration_is_null = rng.random(self.items) < NULL_SHARES["duration_ms"]
        self.age_at_start_hours = rng.uniform(0, 24 * MAX_AGE_DAYS, self.items)

    def _draw_affinities(self, rng: np.random.Generator) -> None:
        """Draw what users like of items: their vectors, and in the last column their quality, drawn like the vectors.
        Topics and creators are good or bad, too."""
        width = VECTOR_WIDTH + 1
        topics, makers, own = (
            _correlated(rng, count * width).reshape(count, width, len(TASKS))
            for count in (len(TOPICS), max(1, self.items // ITEMS_PER_CREATOR), self.items)
        )
        of_topics = np.tensordot(self._topic_weights, topics, axes=1)
        mixed = (
            np.sqrt(TOPIC_SHARE) * of_topics + np.sqrt(CREATOR_SHARE) * makers[self.creator] + np.sqrt(OWN_SHARE) * own
        )
        self._item_vectors_IKT = mixed[:, :VECTOR_WIDTH]
        self._quality_IT = mixed[:, VECTOR_WIDTH]

    def with_other_tastes(self, seed: int) -> "FeedWorld":
        """The same users and items, with their names, activity and exposure, in a world where users like other things.
        What they liked of topics, creators and items says nothing about it."""
        other = copy.copy(self)
        other._draw_affinities(np.random.default_rng([seed, 2]))
        return other

    def draw_users(self, rng: np.random.Generator, count: int) -> Integers:
        """User ids [count], by activity, with repeats."""
        return np.searchsorted(self._user_cumulative, rng.random(count), side="right")

    def draw_pages(self, rng: np.random.Generator, count: int, size: int = PAGE) -> Integers:
        """Item numbers [count, size], by popularity, none twice on a page. Needs size <= items."""
        assert size <= self.items, (size, self.items)
        if self.items < 10 * size:  # so many repeats that redrawing them would take long
            keys = np.log(rng.random((count, self.items))) / self.popularity
            return np.argsort(-keys, axis=1)[:, :size]
        pages = np.searchsorted(self._item_cumulative, rng.random((count, size)), side="right")
        rows = np.arange(count)
        while rows.size:
            order = np.argsort(pages[rows], axis=1, kind="stable")
            in_order = np.take_along_axis(pages[rows], order, axis=1)
            repeats = np.zeros(order.shape, dtype=bool)
            np.put_along_axis(repeats, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
            row, column = np.nonzero(repeats)
            redrawn = np.searchsorted(self._item_cumulative, rng.random(row.size), side="right")
            pages[rows[row], column] = redrawn
            rows = rows[repeats.any(axis=1)]
        return pages

    def outcomes(
        self,
        users: Integers,
        items: Integers,
        positions: Integers,
        hours: Integers,
        devices: Integers,
        age_hours: Floats,
    ) -> Outcomes:
        """The laws of the module's docstring, for impressions [B]. `devices` index DEVICES."""
        match_BT = np.einsum("bk,bkt->bt", self._user_vectors_UK[users], self._item_vectors_IKT[items])
        affinity_BT = (
            np.sqrt(MATCH_SHARE) * match_BT
            + np.sqrt(QUALITY_SHARE) * self._quality_IT[items]
            + np.sqrt(HABIT_SHARE) * self._habits_UT[users]
        )
        device_effect = np.array(DEVICE_LONG_VIEW)[devices]
        effects: dict[str, Floats] = {
            "click": POPULARITY_CLICK * self._popularity_z[items]
            + AGE_CLICK * np.log1p(age_hours / 24)
            + EVENING_CLICK * np.cos((hours - 21) * (2 * np.pi / 24)),
            "long_view": DURATION_LONG_VIEW * self._duration_z[items] + device_effect,
        }
        probabilities: dict[str, Floats] = {}
        for t, task in enumerate(BINARY_TASKS):
            logit = BIAS[task] + SCALE[task] * affinity_BT[:, t] + effects.get(task, 0.0)
            probabilities[task] = 1 / (1 + np.exp(-logit))
        click_at_top = probabilities["click"]
        probabilities["click"] = np.array(PROPENSITIES)[positions] * click_at_top
        log_play_time = (
            np.log(MEDIAN_DURATION_MS * MEDIAN_PLAY_SHARE)
            + DURATION_PLAY_TIME * DURATION_SPREAD * self._duration_z[items]
            + SCALE["play_time"] * affinity_BT[:, TASKS.index("play_time")]
            + device_effect / 2
        )
        return Outcomes(affinity_BT, probabilities, click_at_top, np.exp(log_play_time))

    def request(self, rng: np.random.Generator, num_candidates: int) -> dict[str, Any]:
        """A body for POST /v1/rank: one user, `num_candidates` different items in columns, nulls included.

        Raises ValueError unless 1 <= num_candidates <= items.
        """
        if not 1 <= num_candidates <= self.items:
            raise ValueError(f"num_candidates must be between 1 and the {self.items} items, got {num_candidates}")
        user = int(self.draw_users(rng, 1)[0])
        history = self.draw_pages(rng, 1, min(MAX_HISTORY, self.items))[0][: rng.integers(0, MAX_HISTORY + 1)]
        items = self.draw_pages(rng, 1, num_candidates)[0]
        ages = self.age_at_start_hours[items] + rng.uniform(0, 24 * MAX_AGE_DAYS)
        age_is_null = rng.random(num_candidates) < NULL_SHARES["item_age_hours"]
        device_is_null = rng.random() < NULL_SHARES["device"]
        device = DEVICES[int(rng.choice(len(DEVICES), p=DEVICE_SHARES))]
        hour = int(rng.integers(0, 24))
        return {
            "user": self.user_features(user, history, hour, None if device_is_null else device),
            "candidates": self.candidates(items, np.round(ages, 2), age_is_null),
        }

    def user_features(self, user: int, history: Integers, hour: int, device: str | None) -> dict[str, Any]:
        """User and context of a request. `history` are item numbers."""
        return {
            "user_id": user,
            "user_activity": None if self.activity_is_null[user] else float(self.activity[user]),
            "history": [item_name(item) for item in history],
            "hour": hour,
            "device": device,
        }

    def candidates(self, items: Integers, age_hours: Floats, age_is_null: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """Candidates [N] of a request, in columns."""
        names = [item_name(item) for item in items]
        topics = [self.topic_values[self.topic_offsets[i] : self.topic_offsets[i + 1]] for i in items]
        features = {
            "item_id": names,
            "creator": [creator_name(creator) for creator in self.creator[items]],
            "topics": [[TOPICS[topic] for topic in chosen] for chosen in topics],
            "duration_ms": _nullable(self.duration_ms[items], self.duration_is_null[items]),
            "item_age_hours": _nullable(age_hours, age_is_null),
        }
        return {"id": names, "features": features}


def item_name(item: int) -> str:
    return f"v{item:06d}"


def creator_name(creator: int) -> str:
    return f"c{creator:05d}"


def _correlated(rng: np.random.Generator, count: int) -> Floats:
    """Normal rows [count, T] with TASK_CORRELATION."""
    return rng.normal(size=(count, len(TASKS))) @ np.linalg.cholesky(TASK_CORRELATION).T


def _cumulative(weights: Floats) -> Floats:
    cumulative = np.cumsum(weights / weights.sum())
    cumulative[-1] = 1.0  # rounding must not leave a gap above, into which a draw could fall
    return cumulative


def _nullable(values: npt.NDArray[Any], is_null: npt.NDArray[np.bool_]) -> list[Any]:
    return [None if null else value for value, null in zip(values.tolist(), is_null.tolist(), strict=True)]
