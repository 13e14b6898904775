"""Hours that are joined again: with all that came since, and counted once."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from tests.training.join.logs import START, Logs, logs, write
from tests.training.join.loops import join_slowly
from tests.training.join.test_join import LAST, NOW, hashes_of, rows_of, tie
from training.join.counts import event_counts, impression_counts
from training.join.join import join
from training.join.plan import HOUR, Plan, hour_of, micros, time_of

# Hours 21 and 22 of the logs.
ANEW = range(hour_of(micros(START)) + HOUR, hour_of(micros(START)) + 2 * HOUR + 1, HOUR)


def test_hours_anew_have_what_was_late(tmp_path: Path) -> None:
    made = logs(200, 4, seed=41)
    plan = Plan.load(write(tmp_path, made))
    join(plan, NOW)
    # A writer that was given up comes back, with requests and events of all hours.
    late = logs(40, 4, seed=42)
    late = Logs(
        [{**line, "request_id": f"late-{line['request_id']}"} for line in late.requests],
        [{**event, "request_id": f"late-{event['request_id']}"} for event in late.events],
    )
    for name, lines in (("impressions", late.requests), ("events", late.events)):
        (tmp_path / name / f"{name}-late.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    join(plan, NOW)
    before = rows_of(plan.out)
    join(plan, NOW._replace(rejoin=ANEW))
    both = Logs(made.requests + late.requests, made.events + late.events)
    truth = join_slowly(both, "shown", LAST, tie, anew={time_of(hour) for hour in ANEW})
    for hour, rows in rows_of(plan.out).items():
        assert rows == (truth.rows[hour] if micros(hour) in ANEW else before[hour])
    assert any(rows_of(plan.out)[time_of(hour)] != before[time_of(hour)] for hour in ANEW)
    assert sum(counts.total() for counts in event_counts(plan.out).values()) == len(both.events)
    requests = {
        hour: counts["requests"] + counts["late_requests"] for hour, counts in impression_counts(plan.out).items()
    }
    assert sum(requests.values()) == len(both.requests)
    hashes = hashes_of(plan.out)
    counts = event_counts(plan.out)
    join(plan, NOW._replace(rejoin=ANEW))
    assert hashes_of(plan.out) == hashes
    assert event_counts(plan.out) == counts


def test_hours_whose_events_are_still_counted_wait(tmp_path: Path) -> None:
    plan = Plan.load(write(tmp_path, logs(50, 4, seed=43)))
    join(plan, NOW._replace(now=START + timedelta(hours=3)))
    with pytest.raises(ValueError, match="20261129T21 to 20261129T22 are joined anew once those up to 20261129T23 are"):
        join(plan, NOW._replace(now=START + timedelta(hours=3), rejoin=ANEW))
