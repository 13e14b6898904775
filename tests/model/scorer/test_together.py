"""Requests that are scored together against each of them alone, with and without a catalogue."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.features.encoder import Encoded
from model.schema import FeedSchema
from model.scorer.scorer import NamedCandidates, Scored, Scorer
from model.scorer.together import FEW_CANDIDATES, ROWS_OF_A_CALL, score_together
from tests.artifacts import TINY_REQUEST, attention_schema, publish_artifact, tiny_schema
from tests.items import tiny_items, write_items
from training.publish.catalogue import build_catalogue

ITEMS = tiny_items(30)
Request = tuple[Encoded, Encoded | NamedCandidates]


@pytest.fixture(scope="module", params=[tiny_schema, attention_schema], ids=["mean", "attention"])
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder: Path = tmp_path_factory.mktemp("models")
    schema: FeedSchema = request.param()
    version = publish_artifact(folder, schema=schema)
    build_catalogue(version, write_items(folder / "items.parquet", ITEMS))
    loaded = Scorer.load(version)
    (generation,) = loaded.catalogue_generations()
    loaded.catalogue = loaded.open_catalogue(generation)
    return loaded


def user(scorer: Scorer, number: int) -> Encoded:
    return scorer.encoder.encode_request({**TINY_REQUEST["user"], "user_id": number, "history": list(range(number))})


def described(scorer: Scorer, rows: Sequence[int]) -> Encoded:
    """Some of the items by their features."""
    columns = {name: [column[row] for row in rows] for name, column in ITEMS.items() if name != "id"}
    parsed = scorer.encoder.columns("candidate", columns, len(rows))
    return scorer.encoder.encode("candidate", parsed, len(rows), as_served=True)


def named(scorer: Scorer, ids: Sequence[str], **features: Any) -> NamedCandidates:
    found = scorer.name(ids, scorer.encoder.columns("candidate", features, len(ids)), {})
    assert found is not None
    return found


def assert_alike(scorer: Scorer, requests: Sequence[Request]) -> list[Scored]:
    together = score_together(scorer, requests)
    for (request, candidates), scored in zip(requests, together, strict=True):
        alone = scorer.score(request, candidates)
        np.testing.assert_allclose(scored.answers_NO, alone.answers_NO, rtol=1e-6, atol=1e-6)
        assert (scored.missing, scored.oov) == (alone.missing, alone.oov)
    return together


def test_many_users_and_equal_candidates(scorer: Scorer) -> None:
    rows: list[list[int]] = np.random.default_rng(0).integers(0, 30, (7, 25)).tolist()
    together = assert_alike(scorer, [(user(scorer, n), described(scorer, rows[n][: 1 + 4 * n])) for n in range(7)])
    for n, scored in enumerate(together):
        for row in range(1 + 4 * n):
            first = rows[n].index(rows[n][row])
            assert (scored.answers_NO[row] == scored.answers_NO[first]).all()
    # The same candidates of other users have other answers.
    one, other = assert_alike(scorer, [(user(scorer, n), described(scorer, [1, 2])) for n in (1, 2)])
    assert (one.answers_NO != other.answers_NO).any()


def test_items_of_the_catalogue_beside_described_ones(scorer: Scorer) -> None:
    requests: list[Request] = [
        (user(scorer, 1), named(scorer, ["item-1", "item-2", "item-1"])),
        (user(scorer, 2), described(scorer, [3, 1])),
        (user(scorer, 3), named(scorer, ["item-2", "new"], duration_ms=[None, 5.0])),
        (user(scorer, 4), named(scorer, ["x", "y"], **{k: [v[0], v[1]] for k, v in ITEMS.items() if k != "id"})),
    ]
    assert_alike(scorer, requests)
    assert_alike(scorer, requests[::-1])
    assert_alike(scorer, requests[:1])


def test_requests_of_few_and_of_many_candidates(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    many = list(range(FEW_CANDIDATES + 4))
    requests: list[Request] = [
        (user(scorer, 1), described(scorer, [4, 5])),
        (user(scorer, 2), described(scorer, many)),
        (user(scorer, 3), named(scorer, [f"item-{number}" for number in many])),
        (user(scorer, 4), described(scorer, [*many, 0, 1, 0])),
        (user(scorer, 5), described(scorer, many[: FEW_CANDIDATES + 1])),
    ]
    scored = assert_alike(scorer, requests)
    assert (scored[3].answers_NO[0] == scored[3].answers_NO[-1]).all()
    assert (scored[3].answers_NO[0] == scored[3].answers_NO[-3]).all()
    assert (scored[3].answers_NO[0] != scored[1].answers_NO[0]).any()  # the item of another user
    alone: list[int] = []
    score = scorer.score

    def counted(request: Encoded, candidates: Encoded | NamedCandidates) -> Scored:
        scored = score(request, candidates)
        alone.append(len(scored.answers_NO))
        return scored

    monkeypatch.setattr(scorer, "score", counted)
    score_together(scorer, requests)
    assert alone == [len(many)]  # those that the catalogue has


def test_more_candidates_than_a_call_takes(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(range(30))
    requests: list[Request] = [(user(scorer, n), described(scorer, rows)) for n in range(20)]
    assert_alike(scorer, requests)
    monkeypatch.setattr("model.scorer.together.ROWS_OF_A_CALL", 70)
    assert_alike(scorer, requests[:5])
    monkeypatch.setattr("model.scorer.together.ROWS_OF_A_CALL", 10)  # fewer than one request has
    assert_alike(scorer, requests[:5])
    assert len(rows) * len(requests) > ROWS_OF_A_CALL


def test_compiled_code_takes_one_user_a_call(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def compiled(rows_ND: Any, sums_1F: Any) -> Any:
        rows.append(len(sums_1F))
        return scorer.module(rows_ND, sums_1F)

    monkeypatch.setattr(scorer, "compiled", compiled)
    score_together(scorer, [(user(scorer, n), described(scorer, [n, n + 1])) for n in range(3)])
    assert rows == [1, 1, 1]
