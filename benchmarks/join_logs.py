"""Large logs of the simulated feed's shape for `make bench-join`, written fast: requests of 25 candidates, and events.

In: how many candidates, over how many hours. Out: a folder with both logs, in files of a minute, and its join.yaml.
Three events for ten candidates: 20 % of them shown, the rest clicks, likes, and play times that add up.
"""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import orjson

from tests.impression_lines import impression_line

CANDIDATES = 25
EVENTS_A_REQUEST = 8
START = int(datetime(2026, 11, 29, tzinfo=UTC).timestamp() * 1000)
_HOUR = 3_600_000
_FILES_AN_HOUR = 60
_TASKS = ("click", "long_view", "like", "hide", "play_time")
_JOIN = """schema: configs/schemas/simulated.yaml
impressions: {folder}/impressions
events: {folder}/events
out: {folder}/rows
features: {{position: shown.position}}
labels:
  click: {{event: click}}
  long_view: {{event: long_view}}
  like: {{event: like, undone_by: unlike}}
  hide: {{event: hide}}
  play_time_ms: {{event: play_time_ms, value: sum}}
"""


def write_logs(folder: Path, candidates: int, hours: int) -> Path:
    """Write the logs and return the join.yaml."""
    for name in ("impressions", "events"):
        (folder / name).mkdir(parents=True)
    draw = np.random.default_rng(7)
    requests = candidates // CANDIDATES // hours // _FILES_AN_HOUR
    number = 0
    for file in range(hours * _FILES_AN_HOUR):
        begins = START + file * _HOUR // _FILES_AN_HOUR
        with (
            (folder / "impressions" / f"impressions-{file:05d}.jsonl").open("wb") as impressions,
            (folder / "events" / f"events-{file:05d}.jsonl").open("wb") as events,
        ):
            for offset in np.sort(draw.integers(0, 60_000, requests)).tolist():
                items = draw.integers(0, 2_000, CANDIDATES)
                impressions.write(_request(number, begins + offset, items, draw))
                events.write(_events(number, begins + offset, items, draw))
                number += 1
    path = folder / "join.yaml"
    path.write_text(_JOIN.format(folder=folder), encoding="utf-8")
    return path


def _request(number: int, time: int, items: np.ndarray, draw: np.random.Generator) -> bytes:
    names = [f"item_{item}" for item in items.tolist()]
    user = number % 5_000
    answers = np.round(draw.random((len(_TASKS) + 1, CANDIDATES)), 6)
    tasks = dict(zip(_TASKS, answers, strict=False))
    return orjson.dumps(
        impression_line(
            f"request-{number:012d}",
            _stamp(time),
            "simulated",
            model_version="3",
            user_hash=f"{user:032x}",
            user={
                "user_id": user,
                "user_activity": 0.5,
                "history": names[:10],
                "hour": number % 24,
                "device": "phone",
            },
            candidates={
                "id": names,
                "features": {
                    "item_id": names,
                    "creator": [f"creator_{item % 300}" for item in items.tolist()],
                    "topics": [["music", "news"]] * CANDIDATES,
                    "duration_ms": draw.integers(1_000, 60_000, CANDIDATES),
                    "item_age_hours": np.round(draw.random(CANDIDATES) * 400, 3),
                },
            },
            score=answers[-1].tolist(),
            tasks=tasks,
            raw=tasks,
            order=np.argsort(-answers[-1]),
        ),
        option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
    )


def _events(number: int, time: int, items: np.ndarray, draw: np.random.Generator) -> bytes:
    lines = []
    for place, row in enumerate(draw.choice(CANDIDATES, EVENTS_A_REQUEST, replace=False).tolist()):
        kind = "shown" if place < EVENTS_A_REQUEST - 3 else ("click", "like", "play_time_ms")[place % 3]
        at = time + 1_000 * place
        event = {
            "received": _stamp(at + 200),
            "model": "simulated",
            "request_id": f"request-{number:012d}",
            "type": kind,
            "id": f"item_{items[row]}",
            "position": row,
            "time": _stamp(at),
            "event_id": f"event-{number}-{place}",
        }
        lines.append(orjson.dumps(event if kind != "play_time_ms" else event | {"value": 1_250 * place}))
    return b"\n".join(lines) + b"\n"


def _stamp(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec='milliseconds')[:-6]}Z"
