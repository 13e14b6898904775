"""Feeds unlike the built-in ones, from plain Parquet by configuration alone: train, evaluate, export, score.

Everything goes through the command line, as a user would, in this process.
"""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from model.scorer.scorer import Scorer
from training.__main__ import main

MUSIC = """
name: music
features:
  - {name: listener,  side: user,      kind: id,      dtype: string, buckets: 64, dim: 8}
  - {name: played,    side: user,      kind: id_list, dtype: string, vocabulary: fitted, min_count: 2, dim: 8,
     max_length: 4, pooling: sum}
  - {name: skipped,   side: user,      kind: id_list, table: played, max_length: 2, pooling: sum}
  - {name: track,     side: candidate, kind: id,      table: played}
  - {name: bpm,       side: candidate, kind: number,  transform: quantile, missing: 120}
tasks:
  - {name: finish,  kind: binary,     label: finished, mask: heard}
  - {name: seconds, kind: regression, label: seconds_played}
"""
SCALAR = """
name: scalar
features: [{name: price, side: candidate, kind: number, transform: standardise}]
tasks: [{name: sale, kind: binary, label: sold}]
"""
NETWORK = {"fusion": {"kind": "adatt", "levels": [8], "experts_per_task": 1}, "tower": []}


def music(rows: int) -> pa.Table:
    """Some tracks are finished often, others seldom. Slow ones play longer. The week is a float, the day a text."""
    rng = np.random.default_rng(0)
    names = np.array([f"träck-{number}" for number in range(12)])
    track, heard = rng.integers(0, 12, rows), rng.random(rows) < 0.7
    finished = rng.random(rows) < np.where(track % 2 == 0, 0.85, 0.15)
    bpm = 90 + 5 * track + rng.normal(0, 2, rows)
    day = np.sort(rng.integers(0, 28, rows))

    def lists(longest: int) -> pa.Array:
        values = [
            None if rng.random() < 0.1 else names[rng.integers(0, 12, int(rng.integers(0, longest)))].tolist()
            for _ in range(rows)
        ]
        return pa.array(values, pa.large_list(pa.string()))

    return pa.table(
        {
            "listener": pa.array([f"user/{number}" for number in rng.integers(0, 30, rows)]).dictionary_encode(),
            "played": lists(7),
            "skipped": lists(3),
            "track": names[track],
            "bpm": pa.array(bpm.astype(np.float32), mask=rng.random(rows) < 0.1),
            "finished": pa.array(finished.astype(float), mask=~heard),
            "heard": heard.astype(np.uint8),
            "seconds_played": pa.array((300 - bpm).astype(np.float32)),
            "week": 1.0 + day // 7,
            "day": [(date(2024, 2, 1) + timedelta(int(number))).isoformat() for number in day],
            "unused": ["something"] * rows,
        }
    )


MUSIC_SPLITS: list[dict[str, Any]] = [
    {"column": "week", "train": {"max": 2.0}, "validation": 3.0, "test": [4.0]},
    {"column": "day", "train": {"max": "2024-02-14"}, "validation": {"min": "2024-02-15", "max": "2024-02-21"},
     "test": {"min": "2024-02-22"}},
]  # fmt: skip


def write_files(folder: Path, schema: str, table: pa.Table, **training: Any) -> Path:
    (folder / "logs").mkdir()
    half = table.num_rows // 2
    pq.write_table(table.slice(0, half), folder / "logs" / "old.parquet")
    pq.write_table(table.slice(half), folder / "logs" / "new.parquet")
    (folder / "schema.yaml").write_text(schema, encoding="utf-8")
    content = {"schema": str(folder / "schema.yaml"), "network": NETWORK, "output": str(folder / "run"), **training}
    content["data"]["path"] = str(folder / "logs")
    (folder / "training.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "training.yaml"


def train_to_export(folder: Path, config: Path, *arguments: str) -> tuple[dict[str, Any], Scorer]:
    assert main(["train", str(config), *arguments]) == 0
    assert main(["evaluate", str(folder / "run"), "--replicates", "20"]) == 0
    assert main(["export", str(folder / "run"), "--models", str(folder / "models")]) == 0
    result = json.loads((folder / "run" / "evaluation-test.json").read_text(encoding="utf-8"))
    (version,) = (folder / "models").glob("*/1")
    return result["tasks"], Scorer.load(version)


@pytest.mark.parametrize("split", MUSIC_SPLITS, ids=["float column", "text column"])
def test_a_music_feed_is_learned_by_configuration_alone(
    tmp_path: Path, split: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_files(tmp_path, MUSIC, music(1200), data={"split": split, "group_by": "listener"}, batch_size=64)
    tasks, scorer = train_to_export(
        tmp_path,
        config,
        "--set",
        "optimizer={tables: {kind: adagrad, learning_rate: 0.1}, dense: {learning_rate: 0.01}}",
        "--set",
        "epochs=4",
    )
    # The law: whether a track is finished depends on the track alone (.85 or .15), its seconds on the bpm alone.
    assert tasks["finish"]["auc"]["value"] > 0.75
    assert tasks["finish"]["normalized_entropy"]["value"] < 0.8
    assert tasks["seconds"]["spearman"]["value"] > 0.9
    assert "log1p" not in tasks["seconds"]
    assert "finish" in capsys.readouterr().out

    request = {"listener": "a new listener", "played": ["träck-2", "never heard"], "skipped": None}
    features: dict[str, list[object]] = {
        "track": ["träck-4", "träck-5", "unknown", None],
        "bpm": [110, 115.0, None, 90],
    }
    answers_NO = scorer.score_values(request, features, 4)
    assert answers_NO[0, 0] > 0.6 > 0.4 > answers_NO[1, 0]
    assert 150 < answers_NO[0, 1] < 230
    assert np.isfinite(answers_NO).all()
    # An unknown track, a null and an absent column are one and the same to the ranker.
    one = scorer.score_values({"listener": "x"}, {"track": ["unknown"], "bpm": [120]}, 1)
    two = scorer.score_values({"listener": "x", "played": []}, {"track": [None]}, 1)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("tables", ["rowwise_adagrad", "adam"])
def test_one_number_and_one_task_without_any_table_are_a_feed(tmp_path: Path, tables: str) -> None:
    rng = np.random.default_rng(1)
    price = rng.normal(50, 20, 900)
    sold = rng.random(900) < 1 / (1 + np.exp((price - 50) / 8))
    split = np.array(["fit"] * 600 + ["check"] * 150 + ["test"] * 150)
    table = pa.table({"price": price, "sold": sold, "part": pa.array(split).dictionary_encode()})
    data = {"split": {"column": "part", "train": "fit", "validation": "check", "test": "test"}}
    config = write_files(tmp_path, SCALAR, table, data=data, batch_size=32)
    changes = [f"optimizer.tables.kind={tables}", "optimizer.dense.learning_rate=0.02", "epochs=5"]
    tasks, scorer = train_to_export(tmp_path, config, *(part for change in changes for part in ("--set", change)))
    assert tasks["sale"]["auc"]["value"] > 0.8
    assert tasks["sale"]["gauc"]["value"] is None  # every row is its own group
    answers_NO = scorer.score_values({}, {"price": [10, 50, 90]}, 3)
    assert answers_NO[0, 0] > 0.85
    assert answers_NO[1, 0] == pytest.approx(0.5, abs=0.2)
    assert answers_NO[2, 0] < 0.15
