"""The file of policies: what is read of it, and what is refused in words that say where and why."""

import re

import pytest

from model.policies.policies import Policies
from model.value_models.answer_domain import AnswerDomain
from tests.artifacts import tiny_schema

DOMAIN = AnswerDomain.of_answers({"click": [1.0], "like": [1.0], "play_time": [1.0]})
WHOLE = """
default:
  filter: ["duration_ms >= 3000", "click > 0.01"]
  seen: {field: seen_items, by: video_id, within: 24h}
  dedup: [video_id]
  boost: [{when: "duration_ms < 60000", multiply: 1.2}]
  decay: {per: tag, factor: 0.8, floor: 0.3}
  select:
    cap: {per: tag, count: 2, within: 10, else: drop}
plain: {}
"""


def read(content: str) -> Policies:
    return Policies.from_bytes(content.encode(), "m/policies.yaml", tiny_schema(), DOMAIN)


def test_versions_are_of_the_content() -> None:
    policies = read(WHOLE)
    assert policies.names == ["default", "plain"]
    assert policies["default"].stages == ["filter", "seen", "dedup", "cap"]
    assert re.fullmatch("[0-9a-f]{8}", policies["default"].version)
    assert read(f"# a comment\n{WHOLE}")["default"].version == policies["default"].version
    assert read(WHOLE.replace("0.8", "0.7"))["default"].version != policies["default"].version
    assert policies["plain"].version != policies["default"].version
    assert not read("{}").names


@pytest.mark.parametrize(("content", "message"), [
    ("[1]", "needs a mapping of policies by their names"),
    ("3: {}", "the name of a policy must be a string, got 3"),
    ("p: []", "p: expected a mapping of keys to values, got list"),
    ("p: {filtre: []}", "p: unknown key 'filtre'; did you mean 'filter'?"),
    ('p: {filter: ["durations_ms > 1"]}',
     "p: filter.0: 'durations_ms' is no answer, number or integer id of candidates; did you mean 'duration_ms'?"),
    ('p: {filter: ["age_days > 1"]}', "'age_days' is no answer, .*; it is a user feature of kind number; valid: "),
    ('p: {filter: ["tag > 1"]}', "'tag' is no answer, .*; it is a candidate feature of kind id; valid: dura"),
    ('p: {filter: ["topics > 1"]}', "it is a candidate feature of kind id_list"),
    ('p: {filter: ["duration_ms"]}', "filter.0: 'duration_ms' is a number; compare it, as in: duration_ms > 0"),
    ('p: {filter: ["1 < 2"]}', "filter.0: reads no feature and no answer"),
    ('p: {filter: ["duration_ms >"]}', "filter.0: not a condition; it may contain"),
    ('p: {filter: ["click.x > 1"]}', "'click.x' is no answer"),
    ('p: {boost: [{when: "click > 0", multiply: -1}]}', "boost.0.multiply: .*greater than or equal to 0 .got -1"),
    ('p: {boost: [{when: "click > 0", multiply: .inf}]}', "boost.0.multiply"),
    ('p: {boost: [{when: "clicks > 0", multiply: 2}]}', "boost.0: 'clicks' is no answer, .*did you mean 'click'?"),
    ("p: {dedup: [duration_ms]}", "dedup.0: 'duration_ms' is no id feature of candidates; it is a candidate"),
    ("p: {dedup: [user_id]}", "dedup.0: 'user_id' is no id feature of candidates; it is a user feature"),
    ("p: {decay: {per: creator, factor: 0.5}}", "decay.per: 'creator' is no id feature of candidates"),
    ("p: {decay: {per: tag, factor: 1.5}}", "decay.factor: .*less than or equal to 1"),
    ("p: {decay: {per: tag, factor: no}}", "decay: factor: got true or false"),
    ("p: {seen: {field: x, by: topics, within: 1h}}", "seen.by: 'topics' is no id feature"),
    ("p: {seen: {field: x, by: tag, within: 1 day}}", "seen.within: expected a whole number and its unit"),
    ("p: {seen: {by: tag, within: 1h}}", "seen.field: Field required"),
    ("p: {select: {cap: {per: tag, count: 0, within: 3}}}", "select.cap.count: .*greater than or equal to 1 .got 0"),
    ("p: {select: {cap: {per: tag, count: 3, within: 3}}}", "select.cap: count 3 of 3 places caps nothing"),
    ("p: {select: {cap: {per: creator, count: 1, within: 3}}}", "p: select.cap.per: unknown candidate id feature"),
    ("p: {select: {}}", "select: select needs one of cap, mmr, explore"),
    ("".join(f"p{n}: {{}}\n" for n in range(101)), "at most 100 policies, got 101"),
])  # fmt: skip
def test_what_is_no_policy_is_refused_by_file_policy_and_key(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        read(content)
    assert str(refused.value).startswith("m/policies.yaml: ")


def test_a_name_of_a_feature_and_of_a_task_is_refused() -> None:
    domain = AnswerDomain.of_answers({"duration_ms": [1.0]})
    with pytest.raises(ValueError, match="'duration_ms' is a feature and a task, so a condition cannot name it"):
        Policies.from_bytes(b'p: {filter: ["duration_ms > 1"]}', "policies.yaml", tiny_schema(), domain)
