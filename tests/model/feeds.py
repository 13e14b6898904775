"""Feeds for the tests of model/: one schema with every kind of feature and task, and raw rows for it.

In: a numpy Generator and how many rows. Out: JSON values by feature, as a request or a log would hold them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from model.features.encoder import FeatureEncoder, FittedFeatures
from model.features.kinds.columns import Column
from model.schema import FeedSchema

FEED = """
name: everything
features:
  - {name: user_id, side: user, kind: id, buckets: 50, dim: 8}
  - {name: history, side: user, kind: id_list, table: video_id, max_length: 4, pooling: mean}
  - {name: age, side: user, kind: number, transform: [log1p, standardise], missing: 30}
  - {name: tab, side: context, kind: id, vocabulary: [7, 0, -3], dim: 4}
  - {name: video_id, side: candidate, kind: id, buckets: 40, dim: 8}
  - {name: author, side: candidate, kind: id, dtype: string, vocabulary: fitted, min_count: 2, dim: 4}
  - {name: tags, side: candidate, kind: id_list, dtype: string, buckets: 30, dim: 4, max_length: 3, pooling: sum}
  - {name: last_tag, side: candidate, kind: id, table: tags}
  - {name: duration, side: candidate, kind: number, transform: quantile, missing: -1}
  - {name: price, side: candidate, kind: number}
  - {name: position, side: training_only, kind: id, vocabulary: [0, 1, 2], dim: 4, serving_value: 0}
  - {name: speed, side: training_only, kind: number, serving_value: 2.5}
tasks:
  - {name: click, kind: binary, label: is_click}
  - {name: like, kind: binary, label: is_like, negative_sampling_rate: 0.1}
  - {name: play_time, kind: regression, label: play_ms, transform: log1p}
  - {name: depth, kind: regression, label: depth_px}
"""
VIDEO_IDS = np.array([-(2**63), -5, 0, 1, 2, 3, 17, 2**40, 2**63 - 1])
TAGS = ["", "a", "b", "naïve", "日本", "🎬", "x" * 300]

Rows = dict[str, list[object]]


def everything() -> FeedSchema:
    """The schema above."""
    return schema_of(FEED)


def schema_of(text: str) -> FeedSchema:
    """A schema from YAML text."""
    return FeedSchema.from_mapping(yaml.safe_load(text), "test")


def write(path: Path, text: str) -> Path:
    """`path`, now holding `text`."""
    path.write_text(text, encoding="utf-8")
    return path


def random_rows(rng: np.random.Generator, rows: int) -> Rows:
    """Raw values of every feature, one in six of them null."""

    def some(make: Sequence[object]) -> list[object]:
        return [None if rng.random() < 1 / 6 else make[int(rng.integers(len(make)))] for _ in range(rows)]

    def lists(make: Sequence[object], longest: int) -> list[object]:
        return [
            None
            if rng.random() < 1 / 6
            else [make[int(rng.integers(len(make)))] for _ in range(int(rng.integers(longest + 1)))]
            for _ in range(rows)
        ]

    videos = VIDEO_IDS.tolist()
    return {
        "user_id": some(list(range(-20, 20))),
        "history": lists([*videos, None], 7),
        "age": some([0, 18, 33.5, 90]),
        "tab": some([7, 0, -3, 99]),
        "video_id": some(videos),
        "author": some(["ann", "bob", "çelik", "nobody knows"]),
        "tags": lists(TAGS, 5),
        "last_tag": some(TAGS),
        "duration": some([0, 1, 2.5, 1e4, 1e300]),
        "price": some([-1.5, 0, 3]),
        "position": some([0, 1, 2]),
        "speed": some([0.5, 1.0]),
    }


def columns_of(schema: FeedSchema, rows: Mapping[str, Sequence[object]]) -> dict[str, Column]:
    """Raw values -> columns of both blocks, training_only ones included."""
    dtypes = {name: table.dtype for table in schema.tables for name in table.features}
    return {f.name: f.column(rows[f.name], dtypes.get(f.name)) for f in schema.features}


def fitted_of(schema: FeedSchema, rows: Mapping[str, Sequence[object]]) -> FittedFeatures:
    """Fitted features of `rows`. The labels of regression tasks are made up."""
    targets = {"play_time": np.array([1.0, 2.0, 4.5]), "depth": np.array([100.0, 300.0])}
    return FittedFeatures.fit(schema, columns_of(schema, rows), targets)


def encoder_of(schema: FeedSchema, rows: Mapping[str, Sequence[object]]) -> FeatureEncoder:
    """An encoder fitted on `rows`."""
    return FeatureEncoder(schema, fitted_of(schema, rows))
