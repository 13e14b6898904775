"""Data gate: figures of drawn days against numpy's, and which days are left out for which reason.

Shapes: B rows, U users.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model.schema import FeedSchema
from training.data.kinds.columns import columns_from_arrow
from training.fit.tally import PartCounts, Tally
from training.judge.answers import sums_of_answers
from training.judge.data_gate import faults_of_day, stability_indexes
from training.judge.day_figures import AnswerFigures, figures_of_answers, read_figures, slope_of_labels
from training.judge.settings import DataGate
from training.tasks.learned import Floats

SCHEMA = FeedSchema.from_mapping(
    {
        "name": "feed",
        "features": [
            {"name": "user_id", "side": "user", "kind": "id", "buckets": 100, "dim": 4},
            {"name": "age", "side": "candidate", "kind": "number"},
        ],
        "tasks": [{"name": "click", "kind": "binary", "label": "is_click"}],
    },
    "schema",
)
WATCHED = FeedSchema.from_mapping(
    {
        "name": "feed",
        "features": [{"name": "user_id", "side": "candidate", "kind": "id", "buckets": 100, "dim": 4}],
        "tasks": [{"name": "watch", "kind": "regression", "label": "watch_ms"}],
    },
    "schema",
)
ROWS = 12_000
SETTINGS = DataGate()


def _rows(seed: int, *, age: float = 0.0, rate: float = 0.0, is_inverted: bool = False) -> tuple[pa.Table, Floats]:
    """A day, and the true probability of each click: those of age and user, moved by `age` and `rate`."""
    rng = np.random.default_rng(seed)
    users_B = rng.integers(0, 600, ROWS)
    age_B = rng.exponential(1.0, ROWS) + age
    logit_B = -1.2 + rate + np.sin(users_B) + 0.8 * (age_B - 1)
    answers_B = 1 / (1 + np.exp(-logit_B))
    clicks_B = rng.random(ROWS) < answers_B
    table = pa.table({"user_id": users_B, "age": age_B, "is_click": (clicks_B ^ is_inverted).astype(np.int64)})
    return table, answers_B


def _counts(*tables: pa.Table) -> list[PartCounts]:
    tally = Tally(SCHEMA, {}, len(tables))
    for part, table in enumerate(tables):
        tally.add(table, columns_from_arrow(SCHEMA, table, is_coded=True), np.full(table.num_rows, part))
    return tally.counts([[part] for part in range(len(tables))])


def _answers(table: pa.Table, answers_B: Floats) -> AnswerFigures:
    return figures_of_answers(*sums_of_answers(SCHEMA, {}, table, answers_B[:, None], group_by="user_id"))


def _faults(table: pa.Table, answers_B: Floats, **changes: Any) -> list[str]:
    window, answered = _rows(1)
    day, before = _counts(table, window)
    given = {"window": before, "lost": 0.0, "before": [_answers(window, answered)], **changes}
    return faults_of_day(
        SCHEMA, day, given["window"], given["lost"], _answers(table, answers_B), given["before"], SETTINGS
    )[0]


def test_a_day_like_those_before_it_has_no_fault() -> None:
    assert _faults(*_rows(2)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"age": 1.0}, ["feature age: its values drifted"]),
        ({"rate": 3.2}, ["click: its labels' mean is 3."]),
        ({"is_inverted": True}, ["NE is", "labels go against"]),
    ],
    ids=["drift", "label rate", "inverted labels"],
)
def test_a_day_unlike_those_before_it_is_refused_for_the_reason(changes: dict[str, Any], words: list[str]) -> None:
    faults = _faults(*_rows(2, **changes))
    assert all(any(word in fault for fault in faults) for word in words), faults


def test_answers_that_no_longer_fit_are_refused_and_those_of_a_new_taste_are_not() -> None:
    table, answers_B = _rows(2)
    logit_B = np.log(answers_B / (1 - answers_B)) + np.random.default_rng(1).normal(0.0, 2.5, ROWS)
    [fault] = _faults(table, 1 / (1 + np.exp(-logit_B)))
    assert "NE is" in fault
    # Of no use any more, yet not against the labels: users changed, and the model has to follow.
    mixed_B = np.random.default_rng(0).permutation(answers_B) * 0.2 + answers_B.mean() * 0.8
    assert _faults(table, mixed_B) == []
    [fault] = _faults(table, answers_B * 0.4)
    assert "click: the serving version's calibration is 0." in fault


def test_a_quantity_whose_law_has_changed_is_let_through_up_to_answers_that_say_nothing() -> None:
    """Answers that explain 40 % of the variance have NE .6, and 1.4 once they are of other rows."""
    rng = np.random.default_rng(5)
    known_B = rng.normal(size=ROWS)
    labels_B = 10 + np.sqrt(0.4) * known_B + np.sqrt(0.6) * rng.normal(size=ROWS)
    answers_B, users_B = 10 + np.sqrt(0.4) * known_B, rng.integers(0, 600, ROWS)

    before = labels_B

    def faults(answered_B: Floats) -> list[str]:
        usual, own = (
            figures_of_answers(
                *sums_of_answers(
                    WATCHED, {}, pa.table({"user_id": users_B, "watch_ms": of_B}), one_B[:, None], group_by="user_id"
                )
            )
            for of_B, one_B in ((before, answers_B), (labels_B, answered_B))
        )
        table = pa.table({"user_id": users_B, "watch_ms": labels_B})
        tally = Tally(WATCHED, {}, 1)
        tally.add(table, columns_from_arrow(WATCHED, table, is_coded=True), np.zeros(ROWS, np.int64))
        return faults_of_day(WATCHED, tally.counts([[0]])[0], None, 0.0, own, [usual], SETTINGS)[0]

    # A tenth of them are still of their row, so that labels follow.
    kept_B = rng.random(ROWS) < 0.1
    shifted_B = np.where(kept_B, answers_B, rng.permutation(answers_B))
    assert faults(shifted_B) == []
    # Labels that vary less by far make a large NE of the same loss.
    labels_B = 10 + 0.5 * (labels_B - 10)
    assert faults(shifted_B) == []
    labels_B = 10 + 2 * (labels_B - 10)
    # So wild they cannot become by other tastes.
    [fault] = faults(10 + 2 * (shifted_B - 10))
    assert "task watch: the serving version's NE is" in fault
    inverted = faults(20 - answers_B)
    assert any("task watch: the serving version's NE is 2.2" in fault for fault in inverted)
    assert any("labels go against" in fault for fault in inverted)


def test_few_rows_lost_lines_and_a_first_day() -> None:
    table, answers_B = _rows(2)
    few = table.slice(0, 900)
    [day] = _counts(few)
    faults, figures = faults_of_day(SCHEMA, day, None, 0.02, {}, [], SETTINGS)
    assert faults == ["it has 900 rows, of 10,000 at least", "2.00% of its log lines were lost, and 1.00% may be"]
    assert figures["rows"] == 900
    assert "psi" not in figures
    assert _faults(table, answers_B, window=None, before=[]) == []


def test_the_stability_index_is_that_of_tenths_less_chance() -> None:
    table, _ = _rows(2)
    table = table.set_column(1, "age", pa.array(table.column("age").to_numpy() * 1.5))
    window, _ = _rows(1)
    own, before = _counts(table, window)
    found = stability_indexes(SCHEMA, own, before)
    age_B, reference_B = (one.column("age").to_numpy() for one in (table, window))
    edges = np.quantile(reference_B, np.linspace(0.1, 0.9, 9))
    p, q = (np.bincount(np.searchsorted(edges, values_B), minlength=10) / ROWS for values_B in (age_B, reference_B))
    # Tenths are made of bins of an eighth of a power of two, so that their edges lie beside the quantiles.
    assert found["age"].value == pytest.approx(np.sum((p - q) * np.log(p / q)), rel=0.15)
    assert found["user_id"].value == pytest.approx(0.0, abs=0.004)


def test_few_active_users_make_no_drift_and_a_feature_that_breaks_does() -> None:
    """Of a law that stays, in 40 pairs of days, each of 300 users with 20 rows that are all alike."""
    rng = np.random.default_rng(4)

    def day(is_broken: bool = False) -> pa.Table:
        users_B = np.repeat(rng.integers(0, 100_000, 300), 20)
        age_B = np.repeat(np.zeros(300) if is_broken else rng.exponential(1.0, 300), 20)
        return pa.table({"user_id": users_B, "age": age_B, "is_click": np.tile([0, 1], 3000)})

    pairs = [_counts(day(), day()) for _ in range(40)]
    found = [stability_indexes(SCHEMA, own, before, 20.0)["user_id"] for own, before in pairs]
    # Errors tell how far indexes are from 0: some are beyond two of them, few beyond three.
    assert max(drift.value / drift.error for drift in found) < 3.5
    assert np.std([drift.value for drift in found]) < found[0].error < 0.25
    as_rows = [stability_indexes(SCHEMA, own, before)["user_id"].value for own, before in pairs]
    assert np.mean(as_rows) > SETTINGS.max_psi
    broken, before = _counts(day(is_broken=True), day())
    faults, _ = faults_of_day(SCHEMA, broken, before, 0.0, {}, [], DataGate(min_rows=1), rows_per_user=20.0)
    assert len(faults) == 1
    assert faults[0].startswith("feature age: its values drifted")


@pytest.mark.parametrize("is_inverted", [False, True])
def test_a_slope_is_that_of_least_squares_and_its_error_that_of_drawn_users(is_inverted: bool) -> None:
    table, answers_B = _rows(3, is_inverted=is_inverted)
    sums, _ = sums_of_answers(SCHEMA, {}, table, answers_B[:, None], group_by="user_id")
    found = slope_of_labels(sums["click"], 0)
    assert found is not None
    labels_B, users_B = table.column("is_click").to_numpy(), table.column("user_id").to_numpy()
    assert found[0] == pytest.approx(np.polyfit(answers_B, labels_B, 1)[0])
    rng, slopes = np.random.default_rng(0), []
    for _ in range(150):
        weights_B = np.bincount(rng.integers(0, 600, 600), minlength=600)[users_B]
        slopes.append(np.polyfit(answers_B, labels_B, 1, w=np.sqrt(weights_B))[0])
    # 150 draws know a standard deviation to 6 %.
    assert found[1] == pytest.approx(np.std(slopes), rel=0.2)


def test_figures_survive_a_journal_and_damaged_ones_are_refused_by_name() -> None:
    figures = _answers(*_rows(2))
    written = {task: of_task.model_dump(mode="json") for task, of_task in figures.items()}
    assert read_figures(written, "journal.jsonl") == figures
    with pytest.raises(ValueError, match=r"journal\.jsonl: click"):
        read_figures({"click": {"rows": "many"}}, "journal.jsonl")
