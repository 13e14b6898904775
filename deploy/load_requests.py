"""Requests of a load test: bodies of /v1/rank and the seconds at which each is due.

In: a published version (its golden requests), a file of requests, or the simulator, the number of candidates of a
request, and recorded arrival times. Out: JSON bodies, and seconds. Lines of an impression log will do for both files.

Shapes: R requests.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from deploy.open_loop import Array
from training.datasets.feed_world import DEVICE_SHARES, DEVICES, MAX_HISTORY, TOPICS, FeedWorld, creator_name, item_name

# What an impression log has beside these is of the answer.
_ASKED = ("model", "value_model", "user", "candidates", "top_k", "explain", "version")
_MOST_LINES = 1_000_000

Body = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Numbers of candidates of requests, and their shares."""

    numbers: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "Sizes":
        """Of `100` or `20:3,100:6,500:1`, numbers and weights. Raises ValueError."""
        try:
            pairs = [part.partition(":")[::2] for part in text.split(",")]
            numbers = tuple(int(number) for number, _ in pairs)
            weights = [float(weight or 1) for _, weight in pairs]
        except ValueError:
            raise ValueError(f"'{text}' is not a number (100), or numbers with weights (20:3,100:6,500:1)") from None
        if min(numbers) < 1 or min(weights) < 0 or not 0 < sum(weights) < np.inf:
            raise ValueError(f"'{text}': numbers are 1 or more, weights 0 or more and not all 0")
        return cls(numbers, tuple(weight / sum(weights) for weight in weights))

    def draw(self, random: np.random.Generator, count: int) -> list[int]:
        """Draw so many sizes."""
        return [int(size) for size in random.choice(self.numbers, count, p=self.shares)]


def golden(artifact: Path) -> list[Body]:
    """The golden requests of a published version. Raises ValueError."""
    try:
        name = json.loads((artifact / "manifest.json").read_bytes())["name"]
        requests = json.loads((artifact / "golden_requests.json").read_bytes())["requests"]
        return [{"model": name, "user": one["user"], "candidates": one["candidates"]} for one in requests]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{artifact}: not a published version, models/<name>/<version> ({error})") from None


def from_file(path: Path) -> list[Body]:
    """Requests from lines of JSON. Raises ValueError."""
    bodies = []
    for place, line in _lines(path):
        try:
            content = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}: not JSON ({error})") from None
        if _says_loss(content):
            continue
        if not isinstance(content, dict) or "candidates" not in content:
            raise ValueError(f"{place}: needs a body of /v1/rank, an object with `user` and `candidates`")
        asked = {key: content[key] for key in _ASKED if content.get(key) is not None}
        bodies.append(asked)
    if not bodies:
        raise ValueError(f"{path}: has no request; write a line each, as JSON")
    return bodies


def simulated(random: np.random.Generator, sizes: Sequence[int]) -> list[Body]:
    """Requests of the simulator's feed, one of each size."""
    world = FeedWorld(1, items=max(2_000, 10 * max(sizes)))
    bodies = []
    for user, size in zip(world.draw_users(random, len(sizes)), sizes, strict=True):
        items = world.draw_pages(random, 1, size)[0]
        history = world.draw_pages(random, 1)[0][: random.integers(0, MAX_HISTORY + 1)]
        topics = [
            [TOPICS[topic] for topic in world.topic_values[world.topic_offsets[item] : world.topic_offsets[item + 1]]]
            for item in items
        ]
        names = [item_name(item) for item in items]
        bodies.append(
            {
                "user": {
                    "user_id": int(user),
                    "user_activity": float(world.activity[user]),
                    "history": [item_name(item) for item in history],
                    "hour": int(random.integers(24)),
                    "device": str(random.choice(DEVICES, p=DEVICE_SHARES)),
                },
                "candidates": {
                    "id": names,
                    "features": {
                        "item_id": names,
                        "creator": [creator_name(creator) for creator in world.creator[items]],
                        "topics": topics,
                        "duration_ms": world.duration_ms[items].tolist(),
                        "item_age_hours": np.round(world.age_at_start_hours[items], 2).tolist(),
                    },
                },
            }
        )
    return bodies


def resized(body: Body, size: int) -> Body:
    """The request with so many candidates: its own, again and again."""
    candidates = body["candidates"]
    if isinstance(candidates, list):
        return {**body, "candidates": _repeated(candidates, size)}
    changed: dict[str, Any] = {"id": _repeated(candidates["id"], size)}
    if "features" in candidates:
        changed["features"] = {name: _repeated(column, size) for name, column in candidates["features"].items()}
    return {**body, "candidates": changed}


def arrivals(path: Path) -> Array:
    """Recorded arrivals in seconds from the first, from lines of seconds, or JSON with an ISO 8601 `time`.
    Raises ValueError."""
    times = []
    for place, line in _lines(path):
        try:
            content: Any = json.loads(line) if line.startswith("{") else float(line)
            if not _says_loss(content):
                time = content if isinstance(content, float) else content["time"]
                times.append(time if isinstance(time, float) else datetime.fromisoformat(time).timestamp())
        except (ValueError, KeyError, TypeError):
            rule = "needs seconds, or JSON with an ISO 8601 `time`"
            raise ValueError(f"{place}: {rule}; got {line[:40]!r}") from None
    times_R = np.sort(np.array(times))
    if not len(times_R) or not np.isfinite(times_R).all():
        raise ValueError(f"{path}: needs a finite time in each line, and a line at the least")
    recorded: Array = times_R - times_R[0]
    return recorded


def _says_loss(content: object) -> bool:
    """True for a line of an impression log that says how many requests it lacks."""
    return isinstance(content, dict) and "lost" in content


def _repeated(column: list[Any], size: int) -> list[Any]:
    if not column:
        raise ValueError("a request without candidates cannot be given a number of them")
    return (column * -(-size // len(column)))[:size]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if number > _MOST_LINES:
                    raise ValueError(f"{path}: has more than {_MOST_LINES:,} lines")
                if line.strip():
                    yield f"{path}, line {number}", line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error})") from None
