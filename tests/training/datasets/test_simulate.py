"""The simulated log obeys its laws, and contains no future. Files appear whole or not at all."""

import json
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.schema import FeedSchema
from training.datasets import feed_world as feed
from training.datasets import simulate as simulation
from training.datasets.simulate import FeedWorld, simulate
from training.metrics.metrics import auc

ROWS = 120_000
SCHEMA = Path(__file__).parents[3] / "configs" / "schemas" / "simulated.yaml"
# Statistics of a fixed seed are compared within four standard errors of what the laws say.
FOUR_SIGMA = 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "log"
    simulate(ROWS, 7, out, users=1000, items=500)
    return out


@pytest.fixture(scope="module")
def log(folder: Path) -> pa.Table:
    return _read(folder)


@pytest.fixture(scope="module")
def truth(folder: Path) -> pa.Table:
    return _read(folder / "truth")


def _read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table[name].to_numpy()
    return values


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_arguments_give_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(3_000, seed, tmp_path / name, users=50, items=40)
    a, b, c = (_bytes(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a)


def test_the_feed_schema_fits_the_files(log: pa.Table) -> None:
    schema = FeedSchema.from_yaml(SCHEMA)
    assert set(schema.columns()) <= set(log.column_names)
    kinds = {("id", "int64"): pa.int64(), ("id", "string"): pa.string(), ("id_list", "string"): pa.list_(pa.string())}
    dtypes = {name: table.dtype for table in schema.tables for name in table.features}
    for feature in schema.features:
        if feature.kind != "number":
            assert log.schema.field(feature.name).type == kinds[feature.kind, dtypes[feature.name]], feature.name
    assert not [name for name in log.column_names if "true" in name or "affinity" in name]
    for task in schema.tasks:
        assert log[task.label].null_count == 0


@pytest.mark.parametrize("latest", [feed.MAX_HISTORY, 70])
def test_histories_hold_the_latest_clicks_before_the_page_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latest: int
) -> None:
    """A plain walk through time, over several chunks and files, finds every history as logged."""
    monkeypatch.setattr(simulation, "CHUNK_PAGES", 97)
    monkeypatch.setattr(simulation, "ROWS_PER_FILE", 5_000)
    simulate(20_003, 3, tmp_path / "log", users=60, items=80, history=latest)
    assert len(list((tmp_path / "log").glob("*.parquet"))) > 2
    rows = _read(tmp_path / "log").to_pylist()
    assert len(rows) == 20_003
    clicked: dict[int, deque[str]] = defaultdict(lambda: deque(maxlen=latest))
    before = 0
    for page in _pages(rows):
        user, now = page[0]["user_id"], page[0]["timestamp_ms"]
        assert now > before
        before = now
        for position, row in enumerate(page):
            assert (row["user_id"], row["timestamp_ms"], row["position"]) == (user, now, position)
            assert row["history"] == list(clicked[user])
        clicked[user].extend(row["item_id"] for row in page if row["click"])
    assert max(len(row["history"]) for row in rows) == latest


def test_the_schema_with_attention_is_the_other_one_with_a_longer_list() -> None:
    plain, other = (FeedSchema.from_yaml(path) for path in (SCHEMA, SCHEMA.with_name("simulated_attention.yaml")))
    assert [(one.name, one.max_length) for one in other.attentions] == [("history", 200)]
    assert [one for one in other.features if one.name != "history"] == [
        one for one in plain.features if one.name != "history"
    ]
    assert other.tasks == plain.tasks


def _pages(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(rows), feed.PAGE):
        yield rows[start : start + feed.PAGE]


def test_position_bias_can_be_recovered_at_equal_affinity(log: pa.Table, truth: pa.Table) -> None:
    click, position = _column(log, "click"), _column(log, "position")
    at_top = _column(truth, "true_click_at_top").astype(float)
    thirds = np.digitize(at_top, np.quantile(at_top, [1 / 3, 2 / 3]))
    for third in range(3):
        rates, errors = np.empty(feed.PAGE), np.empty(feed.PAGE)
        for p in range(feed.PAGE):
            here = (thirds == third) & (position == p)
            rates[p] = click[here].mean()
            errors[p] = np.sqrt(rates[p] * (1 - rates[p]) / here.sum())
        ratios = rates / rates[0]
        ratio_errors = ratios * np.sqrt((errors / rates) ** 2 + (errors[0] / rates[0]) ** 2)
        assert np.all(np.abs(ratios[1:] - feed.PROPENSITIES[1:]) < FOUR_SIGMA * ratio_errors[1:])
        assert ratios[-1] < 0.6


@pytest.mark.parametrize("task", feed.BINARY_TASKS)
def test_labels_follow_the_true_probabilities(log: pa.Table, truth: pa.Table, task: str) -> None:
    label, probability = _column(log, task), _column(truth, f"true_{task}").astype(float)
    tenth = np.digitize(probability, np.quantile(probability, np.arange(0.1, 1, 0.1)))
    for k in range(10):
        p = probability[tenth == k]
        assert abs(label[tenth == k].sum() - p.sum()) < FOUR_SIGMA * np.sqrt((p * (1 - p)).sum())


def test_play_time_is_log_normal_around_its_law(log: pa.Table, truth: pa.Table) -> None:
    expected = np.log(_column(truth, "true_play_time_ms").astype(float)) - feed.PLAY_NOISE**2 / 2
    noise = (np.log(_column(log, "play_time_ms")) - expected) / feed.PLAY_NOISE
    # Of N normal draws: mean +- 1/sqrt(N), deviation +- 1/sqrt(2N), kurtosis +- sqrt(24/N).
    assert abs(noise.mean()) < FOUR_SIGMA / np.sqrt(ROWS)
    assert abs(noise.std() - 1) < FOUR_SIGMA / np.sqrt(2 * ROWS)
    assert abs((noise**4).mean() - 3) < FOUR_SIGMA * np.sqrt(24 / ROWS) * 2
    mean = _column(truth, "true_play_time_ms").astype(float).mean()
    assert _column(log, "play_time_ms").mean() == pytest.approx(mean, rel=0.02)


def test_affinities_have_the_stated_correlations() -> None:
    """20 topics are few, so one world strays from the law. The mean of many worlds does not."""
    found = []
    for seed in range(40):
        world = FeedWorld(seed, users=400, items=400)
        rng = np.random.default_rng(seed)
        users, items = rng.integers(0, 400, (2, 4000))
        zeros = np.zeros(4000, dtype=np.int64)
        affinity_BT = world.outcomes(users, items, zeros, zeros, zeros, np.zeros(4000)).affinity_BT
        found.append(np.corrcoef(affinity_BT.T))
        assert np.all(np.abs(affinity_BT.std(axis=0) - 1) < 0.35)
    # A world's correlations scatter by about 0.07, the mean of 40 by about 0.01.
    np.testing.assert_allclose(np.mean(found, axis=0), feed.TASK_CORRELATION, atol=0.05)


def test_labels_are_related_as_the_tasks_are(log: pa.Table) -> None:
    columns = [*(_column(log, task).astype(float) for task in feed.BINARY_TASKS), np.log(_column(log, "play_time_ms"))]
    correlation = dict(zip(feed.TASKS, np.corrcoef(columns)[feed.TASKS.index("long_view")], strict=True))
    noise = FOUR_SIGMA / np.sqrt(ROWS)
    assert correlation["play_time"] > correlation["click"] + noise
    assert correlation["click"] > correlation["like"] + noise
    assert correlation["like"] > noise
    assert correlation["hide"] < 0


@pytest.mark.parametrize("seed", [0, 1])
def test_base_rates_lie_in_their_bands(tmp_path: Path, seed: int) -> None:
    simulate(50_000, seed, tmp_path / "log")
    manifest = json.loads((tmp_path / "log" / "simulated.json").read_text())
    bands = {"click": (0.2, 0.33), "long_view": (0.25, 0.45), "like": (0.008, 0.035), "hide": (0.003, 0.02)}
    log = _read(tmp_path / "log")
    for task, (low, high) in bands.items():
        assert low < manifest["label_means"][task] < high, task
        assert _column(log, task).mean() == pytest.approx(manifest["label_means"][task])


def test_truth_ranks_better_than_popularity_and_popularity_better_than_chance(log: pa.Table, truth: pa.Table) -> None:
    is_test = _column(log, "date") == 20240114
    items, click = log["item_id"].to_numpy(), _column(log, "click")
    names, codes = np.unique(items, return_inverse=True)
    seen = np.bincount(codes[~is_test], minlength=names.size)[codes]
    of_truth = auc(click[is_test], _column(truth, "true_click")[is_test])
    of_popularity = auc(click[is_test], seen[is_test])
    assert of_truth is not None
    assert of_popularity is not None
    assert of_truth > 0.72
    assert 0.52 < of_popularity < of_truth - 0.1


def test_users_and_items_are_skewed(log: pa.Table) -> None:
    for name in ("user_id", "item_id"):
        counts = np.sort(np.unique(log[name].to_numpy(), return_counts=True)[1])[::-1]
        assert counts[: counts.size // 10].sum() > 0.3 * ROWS, name


def test_items_keep_their_catalogue_and_come_once_a_page(log: pa.Table) -> None:
    catalogue: dict[str, tuple[Any, ...]] = {}
    rows = log.select(["item_id", "creator", "topics", "duration_ms"]).slice(0, 20_000).to_pylist()
    for page in _pages(rows):
        assert len({row["item_id"] for row in page}) == len(page)
        for row in page:
            facts = (row["creator"], tuple(row["topics"]), row["duration_ms"])
            assert catalogue.setdefault(row["item_id"], facts) == facts
            assert 1 <= len(row["topics"]) <= feed.MAX_TOPICS


def test_nulls_are_where_they_are_meant_to_be(log: pa.Table) -> None:
    for name in log.column_names:
        share = log[name].null_count / ROWS
        # Nulls of users and items come in lumps: an active user without an activity weighs a lot.
        stated = feed.NULL_SHARES.get(name, 0.0)
        assert stated / 5 <= share <= stated * 3, name


def test_dates_follow_the_clock_and_every_day_has_rows(tmp_path: Path, log: pa.Table) -> None:
    days = (_column(log, "timestamp_ms").astype("datetime64[ms]")).astype("datetime64[D]")
    text = np.char.replace(days.astype(str), "-", "").astype(int)
    assert np.array_equal(text, _column(log, "date"))
    assert np.array_equal(_column(log, "timestamp_ms") // 3_600_000 % 24, _column(log, "hour"))
    simulate(simulation.MIN_ROWS, 0, tmp_path / "small", users=2, items=20)
    dates = json.loads((tmp_path / "small" / "simulated.json").read_text())["dates"]
    small = _read(tmp_path / "small")
    assert set(_column(small, "date")) == set(range(20240101, 20240115))
    assert (dates["train_last"], dates["validation"], dates["test"]) == (20240112, 20240113, 20240114)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 279}, "rows must be between 280"),
        ({"rows": 10**10}, "rows must be between"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"users": 1}, "users must be 2 or more"),
        ({"items": 19}, "items must be 20 or more"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, int], message: str
) -> None:
    valid = {"rows": 300, "seed": 0, "users": 10, "items": 30}
    with pytest.raises(ValueError, match=message):
        simulate(out=tmp_path / "log", **(valid | arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and has no simulated\.json"):
        simulate(300, 0, tmp_path, users=10, items=30)
    with pytest.raises(ValueError, match="is a file"):
        simulate(300, 0, tmp_path / "thesis.txt", users=10, items=30)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_simulation_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "log"
    simulate(300, 0, out, users=10, items=30)
    first = _bytes(out)
    with monkeypatch.context() as broken:

        def fail(*_: object) -> None:
            raise OSError("disk full")

        broken.setattr(simulation, "_write_manifest", fail)
        with pytest.raises(OSError, match="disk full"):
            simulate(300, 1, out, users=10, items=30)
    assert _bytes(out) == first
    simulate(300, 1, out, users=10, items=30)
    assert _bytes(out) != first
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize("num_candidates", [1, 60, 500])
def test_a_request_carries_what_the_schema_asks_for(log: pa.Table, num_candidates: int) -> None:
    schema = FeedSchema.from_yaml(SCHEMA)
    world = FeedWorld(7, users=1000, items=500)  # the world of the log
    body = world.request(np.random.default_rng(0), num_candidates)
    assert json.loads(json.dumps(body, allow_nan=False)) == body
    assert body == world.request(np.random.default_rng(0), num_candidates)
    assert set(body["user"]) == {feature.name for feature in schema.requested("request")}
    features = body["candidates"]["features"]
    assert set(features) == {feature.name for feature in schema.requested("candidate")}
    assert all(len(column) == num_candidates for column in features.values())
    assert len(set(body["candidates"]["id"])) == num_candidates
    catalogue = {row["item_id"]: row for row in log.slice(0, 50_000).to_pylist()}
    known = [k for k, item in enumerate(features["item_id"]) if item in catalogue]
    assert known
    for k in known:
        logged = catalogue[features["item_id"][k]]
        assert all(features[name][k] == logged[name] for name in ("creator", "topics", "duration_ms"))


def test_a_request_for_more_candidates_than_items_is_refused() -> None:
    world = FeedWorld(0, users=10, items=30)
    for num_candidates in (0, 31):
        with pytest.raises(ValueError, match="between 1 and the 30 items"):
            world.request(np.random.default_rng(0), num_candidates)
