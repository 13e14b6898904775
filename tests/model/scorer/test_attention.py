"""A published version whose history is weighed by each candidate: all ways to ask for a score agree."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.features.encoder import Encoded
from model.features.kinds.columns import Column
from model.scorer.batch_scoring import score_requests
from model.scorer.scorer import Scorer
from tests.artifacts import TINY_NETWORK, TINY_REQUEST, attention_schema, publish_artifact
from tests.items import tiny_items, values_of, write_items
from training.publish.catalogue import build_catalogue

ITEMS = tiny_items(30)
# None, one, as many as are kept, and more, of which the latest count.
HISTORIES: list[list[int]] = [[], [3], [3, 9, 4], [50, 60, 3, 9, 4]]


FEEDS = [("dot", None), ("mlp", None), ("dot", {"layers": 2}), ("mlp", {"layers": 2, "rank": 3})]


@pytest.fixture(scope="module", params=FEEDS, ids=str)
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """Behind the lists, as they are read or crossed with the other columns."""
    folder: Path = tmp_path_factory.mktemp("models")
    kind, cross = request.param
    version = publish_artifact(folder, schema=attention_schema(kind), network={**TINY_NETWORK, "cross": cross})
    build_catalogue(version, write_items(folder / "items.parquet", ITEMS))
    loaded = Scorer.load(version)
    (generation,) = loaded.catalogue_generations()
    loaded.catalogue = loaded.open_catalogue(generation)
    return loaded


def user(scorer: Scorer, history: list[int]) -> Encoded:
    return scorer.encoder.encode_request({**TINY_REQUEST["user"], "history": history})


def columns(scorer: Scorer, rows: list[int]) -> dict[str, Column]:
    values: dict[str, Any] = values_of(ITEMS, rows)
    return scorer.encoder.columns("candidate", values, len(rows))


def described(scorer: Scorer, rows: list[int]) -> Encoded:
    return scorer.encoder.encode("candidate", columns(scorer, rows), len(rows), as_served=True)


@pytest.mark.parametrize("history", HISTORIES)
def test_by_id_by_features_explained_and_in_a_batch(scorer: Scorer, history: list[int]) -> None:
    # The first one twice, and once more with a feature of the request's own.
    rows = [5, 0, 29, 5, 7, 12]
    one = user(scorer, history)
    whole = scorer.score(one, described(scorer, rows)).answers_NO
    assert (whole[0] == whole[3]).all()
    own = {"duration_ms": scorer.encoder.columns("candidate", {"duration_ms": [*[None] * 5, 77.0]}, 6)["duration_ms"]}
    named = scorer.name([f"item-{row}" for row in rows], own, {})
    assert named is not None
    by_id = scorer.score(one, named).answers_NO
    assert (by_id[0] == by_id[3]).all()
    # Sums of a catalogue are in bfloat16, if that changes no answer by more than half of COMPILED_TOLERANCE.
    np.testing.assert_allclose(by_id[:5], whole[:5], rtol=1e-3, atol=1e-3)
    assert (by_id[5] != whole[5]).any()
    explained, _ = scorer.explain(one, described(scorer, rows))
    np.testing.assert_allclose(explained.answers_NO, whole, rtol=1e-6, atol=1e-6)
    explained, _ = scorer.explain(one, named)
    np.testing.assert_allclose(explained.answers_NO[:5], whole[:5], rtol=1e-6, atol=1e-6)


def test_requests_of_a_batch_are_each_with_its_own_history(scorer: Scorer) -> None:
    rows, request_of_N = [5, 0, 29, 5, 5, 0], np.array([3, 0, 2, 1, 3, 2])
    values = {name: [value] * len(HISTORIES) for name, value in TINY_REQUEST["user"].items()}
    requests = scorer.encoder.columns("request", {**values, "history": HISTORIES}, len(HISTORIES))
    scored = score_requests(scorer, requests, len(HISTORIES), columns(scorer, rows), request_of_N)
    for position, (row, request) in enumerate(zip(rows, request_of_N.tolist(), strict=True)):
        alone = scorer.score(user(scorer, HISTORIES[request]), described(scorer, [row])).answers_NO[0]
        np.testing.assert_allclose(scored.answers_NO[position], alone, rtol=1e-6, atol=1e-6)


def test_the_latest_of_a_long_history_are_what_counts(scorer: Scorer) -> None:
    candidates = described(scorer, list(range(30)))
    answers = [scorer.score(user(scorer, history), candidates).answers_NO for history in HISTORIES]
    np.testing.assert_array_equal(answers[3], answers[2])
    assert not np.allclose(answers[1], answers[2], atol=1e-3)
    assert not np.allclose(answers[0], answers[2], atol=1e-3)


def test_compiled_sums_have_what_the_list_adds_unrounded(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def compiled(sums_NF: torch.Tensor, sums_1F: torch.Tensor) -> Any:
        asked.append(sums_NF.dtype)
        return scorer.module.answer_sums(sums_NF, sums_1F)

    named = scorer.name([f"item-{row}" for row in range(30)], {}, {})
    assert named is not None
    expected = scorer.score(user(scorer, [3, 9, 4]), named).answers_NO
    monkeypatch.setattr(scorer, "compiled_sums", compiled)
    np.testing.assert_array_equal(scorer.score(user(scorer, [3, 9, 4]), named).answers_NO, expected)
    assert asked == [torch.float32]
