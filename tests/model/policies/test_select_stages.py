"""The `select:` part of a policy: what is refused, and how."""

from typing import Any

import pytest

from model.policies.select_stages import Select
from model.schema import FeedSchema

SCHEMA = FeedSchema.model_validate(
    {
        "name": "feed",
        "features": [
            {"name": "user_id", "side": "user", "kind": "id", "buckets": 10, "dim": 4},
            {"name": "item_id", "side": "candidate", "kind": "id", "buckets": 10, "dim": 4},
            {"name": "topics", "side": "candidate", "kind": "id_list", "table": "item_id", "max_length": 3},
            {"name": "age", "side": "candidate", "kind": "number", "missing": 0},
        ],
        "tasks": [{"name": "click", "kind": "binary", "label": "is_click"}],
    }
)
CAP: dict[str, Any] = {"per": "item_id", "count": 2, "within": 10}
MMR: dict[str, Any] = {"lambda": 0.7, "head": 50, "by": "item_id"}
EXPLORE: dict[str, Any] = {"temperature": 0.5, "head": 20, "share": 0.1}


def test_all_stages_are_read() -> None:
    select = Select.from_mapping({"cap": {**CAP, "else": "drop"}, "mmr": MMR, "explore": EXPLORE}, "p.yaml: select")
    assert select.cap is not None
    assert select.mmr is not None
    assert (select.cap.otherwise, select.mmr.weight) == ("drop", 0.7)
    select.check_features(SCHEMA)
    relaxed = Select.from_mapping({"cap": CAP}, "p.yaml: select").cap
    assert relaxed is not None
    assert relaxed.otherwise == "relax"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({}, "select needs one of cap, mmr, explore"),
        ({"caps": CAP}, "unknown key 'caps'; did you mean 'cap'?"),
        ({"cap": {**CAP, "count": 0}}, "cap.count: Input should be greater than or equal to 1 (got 0)"),
        ({"cap": {**CAP, "count": 10}}, "count 10 of 10 places caps nothing; count must be less than within"),
        ({"cap": {**CAP, "else": "ignore"}}, "cap.else: Input should be 'relax' or 'drop' (got 'ignore')"),
        ({"cap": {**CAP, "otherwise": "drop"}}, "unknown key 'otherwise'"),
        ({"mmr": {**MMR, "lambda": 0}}, "mmr.lambda: Input should be greater than 0 (got 0)"),
        ({"mmr": {**MMR, "lambda": 1.5}}, "mmr.lambda: Input should be less than or equal to 1"),
        ({"mmr": {**MMR, "lambda": True}}, "lambda: got true or false"),
        ({"explore": {**EXPLORE, "temperature": 0}}, "explore.temperature: Input should be greater than 0"),
        ({"explore": {**EXPLORE, "temperature": float("nan")}}, "explore.temperature: Input should be a finite number"),
        ({"explore": {**EXPLORE, "share": 2}}, "explore.share: Input should be less than or equal to 1 (got 2)"),
        ({"explore": {**EXPLORE, "head": 0}}, "explore.head: Input should be greater than or equal to 1 (got 0)"),
    ],
)
def test_faulty_stages_are_refused(stages: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"p\.yaml: select: ") as refused:
        Select.from_mapping(stages, "p.yaml: select")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            {"cap": {**CAP, "per": "item"}},
            "select.cap.per: unknown candidate id feature 'item'; did you mean 'item_id'?",
        ),
        ({"cap": {**CAP, "per": "user_id"}}, "select.cap.per: unknown candidate id feature 'user_id'"),
        ({"cap": {**CAP, "per": "topics"}}, "select.cap.per: unknown candidate id feature 'topics'"),
        ({"mmr": {**MMR, "by": "age"}}, "select.mmr.by: unknown candidate id feature 'age'"),
    ],
)
def test_features_that_are_no_candidate_ids_are_refused(stages: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="select") as refused:
        Select.from_mapping(stages, "p.yaml: select").check_features(SCHEMA)
    assert message in str(refused.value)
