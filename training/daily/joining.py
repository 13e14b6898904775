"""The join's step of a cycle, and what the joined hours say of lost log lines and of days that were joined again.

In: the cycle's join.yaml. Out: hours joined as the join does it (training/join), in a process of its own, up to an
hour before now where a writer is silent. A copy of join.yaml lies beside the model's versions, from which a service
knows the types of events.
"""

from datetime import date, datetime, timedelta

from model.join_file import FILE_NAME
from training.daily.cycle_file import Cycle
from training.daily.join_process import join_apart
from training.files import replace_file
from training.join.hour_file import joined_hours, read_record
from training.join.plan import Plan, time_of

# A writer that is silent for so long brings nothing earlier, or late.
_SILENT = timedelta(hours=1)


def join_hours(cycle: Cycle, now: datetime) -> None:
    """Join every hour that is closed. Raises ValueError."""
    if cycle.file.join is None:
        return
    content = cycle.file.join.read_bytes()
    copy = cycle.folder / FILE_NAME
    if not copy.is_file() or copy.read_bytes() != content:
        replace_file(copy, [content])
    join_apart(cycle.file.join, now, now - _SILENT)


def joined_again(cycle: Cycle) -> dict[date, int]:
    """By day with hours that were joined again which reading of the logs they were joined by. A later one is larger."""
    if cycle.file.join is None:
        return {}
    out = Plan.load(cycle.file.join).out
    found: dict[date, int] = {}
    for hour in joined_hours(out):
        reading = int(read_record(out, hour).get("rows_anew", 0))
        if reading:
            day = time_of(hour).date()
            found[day] = max(reading, found.get(day, 0))
    return found


def lost_share(cycle: Cycle, day: date) -> float:
    """Share of a day's requests that the log has lost, 0 where the data was not joined here."""
    if cycle.file.join is None:
        return 0.0
    plan = Plan.load(cycle.file.join)
    records = [read_record(plan.out, hour) for hour in joined_hours(plan.out) if time_of(hour).date() == day]
    lost, kept = (sum(int(record[key]) for record in records) for key in ("lost_requests", "requests"))
    return lost / (lost + kept) if lost else 0.0
