"""Counts of a join over all of its runs: `<out>/_join/counts.json`, and a table for the end of a run.

In: the records of joined hours and of what was read. Out: by the hour of impressions the requests, impressions, shown,
implied and rows, and by the hour of receipt the events of each class. Every event is in one class. What was read of
hours that are not closed yet is in none of them.
"""

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from training.files import replace_file
from training.join.hour_file import joined_hours, read_record
from training.join.plan import hour_name, hour_named, micros, time_of
from training.join.staging import Staging

# In the order of a table.
CLASSES = (
    "matched", "unmatched", "doubled", "late", "out_of_window", "ambiguous", "no_identity", "wrong_value", "other_type",
)  # fmt: skip
IMPRESSIONS = ("requests", "lost_requests", "late_requests", "impressions", "shown", "implied", "rows")
COUNTS = "counts.json"


def event_counts(out: Path) -> dict[datetime, Counter[str]]:
    """By hour of receipt the events of each class."""
    found: dict[int, Counter[str]] = {}
    anew: dict[int, int] = {}
    for hour in joined_hours(out):
        record = read_record(out, hour)
        anew[hour] = record.get("events_anew", 0)
        for received, classes in record["events"].items():
            found.setdefault(hour_named(received), Counter()).update(classes)
    for number, reading in staging_of(out).readings.items():
        for hour, of_hour in reading.late_events.items():
            if number <= anew.get(hour, 0):  # the record has them
                continue
            for received_hour, events in of_hour.items():
                found.setdefault(received_hour, Counter())["late"] += events
    return {time_of(hour): +classes for hour, classes in sorted(found.items())}


def impression_counts(out: Path) -> dict[datetime, dict[str, int]]:
    """By hour of impressions what became of them."""
    late: Counter[int] = Counter()
    anew = {hour: read_record(out, hour).get("rows_anew", 0) for hour in joined_hours(out)}
    for number, reading in staging_of(out).readings.items():
        late.update({hour: n for hour, n in reading.late_requests.items() if number > anew.get(hour, 0)})
    found = {}
    for hour in joined_hours(out):
        record = read_record(out, hour) | {"late_requests": late.pop(hour, 0)}
        found[time_of(hour)] = {name: int(record[name]) for name in IMPRESSIONS}
    for hour, requests in sorted(late.items()):
        found[time_of(hour)] = dict.fromkeys(IMPRESSIONS, 0) | {"late_requests": requests}
    return found


def staging_of(out: Path) -> Staging:
    """Counts of the log lines that were read for the rows of a folder."""
    return Staging(out / "_join" / "staged")


def write_counts(out: Path, changed_files: int = 0) -> dict[str, Any]:
    """Write the counts, and return them. `changed_files` are those that this run has found changed since they were
    read."""
    readings = staging_of(out).readings.values()
    left_out: Counter[str] = Counter()
    for reading in readings:
        left_out.update(reading.left_out)
    content = {
        "bad_lines": sum(reading.bad_lines for reading in readings),
        "left_out": dict(left_out),
        "changed_files": changed_files,
        "impressions": {hour_name(micros(hour)): counts for hour, counts in impression_counts(out).items()},
        "events": {
            hour_name(micros(hour)): {name: counts[name] for name in CLASSES} | {"in": counts.total()}
            for hour, counts in event_counts(out).items()
        },
    }
    replace_file(out / "_join" / COUNTS, [json.dumps(content, indent=1).encode()])
    return content


def table_of(content: dict[str, Any], hours: list[int]) -> str:
    """The counts of some hours of impressions, and of the events that were received in them and after."""
    if not hours:
        return ""
    names = {hour_name(hour) for hour in hours}
    impressions = {hour: counts for hour, counts in content["impressions"].items() if hour in names}
    events = {hour: counts for hour, counts in content["events"].items() if hour >= min(names)}
    parts = [_table("impressions of", impressions, IMPRESSIONS), _table("events received", events, ("in", *CLASSES))]
    return "\n\n".join(part for part in parts if part)


def _table(title: str, rows: dict[str, dict[str, int]], columns: tuple[str, ...]) -> str:
    if not rows:
        return ""
    total = {column: sum(counts[column] for counts in rows.values()) for column in columns}
    lines = [[title, *columns]]
    lines += [
        [hour, *(f"{counts[column]:,}" for column in columns)] for hour, counts in [*rows.items(), ("all", total)]
    ]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns) + 1)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)
