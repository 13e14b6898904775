"""Edits of value_models.yaml: one entry is another, and every other character stays."""

from typing import Any

import pytest
import yaml

from model.value_models.entry_edit import with_entry

NEW: dict[str, Any] = {"kind": "weighted_sum", "weights": {"click": 2.5, "rating.good": -1e-7}}
BLOCK = """\
# Weights of the feed.
default:            # as agreed in May
  kind: weighted_sum
  weights:
    click: 1.0      # the unit
    like: 13.5

# Tried in June.

custom: {kind: expression, formula: "click * (1 + 4 * like)"}   # short
last:
    kind: weighted_product
    exponents: {click: 0.6}
# The end.
"""
FLOW = "{default: {kind: weighted_sum, weights: {click: 1}}, other: {kind: expression, formula: click}}  # all\n"


@pytest.mark.parametrize("name", ["default", "custom", "last", "new", "no"])
@pytest.mark.parametrize("text", [BLOCK, FLOW, BLOCK.rstrip("\n"), BLOCK.replace("\n", "\r\n")])
def test_one_entry_is_another_and_the_others_are_equal(name: str, text: str) -> None:
    edited = with_entry(text.encode(), name, NEW, "f").decode()
    assert yaml.safe_load(edited) == {**yaml.safe_load(text), name: NEW}
    # Twice is once.
    assert with_entry(edited.encode(), name, NEW, "f").decode() == edited


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("default", "kind: weighted_sum\n  weights:\n    click: 1.0      # the unit\n    like: 13.5"),
        ("custom", '{kind: expression, formula: "click * (1 + 4 * like)"}'),
        ("last", "kind: weighted_product\n    exponents: {click: 0.6}"),
        ("new", ""),
    ],
)
def test_every_other_character_stays(name: str, gone: str) -> None:
    edited = with_entry(BLOCK.encode(), name, NEW, "f").decode()
    written = "{kind: weighted_sum, weights: {click: 2.5, rating.good: -1.0e-07}}"
    assert edited == (BLOCK.replace(gone, written) if gone else f"{BLOCK}new: {written}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x {kind: expression, formula: click}\nb: *x\n", "without a change to other entries"),
        ("b: {kind: expression, formula: click}\na: *b\n", "not valid YAML"),
        ("- a\n", "needs a mapping"),
        ("", "needs a mapping"),
    ],
)
def test_what_cannot_be_kept_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        with_entry(text.encode(), "a", NEW, "f")


def test_an_alias_is_not_followed_to_another_entry() -> None:
    text = "b: &x {kind: expression, formula: click}\na: *x\n"
    with pytest.raises(ValueError, match="without a change to other entries"):
        with_entry(text.encode(), "a", NEW, "f")
