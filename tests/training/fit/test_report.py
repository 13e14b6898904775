"""The data report against counts by pandas-like plain loops, and against divergences worked out by hand."""

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from model.features.kinds.columns import Column
from model.schema import FeedSchema
from tests.training_data import SCHEMA, feed_table, training_file, write_feed
from training.__main__ import main
from training.config import TrainingConfig
from training.data.files import LogFile, LogFiles
from training.data.index import index_of
from training.data.reader import LogReader
from training.fit import partitions
from training.fit.report import data_report, report_of_file
from training.fit.tally import FeatureTally, Tally, by_chance, divergence
from training.fit.vocabulary import build_vocabulary
from training.train import train

ROWS = 900


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("report")
    write_feed(folder / "data", ROWS)
    assert report_of_file(TrainingConfig.load(training_file(folder)), show=False) == folder / "run" / "data_report.md"
    found: dict[str, Any] = json.loads((folder / "run" / "data_report.json").read_text(encoding="utf-8"))
    return found


def rows_where(days: set[int]) -> list[dict[str, Any]]:
    return [row for row in feed_table(ROWS).to_pylist() if row["day"] in days]


SPLITS = {"train": {1, 2, 3, 4}, "validation": {5}, "test": {6}}


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_counted_as_by_a_loop(content: dict[str, Any], split: str) -> None:
    rows, found = rows_where(SPLITS[split]), content["splits"][split]
    assert found["rows"] == len(rows)
    known = [row for row in rows if row["like_known"]]
    assert found["tasks"]["like"]["observed_share"] == pytest.approx(len(known) / len(rows))
    assert found["tasks"]["like"]["label_rate"] == pytest.approx(sum(row["is_like"] for row in known) / len(known))
    assert found["tasks"]["watch"]["label_mean"] == pytest.approx(sum(row["watch_ms"] for row in rows) / len(rows))
    durations = found["features"]["duration"]
    assert durations["missing_share"] == pytest.approx(sum(row["duration"] is None for row in rows) / len(rows))
    tabs = found["features"]["tab"]
    assert tabs["unknown_share"] == pytest.approx(sum(row["tab"] == "elsewhere" for row in rows) / len(rows))
    trained = {row["video"] for row in rows_where(SPLITS["train"])}  # its vocabulary is fitted on the training split
    videos = found["features"]["video"]
    assert videos["unknown_share"] == pytest.approx(sum(row["video"] not in trained for row in rows) / len(rows))
    lengths = [len(row["history"] or []) for row in rows]
    history = found["features"]["history"]
    assert history["missing_share"] == pytest.approx(lengths.count(0) / len(rows))
    assert history["mean_length"] == pytest.approx(sum(lengths) / len(rows))
    assert history["longest"] == max(lengths)
    assert history["cut_share"] == pytest.approx(sum(length > 3 for length in lengths) / len(rows))


def test_each_day_is_a_partition(content: dict[str, Any]) -> None:
    assert {part["value"]: part["split"] for part in content["partitions"]} == {
        **dict.fromkeys("1234", "train"),
        "5": "validation",
        "6": "test",
    }
    assert [part["value"] for part in content["partitions"]] == list("123456")
    for part in content["partitions"]:
        rows = rows_where({int(part["value"])})
        assert part["rows"] == len(rows)
        assert part["tasks"]["click"]["label_rate"] == pytest.approx(sum(r["is_click"] for r in rows) / len(rows))


def test_the_training_split_has_not_drifted_from_itself(content: dict[str, Any]) -> None:
    drifts = [about["drift"] for about in content["splits"]["train"]["features"].values()]
    assert drifts == pytest.approx([0.0] * len(drifts), abs=1e-12)


def reported(folder: Path, table: pa.Table) -> dict[str, Any]:
    (folder / "data").mkdir(exist_ok=True)
    pq.write_table(table, folder / "data" / "log.parquet", row_group_size=200)
    config = TrainingConfig.load(training_file(folder))
    reader = LogReader(config.data, config.feed_schema())
    return data_report(reader, index_of(reader), show=False).content


def replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_drift_is_the_jensen_shannon_divergence(tmp_path: Path) -> None:
    """A number whose upper half takes all of the validation day, and strings of which half are others."""
    table = feed_table(ROWS)
    validates = np.asarray(table.column("day")) == 5
    durations = np.where(np.arange(ROWS) % 2 == 0, 1.0, 1000.0)
    durations[validates] = 1000.0
    tabs = np.where(validates & (np.arange(ROWS) % 2 == 0), "follow", "home")
    table = replaced(replaced(table, "duration", pa.array(durations)), "tab", pa.array(tabs))
    features = reported(tmp_path, table)["splits"]["validation"]["features"]
    days = np.asarray(table.column("day"))
    trains = days <= 4

    def divergence(p: float, q: float) -> float:
        """Of two coins."""

        def against(one: float, other: float) -> float:
            return sum(a * math.log2(2 * a / (a + b)) for a, b in ((one, other), (1 - one, 1 - other)) if a)

        return (against(p, q) + against(q, p)) / 2

    low = float(np.mean(durations[trains] == 1.0))
    assert features["duration"]["drift"] == pytest.approx(divergence(0.0, low), abs=1e-9)
    follow = float(np.mean(tabs[validates] == "follow"))
    assert features["tab"]["drift"] == pytest.approx(divergence(follow, 0.0), abs=1e-9)


def test_the_drift_of_chance_is_what_two_samples_of_one_law_have() -> None:
    """Over 200 pairs of samples. The mean of as many is known to a few parts in a hundred."""
    schema = FeedSchema.from_mapping(yaml.safe_load(SCHEMA), "test")
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        tally = FeatureTally(2)
        tally.add(Column(rng.integers(0, 10_000, 2500)), None, None, np.repeat([0, 1], (500, 2000)))
        found.append(divergence(*tally.counts([[0], [1]]), is_number=False))
    assert np.mean(found) == pytest.approx(by_chance(schema, 500, 2000)["user_id"], rel=0.1)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("is_click", pa.array([0] * ROWS), r"task click: label 'is_click' is 0 in all [\d,]+ rows of split train that"),
        ("watch_ms", pa.array([5.0] * ROWS), r"task watch: label 'watch_ms' is 5 in all"),
        ("like_known", pa.array([False] * ROWS), r"task like: no row of split train has a label \(mask 'like_known'"),
    ],
)
def test_labels_that_are_all_alike_are_refused_by_name(tmp_path: Path, name: str, values: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        reported(tmp_path, replaced(feed_table(ROWS), name, values))


def test_what_is_odd_is_said_first(tmp_path: Path) -> None:
    table = feed_table(ROWS)
    validates = np.asarray(table.column("day")) == 5
    table = replaced(table, "duration", pa.array(np.ones(ROWS), mask=np.ones(ROWS, bool)))
    table = replaced(table, "is_click", pa.array(np.where(validates, 1, np.asarray(table.column("is_click")))))
    table = replaced(table, "tab", pa.array(np.where(validates, "elsewhere", "home")))
    warnings = reported(tmp_path, table)["warnings"]
    assert "task click: split validation has one label only" in warnings
    assert "feature duration: missing in every row of split train" in warnings
    assert "feature tab: 100% of its ids in split validation are unknown" in warnings
    assert any(line.startswith("split validation: 1 feature has drifted") and "tab 1.00" in line for line in warnings)


def test_unknown_ids_of_fitted_vocabularies_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half of the validation day's videos are new."""
    table = feed_table(ROWS)
    video, day = (np.asarray(table.column(name)) for name in ("video", "day"))
    is_new = (day == 5) & (np.arange(ROWS) % 2 == 0)
    table = replaced(table, "video", pa.array(np.where(is_new, video + 1000, video)))
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "log.parquet")
    share = is_new.sum() / (day == 5).sum()
    config = TrainingConfig.load(training_file(tmp_path, epochs=1))
    page = report_of_file(config, show=False)
    said = f"feature video: {share:.0%} of its ids in split validation are unknown"
    assert said in caplog.messages
    assert said in page.read_text()
    assert not any("video" in line for line in caplog.messages if "split test" in line)
    caplog.clear()
    report_of_file(config, show=False)  # by what it has fitted
    assert said in caplog.messages
    # Training in memory and the vocabulary command say it of the table.
    for run in (lambda: train(config, show=False), lambda: build_vocabulary(config, show=False)):
        caplog.clear()
        run()
        (line,) = [line for line in caplog.messages if "are unknown to it" in line and "video" in line]
        assert line.startswith("table video: ")


def report_by(folder: Path, table: pa.Table, split: dict[str, Any], row_group_size: int = 400) -> dict[str, Any]:
    """The report of a log that is split by these rules."""
    (folder / "data").mkdir()
    pq.write_table(table, folder / "data" / "log.parquet", row_group_size=row_group_size)
    config = TrainingConfig.load(training_file(folder), [f"data.split={json.dumps(split)}"])
    reader = LogReader(config.data, config.feed_schema())
    return data_report(reader, index_of(reader), show=False).content


def test_numbers_stand_by_size_and_splits_in_the_order_of_training(tmp_path: Path) -> None:
    table = feed_table(ROWS)
    table = replaced(table, "day", pa.array(np.asarray(table.column("day")) * 4))
    content = report_by(tmp_path, table, {"column": "day", "train": {"min": 9}, "validation": 8, "test": 4})
    assert [(part["split"], part["value"]) for part in content["partitions"]] == [
        *(("train", value) for value in ("12", "16", "20", "24")),
        ("validation", "8"),
        ("test", "4"),
    ]


SECONDS_OF_2023 = 1_672_531_200  # of 1 January, as `date -u -d 2023-01-01 +%s` says


def as_texts(times: pa.Array) -> pa.Array:
    return pc.strftime(times, "%Y-%m-%dT%H:%M:%S")


@pytest.mark.parametrize(
    ("written", "values"),
    [
        (lambda times: times.cast(pa.timestamp("us")), "days (UTC)"),
        (lambda times: times.cast(pa.timestamp("ns", "UTC")), "days (UTC)"),
        (as_texts, "days that its texts begin with"),
        *(
            (lambda times, per=per: pa.array(times.cast(pa.int64()).to_numpy() * per + per // 2), f"days (UTC) of {of}")
            for per, of in (
                (1, "integers read as seconds since 1970"),
                (10**3, "integers read as milliseconds since 1970"),
                (10**6, "integers read as microseconds since 1970"),
                (10**9, "integers read as nanoseconds since 1970"),
            )
        ),
    ],
)
def test_times_stand_by_their_days(tmp_path: Path, written: Callable[[pa.Array], pa.Array], values: str) -> None:
    table = feed_table(ROWS)
    day, number = np.asarray(table.column("day")), np.arange(ROWS)
    times = pa.array(SECONDS_OF_2023 + (day - 1) * 86_400 + number, pa.timestamp("s"))
    bounds = pc.min_max(written(times.filter(pa.array(day == 5)))).as_py()
    low, high = bounds["min"], bounds["max"]
    is_integer = isinstance(low, int)
    split = (
        {"column": "day", "train": {"max": low - 1}, "validation": bounds, "test": {"min": high + 1}}
        if is_integer
        else {"column": "day", "train": {"max": "2023-01-04"}, "validation": "2023-01-05", "test": "2023-01-06"}
    )
    content = report_by(tmp_path, replaced(table, "day", written(times)), split)
    assert content["split_values"] == values
    assert [(part["split"], part["value"], part["rows"]) for part in content["partitions"]] == [
        (split, f"2023-01-{day:02d}", len(rows_where({day}))) for split in SPLITS for day in sorted(SPLITS[split])
    ]


def test_integers_since_1970_are_days_where_the_splits_have_theirs(tmp_path: Path) -> None:
    """23:30 of UTC is the next day in Berlin."""
    table = feed_table(ROWS)
    day = np.asarray(table.column("day"))
    seconds = SECONDS_OF_2023 + day * 86_400 - 1_800
    split = {
        "column": "day",
        "train": {"max": int(seconds[day == 4][0])},
        "validation": {"min": int(seconds[day == 5][0])},
        "timezone": "Europe/Berlin",
    }
    content = report_by(tmp_path, replaced(table, "day", pa.array(seconds)), split)
    assert content["split_values"] == "days (Europe/Berlin) of integers read as seconds since 1970"
    assert [part["value"] for part in content["partitions"]] == [f"2023-01-{day + 1:02d}" for day in range(1, 7)]


def test_days_as_integers_are_values_of_their_own(tmp_path: Path) -> None:
    table = feed_table(ROWS)
    days = 20220500 + np.asarray(table.column("day"))
    split = {"column": "day", "train": {"max": 20220504}, "validation": {"min": 20220505}}
    content = report_by(tmp_path, replaced(table, "day", pa.array(days)), split)
    assert content["split_values"] == "its own values"
    assert [part["value"] for part in content["partitions"]] == [f"2022050{day}" for day in range(1, 7)]


@pytest.mark.parametrize("row", [ROWS // 2, ROWS - 1])  # of the training split, all of the validation split
def test_integers_of_which_one_is_no_time_are_not_read_as_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    monkeypatch.setattr(partitions, "PART_ROWS", 100)  # days are found before the odd one
    table = feed_table(ROWS)
    seconds = SECONDS_OF_2023 + np.asarray(table.column("day"), np.int64) * 86_400
    seconds[-1] += 86_400
    seconds[row] = 5
    held = np.unique(seconds[:-1]).tolist()
    split = {"column": "day", "train": held, "validation": int(seconds[-1])}
    content = report_by(tmp_path, replaced(table, "day", pa.array(seconds)), split)
    assert content["split_values"] == "values of several kinds"
    assert [(part["split"], part["value"], part["rows"]) for part in content["partitions"]] == [
        ("train", "(over 100 values)", ROWS - 1),
        ("validation", "(over 100 values)", 1),
    ]


@pytest.mark.parametrize("row_group_size", [20, ROWS])
def test_rows_are_counted_together_however_many_row_groups_and_values_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_group_size: int
) -> None:
    """90 values in each of 45 row groups: one count for every 100 rows and one for what is left of each split."""
    calls: list[int] = []
    add = Tally.add

    def counted(self: Tally, table: pa.Table, *others: Any) -> None:
        calls.append(table.num_rows)
        add(self, table, *others)

    opened: list[str] = []
    original = LogFiles.opened

    def noted(self: LogFiles, file: LogFile, *others: Any) -> AbstractContextManager[pq.ParquetFile]:
        opened.append(file.name)
        return original(self, file, *others)

    monkeypatch.setattr(Tally, "add", counted)
    monkeypatch.setattr(LogFiles, "opened", noted)
    monkeypatch.setattr(partitions, "PART_ROWS", 100)
    split = {"column": "day", "train": {"max": 69}, "validation": {"min": 70}}
    table = replaced(feed_table(ROWS), "day", pa.array(np.arange(ROWS) * 7 % 90))
    content = report_by(tmp_path, table, split, row_group_size)
    assert len(content["partitions"]) == 90
    assert {part["rows"] for part in content["partitions"]} == {ROWS // 90}
    assert sum(calls) == ROWS
    assert len(calls) <= ROWS / 100 + 2
    assert opened == ["log.parquet"] * 2, "by the index, and by the report: not for each row group"


@pytest.mark.parametrize("in_order", [True, False])  # many values in one row group, or a few in each
def test_of_more_values_than_are_told_apart_a_split_is_one_part(tmp_path: Path, in_order: bool) -> None:
    table = feed_table(ROWS)
    numbers = np.arange(ROWS) % 150
    if not in_order:
        numbers.sort()
    split = {"column": "day", "train": {"max": 119}, "validation": {"min": 120}}
    content = report_by(tmp_path, replaced(table, "day", pa.array(numbers)), split, row_group_size=400)
    assert [(part["split"], part["value"], part["rows"]) for part in content["partitions"]] == [
        ("train", "(over 100 values)", int((numbers < 120).sum())),
        ("validation", "(over 100 values)", int((numbers >= 120).sum())),
    ]
    for part in content["partitions"]:
        assert part | content["splits"][part["split"]] == part  # the counts before and after the merge are all there


def test_the_command_writes_both_files_and_names_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_feed(tmp_path / "data", 300)
    assert main(["report", str(training_file(tmp_path))]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "data_report.md")
    table = replaced(feed_table(300), "is_click", pa.array([3] * 300))
    pq.write_table(table, tmp_path / "data" / "part-1.parquet")
    assert main(["report", str(training_file(tmp_path))]) == 2
    assert (
        "part-1.parquet, row group 0: column 'is_click' (task click): row 0: must be 0 or 1" in capsys.readouterr().err
    )
