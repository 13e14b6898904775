"""`given` in a schema: every rule, with the message that names the tasks."""

import re

import pytest

from model.schema import FeedSchema
from tests.model.feeds import schema_of

FEED = """
name: feed
features: [{name: item, side: candidate, kind: id, buckets: 5, dim: 4}]
tasks:
"""
CLICK = "{name: click, kind: binary, label: clicked}"
BUY = "{name: buy, kind: binary, label: bought, given: click}"


def feed(*tasks: str) -> FeedSchema:
    return schema_of(FEED + "".join(f"  - {task}\n" for task in tasks))


def test_chains_go_by_name_whatever_the_order() -> None:
    schema = feed(
        "{name: refund, kind: binary, label: refunded, given: buy, mask: is_final}",
        BUY,
        "{name: stars, kind: multiclass, label: stars, classes: [bad, good]}",
        CLICK,
    )
    assert schema.given == (1, 3, None, None)
    assert FeedSchema.from_mapping(schema.model_dump(mode="json", exclude_none=True), "manifest") == schema
    assert feed(CLICK).given == (None,)


@pytest.mark.parametrize(("tasks", "message"), [
    ((CLICK.replace("}", ", given: click}"),), "given: click -> click is a circle"),
    ((CLICK.replace("}", ", given: buy}"), BUY), "given: click -> buy -> click is a circle"),
    (("{name: a, kind: binary, label: a, given: b}", "{name: b, kind: binary, label: b, given: c}",
      "{name: c, kind: binary, label: c, given: b}"), "given: a -> b -> c -> b is a circle"),
    ((CLICK, BUY.replace("given: click", "given: clikc")), "task 'buy': given: unknown task 'clikc'; did you mean"),
    ((CLICK, "{name: w, kind: regression, label: w, given: click}"),
     "task 'w': given: 'click': 'w' is a regression task, without a single probability to multiply; remove given"),
    (("{name: w, kind: regression, label: w}", BUY.replace("click", "w")), "'w' is a regression task, without"),
    (("{name: m, kind: multiclass, label: m, classes: [x, y]}", BUY.replace("click", "m")),
     "task 'buy': given: 'm': 'm' is a multiclass task, without a single probability"),
    ((CLICK.replace("}", ", negative_sampling_rate: 0.1}"), BUY), "'click' has negative_sampling_rate 0.1, and its"),
    ((CLICK, BUY.replace("}", ", negative_sampling_rate: 0.1}")), "'buy' has negative_sampling_rate 0.1, and its"),
    ((CLICK, BUY.replace("}", ", mask: clicked}")), "task 'buy': mask 'clicked' is the label of 'click', which it is"),
    ((CLICK, BUY, "{name: refund, kind: binary, label: r, given: buy, mask: clicked}"),
     "task 'refund': mask 'clicked' is the label of 'click'"),
])  # fmt: skip
def test_a_chain_that_cannot_be_is_refused_by_name(tasks: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        feed(*tasks)


def test_a_part_of_the_tasks_has_whole_chains() -> None:
    schema = feed(CLICK, BUY, "{name: like, kind: binary, label: liked}")
    assert schema.with_tasks(["buy", "click"]).given == (1, None)
    with pytest.raises(ValueError, match="'buy' is given 'click', which is not among them; add it, or remove given"):
        schema.with_tasks(["like", "buy"])


def test_chains_may_be_others_than_the_schema_s() -> None:
    schema = feed(CLICK, BUY, "{name: like, kind: binary, label: liked}")
    assert schema.with_given({"like": "click"}).given == (None, 0, 0)
    assert schema.with_given({"buy": None}).given == (None, None, None)
    with pytest.raises(ValueError, match="unknown task 'likes'; did you mean 'like'"):
        schema.with_given({"likes": "click"})
    with pytest.raises(ValueError, match="click -> buy -> click is a circle"):
        schema.with_given({"click": "buy"})
