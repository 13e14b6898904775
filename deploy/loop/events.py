"""Events of what was shown, as a client sends them, and the truth behind them.

In: what users did in an hour. Out: events of POST /v1/events, some of them sent twice as by a client that did not hear
the answer, out of order. And a Parquet file a day of what they say and of whose features, which joined rows are
compared with.

Shapes: R requests, K places.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deploy.loop.town import ACTIVITY, HISTORY, Shown
from training.datasets.feed_world import BINARY_TASKS, item_name

PLAY_TIME = "play_time_ms"
# The join file that reads these events.
LABELS: dict[str, dict[str, str]] = {
    **{task: {"event": task} for task in BINARY_TASKS},
    PLAY_TIME: {"event": PLAY_TIME, "value": "sum"},
}
_COMPARED = pa.schema(
    [("request_id", pa.string()), ("id", pa.string()), (ACTIVITY, pa.float64()), (HISTORY, pa.list_(pa.string()))]
    + [(label, pa.float64()) for label in LABELS]
)
_SENT_TWICE = 0.02
# No two events of a user have one time, which orders the user's history: requests differ by milliseconds.
_FIRST_SECONDS, _A_PLACE_SECONDS = 5, 8


def events_of(shown: Shown, asked: datetime, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The events of places that were answered at the time `asked`, in the order in which they are sent."""
    visits = shown.visits
    events = []
    for r, request_id in enumerate(visits.ids):
        for k, item in enumerate(shown.items_RK[r].tolist()):
            time = asked + timedelta(seconds=_FIRST_SECONDS + _A_PLACE_SECONDS * k, milliseconds=r)
            done = {"shown": 1.0, PLAY_TIME: float(shown.play_time_ms_RK[r, k])}
            done |= {task: 1.0 for task in BINARY_TASKS if shown.labels[task][r, k]}
            for kind, value in done.items():
                events.append({
                    "request_id": request_id,
                    "type": kind,
                    "id": item_name(item),
                    "position": k,
                    "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                    "value": value,
                    "event_id": f"{request_id}/{k}/{kind}",
                    "user": int(visits.users_R[r]),
                    "item_id": item_name(item),
                })  # fmt: skip
    twice = rng.random(len(events)) < _SENT_TWICE
    events += [event for event, is_again in zip(events, twice.tolist(), strict=True) if is_again]
    return [events[place] for place in rng.permutation(len(events)).tolist()]


def is_joined(truth: Path, joined: Path) -> bool:
    """True where a day's joined rows, a folder, are those of its file of truth, with the same labels and the same
    features of users to the last."""
    compared = [ACTIVITY, HISTORY, *LABELS]
    sent = pq.read_table(truth, columns=["request_id", "id", *compared])
    rows = pq.read_table(joined, columns=["_request_id", "_candidate_id", *compared], partitioning=None)
    rows = rows.rename_columns(sent.column_names)
    order = [("request_id", "ascending"), ("id", "ascending")]
    one, other = (table.sort_by(order).cast(_COMPARED) for table in (sent, rows))
    return bool(one.equals(other))


class Truth:
    """Content of the events, a file a day: `truth/date=YYYYMMDD.parquet`, a row for each place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hours: list[pa.Table] = []

    def take_hour(self, sent: Shown, histories: Sequence[Sequence[int]]) -> None:
        """Keep an hour's. `histories` are those of its requests' users before it."""
        requests, places = sent.items_RK.shape
        users_R, world = sent.visits.users_R, sent.visits.world
        activity = pa.array(world.activity[users_R], mask=world.activity_is_null[users_R])
        named = pa.array([[item_name(item) for item in items] for items in histories], pa.list_(pa.string()))
        of_place = pa.array(np.repeat(np.arange(requests), places))
        columns: dict[str, Any] = {
            "request_id": np.repeat(sent.visits.ids, places),
            "id": [item_name(item) for item in sent.items_RK.ravel().tolist()],
            "user_id": np.repeat(sent.visits.users_R, places),
            "hour": np.full(requests * places, sent.visits.time.hour),
            ACTIVITY: activity.take(of_place),
            HISTORY: named.take(of_place),
            "position": np.tile(np.arange(places), requests),
            **{task: sent.labels[task].ravel() for task in BINARY_TASKS},
            PLAY_TIME: sent.play_time_ms_RK.ravel(),
        }
        self._hours.append(pa.table(columns))

    def write_day(self, day: datetime) -> Path:
        """Write the day's hours, and begin another."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"date={day:%Y%m%d}.parquet"
        pq.write_table(pa.concat_tables(self._hours), path)
        self._hours = []
        return path
