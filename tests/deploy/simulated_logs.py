"""Both logs of a service, of rows that the simulator wrote: each page of ten a request, each label an event.

In: a folder of the simulator's Parquet, and how many of its days. Out: an impression log and an event log of closed
files, by which a join has to find the simulator's labels again.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.impression_lines import impression_line, stamp
from training.datasets.feed_world import PAGE

CANDIDATE = ("item_id", "creator", "topics", "duration_ms", "item_age_hours")
USER = ("user_id", "user_activity", "history", "hour", "device")
EVENTS = ("click", "long_view", "like", "hide")


def write_logs(simulated: Path, logs: Path, days: int) -> list[dict[str, Any]]:
    """Write the logs of the first days, and return their rows."""
    rows = [row for file in sorted(simulated.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    dates = sorted({row["date"] for row in rows})[:days]
    kept = [row for row in rows if row["date"] in dates]
    requests, events = [], []
    for start in range(0, len(kept), PAGE):
        page = kept[start : start + PAGE]
        requests.append(_request(f"r{start}", page))
        events += [event for row in page for event in _events(f"r{start}", row)]
    for name, lines in (("impressions", requests), ("events", events)):
        (logs / name).mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (logs / name / f"{name}-0.jsonl").write_text(text, encoding="utf-8")
    return kept


def _request(name: str, page: list[dict[str, Any]]) -> dict[str, Any]:
    scores = [1.0 - place / PAGE for place in range(len(page))]
    return impression_line(
        name,
        _time(page[0]),
        "demo",
        user_hash=f"{page[0]['user_id']:032x}",
        user={feature: page[0][feature] for feature in USER},
        candidates={
            "id": [f"{name}-{place}" for place in range(len(page))],
            "features": {feature: [row[feature] for row in page] for feature in CANDIDATE},
        },
        score=scores,
        tasks={"click": scores},
        raw={"click": scores},
    )


def _events(name: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    place = int(row["position"])
    own = {"format": 1, "request_id": name, "id": f"{name}-{place}", "model": "demo", "time": _time(row, 1)}
    given = [("shown", 1.0), *((event, 1.0) for event in EVENTS if row[event])]
    given.append(("play_time_ms", float(row["play_time_ms"])))
    return [
        {**own, "type": kind, "value": value, "position": place, "event_id": f"{name}-{place}-{kind}",
         "received": _time(row, 2)}
        for kind, value in given
    ]  # fmt: skip


def _time(row: dict[str, Any], seconds: int = 0) -> str:
    return stamp(datetime.fromtimestamp(row["timestamp_ms"] / 1000, UTC) + timedelta(seconds=seconds))
