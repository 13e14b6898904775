"""A model whose history is weighed by each candidate, over HTTP: every way to ask gives the same answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.artifacts import TINY_REQUEST, attention_schema, publish_artifact
from tests.items import tiny_items, values_of, write_items
from tests.service.in_process import client_of
from tests.service.open_inference.tensors import infer, outputs_of, tensors_of
from training.publish.catalogue import build_catalogue

ITEMS = tiny_items(30)
PICKED = [4, 0, 29, 4, 7]
IDS = [f"item-{n}" for n in PICKED]
HISTORIES: list[list[int]] = [[], [3, 9, 4]]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = tmp_path_factory.mktemp("served")
    version = publish_artifact(folder / "models", schema=attention_schema())
    build_catalogue(version, write_items(folder / "items.parquet", ITEMS))
    with client_of(folder / "models") as client:
        yield client


def question(history: list[int], features: dict[str, list[Any]] | None) -> dict[str, Any]:
    """A request by ids alone, or with features."""
    candidates = {"id": IDS, **({} if features is None else {"features": features})}
    return {"user": {**TINY_REQUEST["user"], "history": history}, "candidates": candidates}


def clicks(answer: dict[str, Any]) -> dict[str, float]:
    """The first task's answers by candidate. Repeats are equal."""
    found: dict[str, float] = {}
    for name, value in zip(answer["candidates"]["id"], answer["candidates"]["tasks"]["click"], strict=True):
        assert found.setdefault(name, value) == value
    return found


@pytest.mark.parametrize("history", HISTORIES)
def test_every_way_to_ask_gives_the_same_answers(client: TestClient, history: list[int]) -> None:
    described = question(history, values_of(ITEMS, PICKED))
    expected = clicks(client.post("/v1/rank", json=described).json())
    explained = clicks(client.post("/v1/rank", json={**described, "explain": True}).json())
    assert explained == pytest.approx(expected, abs=1e-6)
    # A catalogue's sums are in bfloat16 where that changes no answer by more than this.
    by_id = clicks(client.post("/v1/rank", json=question(history, None)).json())
    assert by_id == pytest.approx(expected, abs=1e-3)
    explained = clicks(client.post("/v1/rank", json={**question(history, None), "explain": True}).json())
    assert explained == pytest.approx(expected, abs=1e-3)
    tensors = outputs_of(infer(client, tensors_of(described)))["click"]
    np.testing.assert_allclose(tensors, [expected[name] for name in IDS], atol=1e-6)


def test_requests_of_a_batch_are_each_with_its_own_history(client: TestClient) -> None:
    requests = [question(history, features) for history in HISTORIES for features in (values_of(ITEMS, PICKED), None)]
    answers = client.post("/v1/rank:batch", json={"requests": requests}).json()["answers"]
    alone = [clicks(client.post("/v1/rank", json=request).json()) for request in requests]
    for together, expected in zip(map(clicks, answers), alone, strict=True):
        assert together == pytest.approx(expected, abs=1e-6)
    assert alone[0] != pytest.approx(alone[2], abs=1e-3)
