"""Shift of tastes against a column that broke: days of 20,000 rows drawn from a known law, some forty of them.

Clicks are a third of the rows, views a half, likes one in seventy. The version knows most of what users like. After a
shift it knows a tenth, by which clicks surely follow still, and likes by less than their few labels can tell.

Shapes: B rows.
"""

import numpy as np
import pyarrow as pa
import pytest

from model.schema import FeedSchema
from training.data.kinds.columns import columns_from_arrow
from training.fit.tally import Tally
from training.judge.answers import sums_of_answers
from training.judge.data_gate import faults_of_day, outputs_shifted
from training.judge.day_figures import AnswerFigures, figures_of_answers
from training.judge.settings import DataGate
from training.tasks.learned import Floats

SCHEMA = FeedSchema.from_mapping(
    {
        "name": "feed",
        "features": [{"name": "user_id", "side": "candidate", "kind": "id", "buckets": 100, "dim": 4}],
        "tasks": [
            {"name": "click", "kind": "binary", "label": "is_click"},
            {"name": "view", "kind": "binary", "label": "is_view"},
            {"name": "like", "kind": "binary", "label": "is_like"},
        ],
    },
    "schema",
)
ROWS, DAYS = 20_000, 20
KNOWN, AFTER_A_SHIFT = 0.9, 0.1
# Level and slope of the logit by what a user likes.
LAWS = {"is_click": (-1.0, 1.5), "is_view": (0.0, 1.2), "is_like": (-6.0, 2.0)}


def _chance(task: str, liked_B: Floats) -> Floats:
    level, slope = LAWS[task]
    chance_B: Floats = 1 / (1 + np.exp(-(level + slope * liked_B)))
    return chance_B


def _day(
    seed: int, known: float = KNOWN, of_likes: float | None = None, of_views: float | None = None
) -> tuple[dict[str, Floats], Floats]:
    """Labels by column, and answers_BO of a version that knows a share of what users like. Its answers to likes and to
    views may know another."""
    rng = np.random.default_rng(seed)
    liked_B = rng.normal(size=ROWS)
    noise_B = rng.normal(size=ROWS)
    labels = {task: (rng.random(ROWS) < _chance(task, liked_B)).astype(np.float64) for task in LAWS}
    others = {"is_like": of_likes, "is_view": of_views}
    shares = {task: known if (other := others.get(task)) is None else other for task in LAWS}
    answers = [_chance(task, share * liked_B + np.sqrt(1 - share**2) * noise_B) for task, share in shares.items()]
    return labels, np.stack(answers, axis=1)


def _table(labels: dict[str, Floats]) -> pa.Table:
    users_B = np.random.default_rng(0).integers(0, 2_000, ROWS)
    return pa.table({"user_id": users_B, **{name: labels_B.astype(np.int64) for name, labels_B in labels.items()}})


def _figures(labels: dict[str, Floats], answers_BO: Floats) -> AnswerFigures:
    answered = sums_of_answers(SCHEMA, {}, _table(labels), answers_BO, group_by="user_id")
    return figures_of_answers(answered.sums, answered.kinds, answered.sums)


@pytest.fixture(scope="module")
def before() -> list[AnswerFigures]:
    return [_figures(*_day(seed)) for seed in range(3)]


def _faults(
    labels: dict[str, Floats],
    answers_BO: Floats,
    before: list[AnswerFigures],
    as_gated: list[AnswerFigures] | None = None,
) -> list[str]:
    tally = Tally(SCHEMA, {}, 1)
    tally.add(
        table := _table(labels), columns_from_arrow(SCHEMA, table, is_coded=True), np.zeros(table.num_rows, np.int64)
    )
    [day] = tally.counts([[0]])
    own = _figures(labels, answers_BO)
    return faults_of_day(SCHEMA, day, None, 0.0, own, before, DataGate(), as_gated=as_gated or before)[0]


def test_a_rare_task_follows_where_its_day_does(before: list[AnswerFigures]) -> None:
    """Of twenty shifted days likes alone would tell on few. Not one is refused."""
    told = 0
    for seed in range(100, 100 + DAYS):
        labels, answers_BO = _day(seed, AFTER_A_SHIFT)
        own = _figures(labels, answers_BO)
        slope = own["like"].outputs["like"].slope
        assert slope is not None
        told += slope[0] > 1.96 * slope[1]
        assert set(outputs_shifted(own, before)) == {"click", "view", "like"}
        assert _faults(labels, answers_BO, before) == []
    assert told < DAYS


@pytest.mark.parametrize("broken", ["is_click", "is_like"])
def test_a_column_of_other_rows_is_refused_by_name_while_another_is_kept(
    broken: str, before: list[AnswerFigures]
) -> None:
    for seed in range(200, 200 + DAYS):
        labels, answers_BO = _day(seed)
        assert _faults(labels, answers_BO, before) == []
        labels[broken] = np.random.default_rng(seed).permutation(labels[broken])
        faults = _faults(labels, answers_BO, before)
        name = broken.removeprefix("is_")
        assert any(f"{name}: its labels no longer follow" in fault and "view" in fault for fault in faults)
        assert not any(fault.startswith("view:") for fault in faults)


def test_labels_of_which_half_are_inverted_are_no_new_taste(before: list[AnswerFigures]) -> None:
    """A slope of nothing at all, where a shift leaves some."""
    for seed in range(300, 300 + DAYS):
        labels, answers_BO = _day(seed)
        is_inverted_B = np.random.default_rng(seed).random(ROWS) < 0.5
        labels["is_click"] = np.where(is_inverted_B, 1 - labels["is_click"], labels["is_click"])
        assert any("click: its labels no longer follow" in fault for fault in _faults(labels, answers_BO, before))


def test_labels_of_other_rows_altogether_are_no_shift(before: list[AnswerFigures]) -> None:
    for seed in range(400, 400 + DAYS):
        labels, answers_BO = _day(seed)
        order_B = np.random.default_rng(seed).permutation(ROWS)
        faults = _faults({name: labels_B[order_B] for name, labels_B in labels.items()}, answers_BO, before)
        assert any("the serving version's NE is" in fault for fault in faults)


def test_a_version_that_never_knew_a_rare_label_is_no_column_that_broke(before: list[AnswerFigures]) -> None:
    """Likes followed the answers of versions before it, and never those of the one that serves."""
    by_it = [_figures(*_day(seed, of_likes=0.0)) for seed in range(3)]
    for seed in range(500, 500 + DAYS):
        labels, answers_BO = _day(seed, of_likes=0.0)
        assert _faults(labels, answers_BO, by_it, before) == []
        # By figures of another version it would be one.
        assert any("like: its labels no longer follow" in fault for fault in _faults(labels, answers_BO, before))


def test_a_correlation_near_none_is_not_missed(before: list[AnswerFigures]) -> None:
    """Likes of which the version knows a tenth: .02, where a day's error is .007."""
    known = [_figures(*_day(seed, of_likes=0.1)) for seed in range(7)]
    for seed in range(600, 600 + DAYS):
        labels, answers_BO = _day(seed, of_likes=0.1)
        labels["is_like"] = np.random.default_rng(seed).permutation(labels["is_like"])
        assert _faults(labels, answers_BO, known) == []


def test_labels_that_follow_no_more_beside_others_that_follow_less_are_a_shift(before: list[AnswerFigures]) -> None:
    """Clicks are as before: they depend on what has not changed. Views follow half as well, likes not at all."""
    for seed in range(700, 700 + DAYS):
        labels, answers_BO = _day(seed, of_likes=0.0, of_views=0.45)
        own = _figures(labels, answers_BO)
        assert set(outputs_shifted(own, before)) == {"view", "like"}
        assert not any("no longer follow" in fault for fault in _faults(labels, answers_BO, before))
