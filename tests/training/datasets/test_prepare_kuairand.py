"""KuaiRand-Pure: both layouts give the same rows, and inputs know earlier days alone."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.schema import FeedSchema
from tests.training.datasets.kuairand_log import (
    FLAGS,
    LABELS,
    NUM_USERS,
    Column,
    as_parquet,
    as_published,
    make_log,
    numbers,
    prepare_log,
    prepared,
    unit,
    videos,
)
from training.__main__ import main
from training.datasets.prepare import Days, prepare

ROOT = Path(__file__).resolve().parents[3]


def test_both_layouts_give_the_same_impressions(tmp_path: Path) -> None:
    log = make_log()
    assert sum(row["user_id"] == 0 and row["date"] <= 20220424 for row in log) > 50
    prepare("kuairand", as_published(tmp_path / "csv", log), tmp_path / "from_csv")
    prepare("kuairand", as_parquet(tmp_path / "parquet", log), tmp_path / "from_parquet")

    names = [f"impressions-{split}.parquet" for split in ("later", "test", "train", "validation")] + ["prepared.json"]
    for name in names[:4]:
        assert pq.read_table(tmp_path / "from_csv" / name).equals(pq.read_table(tmp_path / "from_parquet" / name))
    for out, source_format, num_files in (("from_csv", "csv", 4), ("from_parquet", "parquet", 4)):
        assert sorted(path.name for path in (tmp_path / out).iterdir()) == names
        manifest = json.loads((tmp_path / out / "prepared.json").read_text())
        assert manifest["source_format"] == source_format
        assert len(manifest["sources"]) == num_files
        assert manifest["licence"] == "CC BY-SA 4.0"
        assert sum(manifest["rows"].values()) == sum(row["date"] >= 20220425 for row in log)


def test_splits_go_by_date_and_hours_by_beijing_time(tmp_path: Path) -> None:
    log = make_log()
    prepare("kuairand", as_parquet(tmp_path / "source", log), tmp_path / "out")
    dates = {path.stem: set(pq.read_table(path)["date"].to_pylist()) for path in (tmp_path / "out").glob("*.parquet")}
    assert max(dates["impressions-train"]) == 20220505
    assert dates["impressions-validation"] == {20220506}
    assert dates["impressions-test"] == {20220507}
    assert dates["impressions-later"] == {20220508}
    table = prepared(tmp_path / "out")
    # The made log's time_ms is at most 900 ms past the hour, on the very day of `date`.
    beijing = (numbers(table, "time_ms") + 8 * 3_600_000).astype("datetime64[ms]")
    assert np.array_equal(numbers(table, "hour"), [int(str(time)[11:13]) for time in beijing])
    assert np.array_equal(numbers(table, "weekday"), [time.item().weekday() for time in beijing])


def test_every_row_read_is_counted_by_split_and_day(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """8 May is in the published files: in no split of the shipped file, and never dropped without a word."""
    log = make_log()
    source = as_published(tmp_path / "source", log)
    (source / "data" / "log_random_4_22_to_5_08_pure.csv").touch()
    with caplog.at_level(logging.INFO, "training"):
        prepare("kuairand", source, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "prepared.json").read_text())
    days = Counter(str(row["date"]) for row in log)
    past = {day: count for day, count in days.items() if day < "20220425"}
    assert manifest["rows_by_date"] == {day: days[day] for day in sorted(days) if day not in past}
    assert manifest["left_out"] == {"days before 25 April, read for history lists alone": sum(past.values())}
    assert manifest["rows"]["later"] == days["20220508"]
    assert sum(manifest["rows"].values()) + sum(past.values()) == len(log)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{days['20220508']} rows later than the test split" in said
    assert said.endswith("in no split of configs/kuairand.yaml")
    train = sum(count for day, count in days.items() if "20220425" <= day <= "20220505")
    (statement,) = caplog.messages  # before the inputs are computed: as train, report and score begin
    assert statement == (
        f"{source}/data: 4 files in 1 folder, 900 rows\n"
        f"  train {train} rows, validation {days['20220506']} rows, test {days['20220507']} rows; "
        f"in no split {days['20220508']} rows\n"
        f"  left out {sum(past.values())} rows: days before 25 April, read for history lists alone\n"
        "  not read: 1 other: log_random_4_22_to_5_08_pure.csv"
    )


def test_a_day_alone_is_the_only_one_that_is_counted_as_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = make_log()
    with caplog.at_level(logging.INFO, "training"):
        prepare("kuairand", as_parquet(tmp_path / "source", log), tmp_path / "out", Days(only=20220503))
    days = Counter(row["date"] for row in log)
    shown = sum(count for day, count in days.items() if day >= 20220425)
    assert caplog.messages == [
        f"{tmp_path}/source: 4 files in 1 folder, {shown} rows\n"
        f"  20220503 {days[20220503]} rows; in no split {shown - days[20220503]} rows"
    ]


def test_later_days_change_no_row_of_the_published_splits(tmp_path: Path) -> None:
    log = make_log()
    prepare("kuairand", as_parquet(tmp_path / "a", log), tmp_path / "with")
    prepare(
        "kuairand", as_parquet(tmp_path / "b", [row for row in log if row["date"] < 20220508]), tmp_path / "without"
    )
    for split in ("train", "validation", "test"):
        one, other = (pq.read_table(tmp_path / out / f"impressions-{split}.parquet") for out in ("with", "without"))
        assert one.equals(other)
    assert not (tmp_path / "without" / "impressions-later.parquet").exists()


def test_bounds_of_the_splits_are_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = as_published(tmp_path / "source", make_log()), tmp_path / "out"
    command = ["prepare", "kuairand", "--source", str(source), "--out", str(out)]
    assert main([*command, "--train-to", "20220506", "--validation-to", "20220507", "--test-to", "20220508"]) == 0
    dates = {path.stem: set(pq.read_table(path)["date"].to_pylist()) for path in out.glob("*.parquet")}
    assert max(dates["impressions-train"]) == 20220506
    assert dates["impressions-validation"] == {20220507}
    assert dates["impressions-test"] == {20220508}
    assert dates.keys() == {"impressions-train", "impressions-validation", "impressions-test"}
    for given, message in (
        (["--train-to", "20220507"], "each must be later than the one before"),
        (["--day", "20220508", "--test-to", "20220508"], "is written alone, in no split"),
        (["--day", "20230508"], "no row has this date; the days are 20220425 to 20220508"),
    ):
        assert main([*command, *given]) == 2
        assert message in capsys.readouterr().err
    assert main(["prepare", "census", *command[2:], "--day", "20220508"]) == 2
    assert "are kuairand's; census has no days" in capsys.readouterr().err


def test_a_day_prepared_alone_equals_the_same_day_of_all(tmp_path: Path) -> None:
    source = as_published(tmp_path / "source", make_log())
    prepare("kuairand", source, tmp_path / "all")
    prepare("kuairand", source, tmp_path / "one", Days(only=20220508))
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "impressions-20220508.parquet",
        "prepared.json",
    ]
    whole = pq.read_table(tmp_path / "all" / "impressions-later.parquet")
    assert pq.read_table(tmp_path / "one" / "impressions-20220508.parquet").equals(whole)
    assert numbers(whole, "user_impressions").max() > 0


def test_labels_from_a_day_on_change_no_input_of_that_day_or_before(tmp_path: Path) -> None:
    log, day = make_log(), 20220503
    changed = []
    for row in log:
        new = dict(row)
        if row["date"] >= day:
            new |= {name: 1 - row[name] for name in FLAGS}
            new["play_time_ms"] = 20_000 - row["play_time_ms"]
            new["comment_stay_time"] = 900 - row["comment_stay_time"]
        changed.append(new)
    before, after = prepare_log(tmp_path, "a", log), prepare_log(tmp_path, "b", changed)
    inputs = [name for name in before.column_names if name not in LABELS]
    assert len(inputs) == len(before.column_names) - len(LABELS)
    seen = before["date"].to_numpy() <= day
    assert before.filter(seen).select(inputs).equals(after.filter(seen).select(inputs))
    # The change does arrive, a day later: the comparison above is not one of constants.
    differing = [n for n in inputs if not before.filter(~seen)[n].equals(after.filter(~seen)[n])]
    outcomes = ("click", "long_view", "like", "profile_enter", "comments_opened", "finished", "log_play", "play_ratio")
    expected = {f"{key}_{outcome}{unit(outcome)}" for key in ("user", "video", "user_tab") for outcome in outcomes}
    expected |= {f"{name}_{list_of}" for name in ("affinity_tag", "recent") for list_of in ("liked", "long_viewed")}
    assert expected == set(differing)


def test_rows_of_a_day_and_later_are_not_there_for_the_day_before(tmp_path: Path) -> None:
    log, day = make_log(), 20220502
    # Beside cutting the future, keep one row of the day itself: its inputs must not need the others.
    first = next(row for row in log if row["date"] == day)
    cut = [row for row in log if row["date"] < day] + [first]
    whole, short = prepare_log(tmp_path, "whole", log), prepare_log(tmp_path, "short", cut)
    inputs = [name for name in whole.column_names if name not in LABELS]
    kept = np.isin(whole["time_ms"].to_numpy(), short["time_ms"].to_numpy())
    assert whole.filter(kept).select(inputs).equals(short.select(inputs))


def check_by_brute_force(table: pa.Table, tag_of_video: dict[int, int | None], rows: Column) -> None:
    """Recompute statistics of the given rows from the rows of earlier days alone, one row at a time."""
    date, user, video, tab = (numbers(table, name) for name in ("date", "user_id", "video_id", "tab"))
    play, duration = numbers(table, "play_time_ms").astype(float), numbers(table, "duration_ms").astype(float)
    outcomes = {
        "click": numbers(table, "is_click"),
        "long_view": numbers(table, "long_view"),
        "like": numbers(table, "is_like"),
        "profile_enter": numbers(table, "is_profile_enter"),
        "comments_opened": numbers(table, "comments_opened"),
        "finished": play >= duration,
        "log_play": np.log1p(play),
        "play_ratio": np.minimum(play / np.maximum(duration, 1), 1.5),
    }
    tags = np.array([-1 if tag_of_video[v] is None else tag_of_video[v] for v in video])
    columns = {n: numbers(table, n) for n in table.column_names if n.startswith(("user_", "video_", "affinity_"))}
    lists = {name: table[name] for name in ("watched", "liked", "long_viewed")}
    happened = {"watched": date > 0, "liked": outcomes["like"] == 1, "long_viewed": outcomes["long_view"] == 1}
    for i in rows:
        earlier = date < date[i]
        same = {
            "user": (earlier & (user == user[i]), earlier, 10),
            "video": (earlier & (video == video[i]), earlier, 20),
            "user_tab": (earlier & (user == user[i]) & (tab == tab[i]), earlier & (tab == tab[i]), 5),
        }
        for key, (mask, group, strength) in same.items():
            assert columns[f"{key}_impressions"][i] == mask.sum()
            prior_rows = group if group.any() else earlier
            for outcome, values in outcomes.items():
                found = columns[f"{key}_{outcome}{unit(outcome)}"][i]
                if not earlier.any():
                    assert np.isnan(found)
                    continue
                expected = (values[mask].sum() + strength * values[prior_rows].mean()) / (mask.sum() + strength)
                # Sums of up to 2e5 doubles in another order. An error of one row would be 1e-6 at the least.
                assert found == pytest.approx(expected * (100 if unit(outcome) else 1), rel=1e-9)
        for name, column in lists.items():
            listed = sum(tag_of_video[v] == tags[i] for v in column[int(i)].as_py())
            logged = (earlier & (user == user[i]) & (tags == tags[i]) & happened[name]).sum()
            assert columns[f"affinity_tag_{name}"][i] == (listed + logged if tags[i] >= 0 else 0)


def test_inputs_equal_a_count_over_earlier_days(tmp_path: Path) -> None:
    table = prepare_log(tmp_path, "source", make_log())
    tag_of_video = {
        v: None if row["tag"] is None else int(str(row["tag"]).split(",")[0]) for v, row in enumerate(videos())
    }
    check_by_brute_force(table, tag_of_video, np.arange(table.num_rows))


def test_history_columns_describe_the_lists(tmp_path: Path) -> None:
    log = make_log()
    table = prepare_log(tmp_path, "source", log)
    past = [row for row in log if row["date"] <= 20220424]
    for row in table.select(
        ["user_id", "video_id", "history_impressions", "history_likes_percent", "video_listed"]
    ).to_pylist():
        own = [old for old in past if old["user_id"] == row["user_id"]]
        assert row["history_impressions"] == len(own)
        liked = min(50, sum(old["is_like"] for old in own))
        assert row["history_likes_percent"] == pytest.approx(100 * liked / len(own))
        latest = [old for u in range(NUM_USERS) for old in [o for o in past if o["user_id"] == u][-50:]]
        assert row["video_listed"] == sum(old["video_id"] == row["video_id"] for old in latest)


@pytest.fixture(scope="module")
def real(feedrank_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    out = tmp_path_factory.mktemp("kuairand") / "out"
    prepare("kuairand", feedrank_data("kuairand_pure"), out)
    return pa.concat_tables(pq.read_table(out / f"impressions-{n}.parquet") for n in ("train", "validation", "test"))


@pytest.mark.real_data
def test_real_labels_have_the_published_counts(real: pa.Table) -> None:
    # The table in the README beside the data.
    counts = {"is_click": 93_735, "long_view": 65_882, "finished": 32_442, "comments_opened": 9_272}
    counts |= {"is_profile_enter": 3_920, "is_like": 3_628, "is_comment": 539, "is_follow": 278, "is_hate": 180}
    assert {name: int(numbers(real, name).sum()) for name in counts} == counts
    date = numbers(real, "date")
    assert [int((date <= 20220505).sum()), int((date > 20220505).sum())] == [185_061, 27_521]


@pytest.mark.real_data
def test_real_inputs_equal_a_count_over_earlier_days(real: pa.Table, feedrank_data: Callable[[str], Path]) -> None:
    source = pq.read_table(feedrank_data("kuairand_pure") / "video_features_basic.parquet", columns=["video_id", "tag"])
    tag_of_video = {
        row["video_id"]: int(row["tag"].split(",")[0]) if row["tag"] else None for row in source.to_pylist()
    }
    rows = np.random.default_rng(3).choice(real.num_rows, 60, replace=False)
    check_by_brute_force(real, tag_of_video, rows)


@pytest.mark.real_data
def test_schema_names_columns_that_are_there_and_are_known_in_advance(real: pa.Table) -> None:
    schema = FeedSchema.from_yaml(ROOT / "configs" / "schemas" / "kuairand.yaml")
    features, tasks = {f.name for f in schema.features}, {task.label for task in schema.tasks}
    assert features | tasks <= set(real.column_names)
    assert not features & set(LABELS)
    # One AUC of a single input near 1 would be a label in disguise. The best honest one is far below.
    click = numbers(real, "is_click")
    for feature in schema.features:
        if feature.kind == "number":
            values = np.nan_to_num(numbers(real, feature.name).astype(float))
            ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
            positives = int(click.sum())
            auc = (ranks[click == 1].sum() - positives * (positives - 1) / 2) / (positives * (len(click) - positives))
            assert 0.25 < auc < 0.75, feature.name


def test_recent_lists_end_before_the_day_and_have_the_latest_videos(tmp_path: Path) -> None:
    """A plain walk through the log, row by row."""
    log = make_log()
    table = prepare_log(tmp_path, "source", log)
    # By list, the flag of the rows that it goes on with, None for all.
    happened = {"watched": None, "liked": "is_like", "long_viewed": "long_view"}
    longest, grown = 0, 0
    rows = table.select(["user_id", "date", *(f"{kind}{name}" for name in happened for kind in ("", "recent_"))])
    for row in rows.to_pylist():
        for name, flag in happened.items():
            # The list of those up to 24 April ends at 50 before anything follows, which leaves the latest 50 the same.
            before = [old for old in log if old["user_id"] == row["user_id"] and old["date"] < row["date"]]
            expected = [old["video_id"] for old in before if flag is None or old[flag]][-50:]
            assert row[f"recent_{name}"] == expected
            longest = max(longest, len(expected))
            grown += row[f"recent_{name}"] != row[name]
    assert longest == 50
    assert grown > len(rows)


def test_the_schema_with_attention_is_the_other_one_with_two_features_more() -> None:
    plain, more = (
        FeedSchema.from_yaml(ROOT / "configs/schemas" / name) for name in ("kuairand.yaml", "kuairand_attention.yaml")
    )
    assert [one.query for one in more.attentions] == ["video_id"]
    added = {"recent_long_viewed", "video_id"}
    assert tuple(feature for feature in more.features if feature.name not in added) == plain.features
    assert more.tasks == plain.tasks
    assert len(more.features) == len(plain.features) + len(added)
