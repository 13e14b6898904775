"""Raw values of candidates: the request's, then the catalogue's, then the default, against JSON values."""

import math
from typing import Any

import numpy as np
import pytest
import xxhash

from model.policies.candidates import CandidateValues, Readable
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact, tiny_schema
from tests.items import tiny_items, write_items
from training.publish.catalogue import build_catalogue

ITEMS = tiny_items(40)
NO_MASKS: dict[str, Any] = {}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = tmp_path_factory.mktemp("models")
    version = publish_artifact(folder)
    build_catalogue(version, write_items(folder / "items.parquet", ITEMS))
    scorer = Scorer.load(version)
    [place] = scorer.catalogue_generations()
    scorer.catalogue = scorer.open_catalogue(place)
    return scorer


def word_of(value: int | str | None) -> int | None:
    """A string's hash as the two's complement of its 64 bits."""
    if not isinstance(value, str):
        return value
    word = xxhash.xxh3_64_intdigest(value.encode())
    return word - 2**64 if word >= 2**63 else word


def words_in(values: CandidateValues, feature: str) -> list[int | None]:
    words = values.words(feature)
    return [word if has_id else None for word, has_id in zip(*map(np.ndarray.tolist, words), strict=True)]


@pytest.mark.parametrize("is_named", [False, True], ids=["features", "catalogue"])
def test_values_are_those_of_the_request_then_of_the_catalogue_then_the_default(scorer: Scorer, is_named: bool) -> None:
    ids = [f"item-{n}" for n in range(0, 40, 2)] + ["nobody", "item-1"]
    known: list[dict[str, Any]] = [
        {name: ITEMS[name][int(one.removeprefix("item-"))] for name in ITEMS} if one != "nobody" else {} for one in ids
    ]
    features: dict[str, list[Any]] = {
        "video_id": [None, 5, -7, 2**53 + 1] + [None] * (len(ids) - 4),
        "tag": [None, None, "new"] + [None] * (len(ids) - 3),
        "duration_ms": [1.5, None, 0.0] + [None] * (len(ids) - 3),
    }
    columns = scorer.encoder.columns("candidate", features, len(ids))
    named = scorer.name(ids, columns, NO_MASKS) if is_named else None
    values = CandidateValues(Readable.of(scorer.schema), columns, ids, named)

    def expected(feature: str) -> list[Any]:
        item_values = [row.get(feature) if is_named else None for row in known]
        return [
            given if given is not None else item for given, item in zip(features[feature], item_values, strict=True)
        ]

    for feature in ("video_id", "tag"):
        assert words_in(values, feature) == [word_of(value) for value in expected(feature)]
    # Integers beyond 2^53 are numbers as a float64 has them.
    numbers = [math.nan if value is None else float(value) for value in expected("video_id")]
    np.testing.assert_array_equal(values.numbers("video_id"), numbers)
    # 0 is what the schema gives for a number that is missing.
    np.testing.assert_array_equal(values.numbers("duration_ms"), [value or 0.0 for value in expected("duration_ms")])
    assert words_in(values, "id") == [word_of(one) for one in ids]


def test_candidates_by_ids_alone_have_the_catalogues_values(scorer: Scorer) -> None:
    ids = ["item-3", "item-0", "item-3"]
    values = CandidateValues(Readable.of(scorer.schema), {}, ids, scorer.name(ids, {}, NO_MASKS))
    assert words_in(values, "tag") == [word_of(ITEMS["tag"][n]) for n in (3, 0, 3)]
    assert values.numbers("duration_ms").tolist() == [ITEMS["duration_ms"][n] or 0.0 for n in (3, 0, 3)]


def test_single_candidate_features_are_readable() -> None:
    readable = Readable.of(tiny_schema())
    assert readable.ids.keys() == {"video_id", "tag"}
    assert readable.integers == {"video_id"}
    assert readable.numbers.keys() == {"duration_ms"}
