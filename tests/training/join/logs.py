"""Logs as a service writes them, simulated: requests, and events that are lost, doubled, late, out of order, ambiguous.

`write` gives the lines of both logs. Nothing of the join's code is used.
"""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tests.impression_lines import impression_line, stamp

SCHEMA = """
name: feed
features:
  - {name: user_id, side: user, kind: id, buckets: 100, dim: 4}
  - {name: history, side: user, kind: id_list, buckets: 50, dim: 4, max_length: 5}
  - {name: item_id, side: candidate, kind: id, dtype: string, buckets: 100, dim: 4}
  - {name: topics, side: candidate, kind: id_list, dtype: string, buckets: 10, dim: 4, max_length: 3}
  - {name: age, side: candidate, kind: number}
  - {name: position, side: training_only, kind: number, serving_value: 0}
tasks:
  - {name: click, kind: binary, label: is_click}
  - {name: like, kind: binary, label: is_like}
  - {name: play_time, kind: regression, label: play_time_ms}
  - {name: comments, kind: regression, label: comments}
  - {name: first_value, kind: regression, label: first_value}
  - {name: best, kind: regression, label: best}
  - {name: rating, kind: multiclass, label: stars, mask: has_stars, classes: {1: bad, 2: fair, 3: good}}
"""

JOIN = """
schema: {folder}/schema.yaml
impressions: {folder}/impressions
events: {folder}/events
out: {folder}/rows
window: 30m
skew: 5m
features: {{position: shown.position}}
labels:
  is_click: {{event: click}}
  is_like: {{event: like, undone_by: unlike}}
  play_time_ms: {{event: play, value: sum}}
  comments: {{event: comment, value: count}}
  first_value: {{event: dwell, value: first}}
  best: {{event: dwell, value: max}}
  stars: {{event: rate, value: last, missing: null}}
"""
START = datetime(2026, 11, 29, 20, tzinfo=UTC)
TYPES = ("shown", "shown", "shown", "click", "like", "unlike", "play", "comment", "dwell", "rate", "hover")
OUTPUTS = ("click", "like", "play_time", "comments", "first_value", "best", "rating.bad", "rating.fair", "rating.good")


class Logs(NamedTuple):
    """Lines as objects. Events have their receipt."""

    requests: list[dict[str, Any]]
    events: list[dict[str, Any]]


def request(number: int, time: datetime, ids: list[str], draw: random.Random, **changed: Any) -> dict[str, Any]:
    """A line of the impression log."""
    count = len(ids)
    order = draw.sample(range(count), draw.randint(1, count))
    line = impression_line(
        f"r-{number}",
        stamp(time),
        "feed",
        model_version="3",
        experiments={"bold": "treatment"} if number % 3 else {},
        epochs={"bold": "9f2c01ab"} if number % 3 else {},
        fell_back=[] if number % 4 else ["bold"],
        user_hash=f"{number % 40:032x}",
        share=0.5,
        top_k=len(order) if len(order) < count else None,
        user={"user_id": str(number % 40) if number % 2 else number % 40, "history": [2**60 + number, 7]},
        candidates={
            "id": ids,
            "features": {
                "item_id": ids,
                "topics": [["música"], None, []][:count] + [["x", "y"]] * (count - 3),
                "age": [float(place) if place else None for place in range(count)],
            },
        },
        score=[draw.random() for _ in ids],
        tasks={output: [round(draw.random(), 6) for _ in ids] for output in OUTPUTS},
        order=order,
        propensity=[1 / (place + 2) for place in range(len(order))] if number % 5 == 0 else None,
    )
    return {**line, **changed}


def logs(requests: int, events_a_request: int, seed: int, hours: int = 3, *, with_digits: bool = True) -> Logs:
    """Requests over some hours and their events, in every kind of disorder. `with_digits` some ids are strings of their
    digits, as clients in JavaScript send them."""
    draw = random.Random(seed)
    made: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    for number in range(requests):
        time = START + timedelta(milliseconds=draw.randrange(hours * 3_600_000))
        ids = [f"v{draw.randrange(60)}" for _ in range(draw.randint(3, 8))]
        line = request(number, time, ids, draw)
        # The same id again, sometimes at once, sometimes with other candidates.
        if number % 7 == 0 and time < START + timedelta(hours=hours - 1):
            again = time + timedelta(milliseconds=draw.choice([0, 900, 60_000, 3_000_000]))
            made.append(request(number, again, ids if draw.random() < 0.5 else ids[::-1][:4] or ids, draw))
        made.append(line)
        for _ in range(draw.randrange(2 * events_a_request)):
            events += _events_of(line, time, draw)
    for number in range(requests // 10):
        time = START + timedelta(milliseconds=draw.randrange(hours * 3_600_000))
        events.append(_event(f"lost-{number}", "v1", "click", time, time, draw))
    if not with_digits:
        for line in made:
            line["user"]["user_id"] = int(line["user"]["user_id"])
    draw.shuffle(events)
    draw.shuffle(made)
    return Logs(made, events)


def _events_of(line: dict[str, Any], time: datetime, draw: random.Random) -> Iterator[dict[str, Any]]:
    place = draw.randrange(len(line["order"]))
    one = line["candidates"]["id"][line["order"][place]] if draw.random() < 0.95 else "v-none"
    after = draw.choice([-400_000, -200_000, 1, 5_000, 60_000, 600_000, 1_799_999, 1_800_001, 4_000_000, 9_000_000])
    at = time + timedelta(milliseconds=after + draw.randrange(3))
    late = draw.choice([0, 0, 0, 1_000, 60_000, 3_600_000, 20_000_000])
    event = _event(line["request_id"], one, draw.choice(TYPES), at, max(at, time) + timedelta(milliseconds=late), draw)
    if draw.random() < 0.6:
        event["position"] = place if draw.random() < 0.9 else 40
    if draw.random() < 0.1:
        del event["time"]
    yield event
    if draw.random() < 0.3:
        again = START + timedelta(hours=draw.randrange(8)) if draw.random() < 0.2 else at
        yield {**event, "received": stamp(again)}


def _event(
    request_id: str, one: str, kind: str, at: datetime, received: datetime, draw: random.Random
) -> dict[str, Any]:
    event: dict[str, Any] = {
        "received": stamp(received),
        "model": "feed",
        "request_id": request_id,
        "id": one,
        "type": kind,
    }
    event["time"] = stamp(at)
    if draw.random() < 0.8:
        event["event_id"] = f"e-{draw.randrange(10**9)}"
    if kind == "rate":
        event["value"] = draw.randint(1, 4)
    elif draw.random() < 0.8:
        event["value"] = draw.randrange(-4_000, 100_000) / 8
    return event


def write(folder: Path, made: Logs, files: int = 3, *, join: str = JOIN) -> Path:
    """Write both logs and the files of the join. Returns the path of the join.yaml."""
    for name, prefix, lines in (("impressions", "impressions", made.requests), ("events", "events", made.events)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(files):
            text = "".join(json.dumps(line) + "\n" for line in lines[number::files])
            (folder / name / f"{prefix}-{number}.jsonl").write_text(text, encoding="utf-8")
    (folder / "schema.yaml").write_text(SCHEMA, encoding="utf-8")
    path = folder / "join.yaml"
    path.write_text(join.format(folder=folder), encoding="utf-8")
    return path
