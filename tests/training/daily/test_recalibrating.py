"""Recalibration by the cycle: where what serves is off on the newest day, once a day, and by its own entry."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.recalibration import generations
from model.rollout.decisions import DATA_GATE, FOUND, PUBLISHED, QUALITY_GATE, RECALIBRATE
from model.rollout.journal import Entry
from tests.training.daily.nights import Feed, day, night
from training.daily.cycle_file import Cycle
from training.daily.serving import open_version
from training.judge.answers import answers_of

FIRST = 3
LOWER = (FIRST + 1, FIRST + 2)


def fewer_clicks(table: pa.Table) -> pa.Table:
    """The rows with four in ten clicks undone."""
    rng = np.random.default_rng(1)
    clicks = table.column("is_click").to_numpy() * (rng.random(table.num_rows) < 0.6)
    return table.set_column(table.schema.get_field_index("is_click"), "is_click", pa.array(clicks, pa.int8()))


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    """Nights of which the first alone publishes: after it users click less, and no challenger passes its gate."""
    made = Feed(tmp_path_factory.mktemp("feed"))
    made.write_files(recalibrate={"days": 2})
    for number in range(FIRST + 1):
        made.write_day(number)
    made.run_night(FIRST)
    made.write_files(recalibrate={"days": 2}, quality_gate={"max_worse": 0.0001})
    for number in LOWER:
        made.write_day(number, fewer_clicks)
        made.run_night(number)
    return made


def entries_of(feed: Feed) -> list[Entry]:
    return [entry for entry in feed.entries if entry.step == RECALIBRATE]


def calibration_on(feed: Feed, number: int, generation: int | None) -> float:
    """Sum of the clicks' answers over that of the clicks of a day, by a generation, or by the version's own maps."""
    scorer = open_version(feed.models, 1).scorer
    if generation is None:
        scorer = scorer.load(feed.models / "1", "torchscript", model="clips")
    else:
        family = feed.models / "derived" / "1" / "calibration"
        scorer.take_calibration(scorer.open_calibration(family / str(generation)))
    table = pq.read_table(feed.folder / "data" / f"date={day(number):%Y%m%d}" / "rows.parquet", partitioning=None)
    answers = np.asarray(answers_of(scorer, table))[:, list(scorer.outputs).index("click")]
    return float(answers.sum() / table.column("is_click").to_numpy().sum())


def test_what_serves_is_calibrated_on_the_days_that_it_is_off_on(feed: Feed) -> None:
    assert feed.versions() == [1], "no challenger was to pass"
    first, second = entries_of(feed)
    assert {entry.decision for entry in (first, second)} == {PUBLISHED}
    assert [entry.figures["data_window"]["days"][-1] for entry in (first, second)] == [str(day(n)) for n in LOWER]
    assert all(reason.startswith("click: calibration is 1.") for reason in first.reasons[:1])
    assert calibration_on(feed, LOWER[0], None) > 1.3
    # The first generation is fitted on a day of many clicks and one of few, the second on both of few.
    assert calibration_on(feed, LOWER[1], 1) == pytest.approx(1.25, abs=0.15)
    assert calibration_on(feed, LOWER[1], 2) == pytest.approx(1.0, abs=0.08)  # of 1,200 rows, 400 clicks


def test_it_comes_before_the_gates_that_ask_it(feed: Feed) -> None:
    steps = [entry.step for entry in feed.entries if entry.time == night(LOWER[1])]
    assert steps.index(DATA_GATE) < steps.index(RECALIBRATE) < steps.index(QUALITY_GATE)


def test_a_day_asks_once_and_a_calibration_that_is_right_stays(feed: Feed) -> None:
    family = feed.models / "derived" / "1" / "calibration"
    feed.run_night(LOWER[1])
    assert generations(family) == [1, 2]
    feed.write_day(LOWER[1] + 1, fewer_clicks)
    feed.run_night(LOWER[1] + 1)
    assert generations(family) == [1, 2]


def test_a_job_that_was_killed_before_its_entry_is_found_and_not_repeated(feed: Feed) -> None:
    journal = feed.models / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"calibration": "2"}, "inputs"' not in line))
    assert len(entries_of(feed)) == 1
    feed.run_night(LOWER[1] + 1)
    assert [(entry.decision, entry.versions["calibration"]) for entry in entries_of(feed)] == [
        (PUBLISHED, "1"), (FOUND, "2"),
    ]  # fmt: skip


def test_days_that_nobody_gated_are_refused(feed: Feed) -> None:
    feed.write_files(recalibrate={"days": 4})
    with pytest.raises(ValueError, match=r"recalibrate\.days: 4, and .* trains on 3; days before these are not gated"):
        Cycle.load(feed.file)
    feed.write_files(recalibrate={"days": 2, "beyond": 1.0})
    with pytest.raises(ValueError, match=r"recalibrate\.beyond"):
        Cycle.load(feed.file)
