"""A warm start of lists with attention: what weighs them is taken where it means the same, and said where not."""

import numpy as np
import pytest

from tests.training.start.test_warm_start import FEATURES, logits, parent_of, schema_with, started

UNITS = "activation units of lists"
TWIN = "  - {name: city, side: candidate, kind: id, table: item}\n"


def features(**keys: str) -> str:
    """The feed whose list is weighed by each candidate, with a second id of its table."""
    given = "".join(f", {key}: {value}" for key, value in keys.items())
    return FEATURES.replace("pooling: mean", f"pooling: attention{given}") + TWIN


@pytest.mark.parametrize("name", ["shared_bottom", "own_embeddings"])
@pytest.mark.parametrize("attention", ["dot", "mlp"])
def test_the_same_lists_give_the_same_answers(name: str, attention: str) -> None:
    schema = schema_with(features(attention=attention, query="item"))
    parent, ranker = parent_of(name, schema)
    child, fitted, taken = started(parent, schema)
    for task, expected in logits(ranker, schema, fitted).items():
        np.testing.assert_array_equal(logits(child, schema, fitted)[task], expected)
    assert {one.state for one in taken} == {"taken"}
    assert (UNITS in {one.name for one in taken}) == (attention == "mlp")


def test_a_longer_list_is_the_same_and_another_query_or_kind_is_not() -> None:
    before = schema_with(features(attention="mlp", query="item"))
    parent, _ = parent_of("shared_bottom", before)
    for text, why in (
        (features(attention="mlp", query="item").replace("max_length: 3", "max_length: 9"), ""),
        (features(attention="mlp", query="city"), "attention was mlp, by item"),
        (features(attention="dot", query="item"), "attention was mlp, by item"),
    ):
        _, _, taken = started(parent, schema_with(text))
        states = {one.name: (one.state, one.why) for one in taken}
        assert states["seen"] == ("fresh" if why else "taken", why)
        if "mlp" in text:
            assert states[UNITS][0] == ("fresh" if why else "taken")
