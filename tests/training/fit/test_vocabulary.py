"""Fitting beforehand: the same as fitting at once, after any end midway, with a report that a slow count agrees
with."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray

from model.features.encoder import FittedFeatures
from model.features.id_counts import IntegerCounts
from model.schema import FeedSchema
from tests.model.features.test_encoder import split_mix_64
from tests.training_data import SCHEMA, Json, feed_table, training_file
from training.__main__ import main
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import fit_features, read_splits
from training.fit.fitted_file import read_fitted
from training.fit.fitting import Piece, fit_log, fit_piece
from training.fit.id_report import IDS, as_markdown, expected_sharing, recommended_buckets, table_reports
from training.fit.vocabulary import build_vocabulary
from training.run.run import Run
from training.train import train

ROWS = 3000


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    """A log of two files with row groups of 200 rows, read in pieces of 500 at most."""
    (tmp_path / "data").mkdir()
    table = feed_table(ROWS)
    for part, start in enumerate(range(0, ROWS, 1500)):
        pq.write_table(table.slice(start, 1500), tmp_path / "data" / f"part-{part}.parquet", row_group_size=200)
    monkeypatch.setattr("training.fit.fitting.PIECE_ROWS", 500)
    return TrainingConfig.load(training_file(tmp_path))


def at_once(config: TrainingConfig) -> FittedFeatures:
    schema = config.feed_schema()
    table = read_splits(config.data, schema, ("train",))["train"]
    return fit_features(schema, table, columns_from_arrow(schema, table))


def assert_close(one: FittedFeatures, other: FittedFeatures) -> None:
    assert one.vocabularies == other.vocabularies
    for name, steps in other.numbers.items():
        for got, step in zip(one.numbers[name], steps, strict=True):
            assert (got.transform, got.knots) == (step.transform, step.knots)
            np.testing.assert_allclose([got.mean, got.scale], [step.mean, step.scale], rtol=1e-12)
    for name, scale in other.targets.items():
        np.testing.assert_allclose(
            [one.targets[name].mean, one.targets[name].scale], [scale.mean, scale.scale], rtol=1e-12
        )


def test_the_file_holds_what_fitting_at_once_does(config: TrainingConfig) -> None:
    out = build_vocabulary(config, show=False)
    assert out == config.output.with_name("run-fitted") / "fitted_features.json"
    assert_close(read_fitted(out, config.feed_schema()), at_once(config))
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "fitted_features-report.json",
        "fitted_features-report.md",
        "fitted_features.json",
    ]


def test_processes_change_nothing(config: TrainingConfig, tmp_path: Path) -> None:
    schema = config.feed_schema()
    one, two = (
        fit_log(config.data, schema, "train", tmp_path / str(processes), processes=processes).arrays()
        for processes in (1, 2)
    )
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)


class Killed(BaseException):
    """Ends a fit where nothing catches it."""


def counted(monkeypatch: pytest.MonkeyPatch, last: int) -> list[Piece]:
    """The pieces that are read from now on. The one after the `last` kills the fit."""
    read: list[Piece] = []

    def counting(*arguments: object) -> Piece:
        if len(read) == last:
            raise Killed
        read.append(fit_piece(*arguments))  # type: ignore[arg-type]
        return read[-1]

    monkeypatch.setattr("training.fit.fitting.fit_piece", counting)
    return read


def test_a_killed_fit_reads_no_piece_twice(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_vocabulary(config, tmp_path / "whole" / "f.json", show=False).read_bytes()
    out = tmp_path / "killed" / "f.json"
    before = counted(monkeypatch, 3)
    with pytest.raises(Killed):
        build_vocabulary(config, out, show=False)
    assert not out.exists()
    after = counted(monkeypatch, 1000)
    build_vocabulary(config, out, show=False)
    assert len(before) == 3
    assert len(after) >= 2
    assert not {piece.kept for piece in before} & {piece.kept for piece in after}
    assert out.read_bytes() == whole


@pytest.mark.parametrize("damage", [lambda content: content[:-40], lambda content: b"", lambda content: content[::-1]])
def test_a_damaged_piece_is_read_again(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    whole = build_vocabulary(config, tmp_path / "whole" / "f.json", show=False).read_bytes()
    before = counted(monkeypatch, 2)
    with pytest.raises(Killed):
        build_vocabulary(config, tmp_path / "f.json", show=False)
    before[0].kept.write_bytes(damage(before[0].kept.read_bytes()))
    after = counted(monkeypatch, 1000)
    build_vocabulary(config, tmp_path / "f.json", show=False)
    assert before[0].kept in {piece.kept for piece in after}
    assert before[1].kept not in {piece.kept for piece in after}
    assert (tmp_path / "f.json").read_bytes() == whole


def test_a_changed_file_is_read_again_and_another_min_count_reads_nothing(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(monkeypatch, 6)
    with pytest.raises(Killed):
        build_vocabulary(config, tmp_path / "f.json", show=False)
    schema = SCHEMA.replace("vocabulary: fitted", "vocabulary: fitted, min_count: 40")
    training_file(tmp_path, schema=schema)
    again = counted(monkeypatch, 1000)
    build_vocabulary(config, tmp_path / "f.json", show=False)
    assert not any(piece.file == 0 for piece in again)
    assert_close(read_fitted(tmp_path / "f.json", config.feed_schema()), at_once(config))
    counted(monkeypatch, 6)
    with pytest.raises(Killed):
        build_vocabulary(config, tmp_path / "f.json", show=False)
    pq.write_table(feed_table(ROWS, seed=5).slice(0, 1500), tmp_path / "data" / "part-0.parquet", row_group_size=200)
    again = counted(monkeypatch, 1000)
    build_vocabulary(config, tmp_path / "f.json", show=False)
    assert any(piece.file == 0 for piece in again)
    assert_close(read_fitted(tmp_path / "f.json", config.feed_schema()), at_once(config))


def slow_report(config: TrainingConfig) -> dict[str, Json]:
    """The shares of tables `user_id` (hashed) and `video` (fitted), by counting in Python."""
    splits = read_splits(config.data, config.feed_schema(), ("train", "validation"))
    users, videos = {}, {}
    for split, table in splits.items():
        users[split] = table.column("user_id").to_pylist()
        videos[split] = table.column("video").to_pylist()
        videos[split] += [video for history in table.column("history").to_pylist() for video in history or []]
    occurrences = Counter(users["train"])
    buckets = Counter(split_mix_64(user) % 100 for user in occurrences)
    sharing = [user for user in occurrences if buckets[split_mix_64(user) % 100] > 1]
    video_counts = Counter(videos["train"])
    kept = {video for video, count in video_counts.items() if count >= 190}
    return {
        "user_id": {
            "occurrences": len(users["train"]),
            "distinct": len(occurrences),
            "unseen": np.mean([user not in occurrences for user in users["validation"]]),
            "oov_train": 0.0,
            "oov_validation": 0.0,
            "ids": len(sharing) / len(occurrences),
            "of_occurrences": sum(occurrences[user] for user in sharing) / len(users["train"]),
        },
        "video": {
            "occurrences": len(videos["train"]),
            "distinct": len(video_counts),
            "unseen": np.mean([video not in video_counts for video in videos["validation"]]),
            "oov_train": np.mean([video not in kept for video in videos["train"]]),
            "oov_validation": np.mean([video not in kept for video in videos["validation"]]),
        },
    }


def assert_report(tables: list[Json], expected: dict[str, Json]) -> None:
    found = {table["name"]: table for table in tables}
    for name, shares in expected.items():
        for key in ("occurrences", "distinct", "unseen", "oov_train", "oov_validation"):
            assert found[name][key] == pytest.approx(shares[key], abs=1e-12), (name, key)
    assert found["video"]["collisions"] is None
    assert found["user_id"]["collisions"]["ids"] == pytest.approx(expected["user_id"]["ids"])
    assert found["user_id"]["collisions"]["occurrences"] == pytest.approx(expected["user_id"]["of_occurrences"])


def test_both_reports_are_what_a_slow_count_finds(config: TrainingConfig, tmp_path: Path) -> None:
    """New users and videos on the validation day, and a threshold that some videos do not reach."""
    table = feed_table(ROWS)
    is_new = np.array(table.column("day").to_pylist()) == 5
    users = np.array(table.column("user_id").to_pylist()) + np.where(is_new, 20, 0)
    table = table.set_column(table.schema.get_field_index("user_id"), "user_id", pa.array(users))
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    pq.write_table(table, tmp_path / "data" / "all.parquet", row_group_size=300)
    training_file(tmp_path, schema=SCHEMA.replace("vocabulary: fitted", "vocabulary: fitted, min_count: 190"))
    expected = slow_report(config)
    assert expected["video"]["oov_train"] > 0
    assert expected["user_id"]["unseen"] > 0
    out = build_vocabulary(config, show=False)
    assert_report(json.loads(out.with_name("fitted_features-report.json").read_text())["tables"], expected)
    page = out.with_name("fitted_features-report.md").read_text()
    assert f"| user_id | user_id | 101 x 4 | {expected['user_id']['occurrences']:,} |" in page
    run = train(config.model_copy(update={"epochs": 1}), show=False)
    assert_report(json.loads((run.path / IDS).read_text())["tables"], expected)


def test_a_report_on_too_many_ids_is_an_estimate_of_the_exact_one() -> None:
    generator = np.random.default_rng(0)
    content = yaml.safe_load(SCHEMA)
    schema = FeedSchema.from_mapping({**content, "features": [{**content["features"][0], "side": "candidate"}]}, "test")
    splits = (generator.integers(0, 40_000, 60_000), generator.integers(10_000, 50_000, 30_000))
    [whole], [estimate] = (
        table_reports(schema, FittedFeatures(), *({"user_id": counts_of(values, most)} for values in splits))
        for most in (10**6, 2000)
    )
    assert whole.sampled == 1
    assert estimate.sampled < 0.1
    assert (estimate.occurrences, estimate.oov_train, estimate.oov_validation) == (60_000, 0, 0)
    # About 1,500 ids are drawn: five standard errors.
    assert estimate.distinct == pytest.approx(whole.distinct, rel=5 / np.sqrt(1000))
    assert estimate.unseen == pytest.approx(whole.unseen, abs=5 * 0.5 / np.sqrt(1000))
    assert estimate.collisions is not None
    assert whole.collisions is not None
    assert estimate.collisions.ids is None
    assert estimate.collisions.expected == pytest.approx(whole.collisions.expected, abs=1e-6)
    assert "about " in as_markdown([estimate], 60_000, 30_000)


def counts_of(values: NDArray[np.int64], most: int) -> IntegerCounts:
    counts = IntegerCounts(most, sampled=True)
    counts.add(values)
    return counts


@pytest.mark.parametrize(("ids", "buckets", "hashes"), [(400, 1000, 1), (2000, 40, 2), (1, 5, 1), (3, 1, 2), (0, 4, 1)])
def test_expected_sharing_is_what_chance_does(ids: int, buckets: int, hashes: int) -> None:
    generator = np.random.default_rng(0)
    places = buckets**hashes
    shares = []
    for _ in range(200):
        drawn = generator.integers(0, places, ids)
        shares.append(float((np.bincount(drawn, minlength=places)[drawn] > 1).mean()) if ids else 0.0)
    # Five standard errors of 200 draws, none where the answer is certain.
    error = 5 * np.std(shares) / np.sqrt(200) + 1e-9
    assert expected_sharing(ids, buckets, hashes) == pytest.approx(np.mean(shares), abs=error)


@pytest.mark.parametrize("ids", [1, 2, 1000, 10**6, 10**9])
def test_recommended_buckets_leave_a_tenth_sharing(ids: int) -> None:
    for hashes in (1, 2):
        buckets = recommended_buckets(ids, hashes)
        assert expected_sharing(ids, buckets, hashes) <= 0.1 * (1 + 1e-9)  # float64 rounds where buckets are billions
    assert ids <= 2 or expected_sharing(ids, recommended_buckets(ids, 1) - 1, 1) > 0.1


def test_training_takes_the_fitted_file(config: TrainingConfig) -> None:
    out = build_vocabulary(config, show=False)
    with_file = config.model_copy(update={"fitted": out, "epochs": 1})
    run = train(with_file, show=False)
    assert run.fitted == read_fitted(out, config.feed_schema())
    assert Run.open(run.path).fitted == run.fitted


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("vocabulary: fitted", "vocabulary: fitted, min_count: 3", "vocabularies: video was fitted for"),
        ("table: video", "buckets: 9, dim: 4", "vocabularies: video was fitted for"),
        ("missing: 9", "missing: 8", "numbers: duration was fitted for"),
        ("[log1p, standardise]", "[log1p, quantile]", "numbers: duration was fitted for"),
        ("label: watch_ms, transform: log1p", "label: watch_ms", "targets: watch was fitted for"),
    ],
)
def test_a_file_fitted_for_something_else_is_refused(
    config: TrainingConfig, old: str, new: str, part: str, tmp_path: Path
) -> None:
    out = build_vocabulary(config, show=False)
    changed = FeedSchema.from_mapping(yaml.safe_load(SCHEMA.replace(old, new)), "test")
    with pytest.raises(ValueError, match=part):
        read_fitted(out, changed)
    # What is not fitted may change.
    other = SCHEMA.replace("buckets: 100", "buckets: 70").replace("[home, follow]", "[home]")
    assert read_fitted(out, FeedSchema.from_mapping(yaml.safe_load(other), "test")).targets


def test_fewer_tasks_take_the_file_of_all(config: TrainingConfig) -> None:
    out = build_vocabulary(config, show=False)
    assert read_fitted(out, config.feed_schema().with_tasks(["click"])).targets == {}


def test_the_command(config: TrainingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "there" / "f.json"
    assert main(["vocabulary", str(tmp_path / "training.yaml"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    for arguments, message in (
        (["--processes", "0"], "--processes 0: must be at least 1"),
        (["--set", "data.path=/nowhere"], "no *.parquet file here"),
    ):
        assert main(["vocabulary", str(tmp_path / "training.yaml"), *arguments]) == 2
        assert message in capsys.readouterr().err
    for content in ("{", "{}", '{"made_for": {}, "fitted": 3}'):
        out.write_text(content)
        assert main(["train", str(tmp_path / "training.yaml"), "--set", f"fitted={out}"]) == 2
        assert str(out) in capsys.readouterr().err


def test_the_folder_of_a_run_is_not_written_to(config: TrainingConfig, finished_run: Run) -> None:
    with pytest.raises(ValueError, match="is the folder of a run"):
        build_vocabulary(config, finished_run.path / "fitted_features.json", show=False)
