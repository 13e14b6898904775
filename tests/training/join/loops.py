"""The join as a slow loop over Python objects: the truth that the engine's rows are compared with."""

from collections import Counter
from collections.abc import Callable, Set
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from tests.training.join.logs import OUTPUTS, Logs

WINDOW, SKEW = timedelta(minutes=30), timedelta(minutes=5)
HOUR = timedelta(hours=1)
NAMED = ("shown", "click", "like", "unlike", "play", "comment", "dwell", "rate")
ADDING = ("play", "comment")

Row = dict[str, Any]


class Truth(NamedTuple):
    """Rows by hour, in order, and events by hour of receipt and class."""

    rows: dict[datetime, list[Row]]
    events: dict[datetime, Counter[str]]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


class _Impression:
    def __init__(self, number: int, line: dict[str, Any], row: int, place: int) -> None:
        self.number, self.line, self.row, self.place = number, line, row, place
        self.time = _time(line["time"])
        self.id = line["candidates"]["id"][row]
        self.events: list[dict[str, Any]] = []


def join_slowly(
    logs: Logs,
    rows: str,
    last: datetime,
    tie: Callable[[dict[str, Any]], int],
    anew: Set[datetime] = frozenset(),
) -> Truth:
    """Rows and counts of the hours up to `last`. `tie` orders requests of one id and time. No event of hours `anew`
    is late."""
    by_key: dict[tuple[str, str], list[_Impression]] = {}
    all_of_them = []
    for number, line in enumerate(logs.requests):
        for place, row in enumerate(line["order"]):
            impression = _Impression(number, line, row, place)
            by_key.setdefault((line["request_id"], impression.id), []).append(impression)
            all_of_them.append(impression)
    counts: dict[datetime, Counter[str]] = {}
    for event in logs.events:
        received = _time(event["received"])
        at = _time(event.get("time", event["received"]))
        at = max(min(at, received), received - timedelta(days=7))
        event = {**event, "at": at, "received": received, "sent": event.get("time", event["received"])}
        last_hour = _hour(at + SKEW)
        if last_hour > last and received < last_hour + HOUR + WINDOW + SKEW:
            continue  # its hour is not closed
        event_class, found = _class(event, last_hour, by_key, tie, anew)
        if found is not None and event_class == "matched":
            found.events.append(event)
        if event_class is not None:
            counts.setdefault(_hour(received), Counter())[event_class] += 1
    for impression in all_of_them:
        kept: dict[object, dict[str, Any]] = {}
        for event in impression.events:
            identity = event.get("event_id") or (event["type"], _time(event["sent"]))
            before = kept.get(identity)
            if before is not None:
                loser, winner = sorted((before, event), key=_receipt)
                counts[_hour(loser["received"])].update({"matched": -1, "doubled": 1})
                event = winner
            kept[identity] = event
        impression.events = sorted(kept.values(), key=_order)
    found_rows: dict[datetime, list[Row]] = {}
    for impression in sorted(all_of_them, key=lambda i: (i.time, i.line["request_id"], tie(i.line), i.number, i.row)):
        if _hour(impression.time) <= last:
            of_hour = found_rows.setdefault(_hour(impression.time), [])
            if impression.events or rows == "answered":
                of_hour.append(_row(impression))
    return Truth(found_rows, {hour: Counter({k: n for k, n in c.items() if n}) for hour, c in counts.items()})


def _receipt(event: dict[str, Any]) -> tuple[Any, ...]:
    return (event["received"], event["at"], event["type"], event.get("value", 1.0), event.get("position", -1))


def _order(event: dict[str, Any]) -> tuple[Any, ...]:
    return (event["at"], event["received"], event.get("event_id", ""), event["type"], event.get("value", 1.0),
            event.get("position", -1))  # fmt: skip


def _class(
    event: dict[str, Any],
    last_hour: datetime,
    by_key: dict[tuple[str, str], list[_Impression]],
    tie: Callable[[dict[str, Any]], int],
    anew: Set[datetime],
) -> tuple[str | None, _Impression | None]:
    may_be_anew = any(_hour(event["at"] - WINDOW) <= hour <= last_hour for hour in anew)
    if event["received"] >= last_hour + HOUR + WINDOW + SKEW and not may_be_anew:
        return "late", None
    if event["type"] not in NAMED:
        return "other_type", None
    value = event.get("value", 1.0)
    if (event["type"] in ("play", "dwell") and value < 0) or (event["type"] == "rate" and value == 4):
        return "wrong_value", None
    if event["type"] in ADDING and "event_id" not in event:
        return "no_identity", None
    known = by_key.get((event["request_id"], event["id"]), [])
    before = [impression for impression in known if impression.time <= event["at"] + SKEW]
    if not before:
        return "unmatched", None
    latest = max(before, key=lambda impression: (impression.time, tie(impression.line), impression.number))
    if event["at"] - latest.time > WINDOW + HOUR:
        return "unmatched", None
    same = [impression for impression in before if impression.number == latest.number]
    if len(same) > 1:
        same = [impression for impression in same if impression.place == event.get("position")]
        if not same:
            return "ambiguous", None
    if event["at"] - same[0].time > WINDOW:
        return "out_of_window", None
    hour = _hour(same[0].time)
    if event["received"] >= hour + HOUR + WINDOW + SKEW and hour not in anew:
        return "late", None
    return "matched", same[0]


def _row(impression: _Impression) -> Row:
    line, events = impression.line, impression.events

    def values(kind: str) -> list[float]:
        return [float(event.get("value", 1.0)) for event in events if event["type"] == kind]

    shown = [event["position"] for event in events if event["type"] == "shown" and "position" in event]
    likes = [event["type"] for event in events if event["type"] in ("like", "unlike")]
    total = sum((Decimal(value) for value in values("play")), Decimal(0))
    features, row = line["candidates"]["features"], impression.row
    return {
        "user_id": int(line["user"]["user_id"]),
        "history": line["user"]["history"],
        "item_id": features["item_id"][row],
        "topics": features["topics"][row] or [],
        "age": features["age"][row],
        "position": float(shown[0] if shown else impression.place),
        "is_click": int(bool(values("click"))),
        "is_like": int(bool(likes) and likes[-1] == "like"),
        "play_time_ms": float(total),
        "comments": len(values("comment")),
        "first_value": (values("dwell") or [0.0])[0],
        "best": max(values("dwell"), default=0.0),
        "stars": int(values("rate")[-1]) if values("rate") else None,
        "has_stars": int(bool(values("rate"))),
        "_request_id": line["request_id"],
        "_candidate_id": impression.id,
        "_time": impression.time,
        "_position": impression.place,
        "_model_version": "3",
        "_calibration": None,
        "_value_model_version": "9f2c01ab",
        "_policy_version": None,
        "_experiments": '{"bold":"treatment"}' if line["experiments"] else None,
        "_epochs": '{"bold":"9f2c01ab"}' if line["epochs"] else None,
        "_fell_back": '["bold"]' if line["fell_back"] else None,
        "_propensity": None if line["propensity"] is None else line["propensity"][impression.place],
        "_score": line["score"][row],
        "_user": line["user_hash"],
        "_weight": 2.0,
        **{f"_answer_{output}": line["tasks"][output][row] for output in OUTPUTS},
    }
