"""What stands by a journal's entries: days, versions, canaries and pauses, told by hand."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from model.rollout.decisions import (
    ACCEPT,
    AFTER,
    BEFORE,
    DAILY,
    DATA_GATE,
    JUDGE,
    LABELS,
    PAUSE,
    PROMOTE,
    QUARANTINE,
    RELEASE,
    RESUME,
    WITHDRAW,
    Decisions,
    labels_entry,
)
from model.rollout.journal import Entry
from model.rollout.labels import Labels

START = datetime(2026, 11, 1, tzinfo=UTC)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def entry(hours: float, step: str, decision: str, **given: Any) -> Entry:
    return Entry(time=at(hours), step=step, decision=decision, who="daily", **given)


def labels(stable: int | None = None, canary: int | None = None) -> Labels:
    share = None if canary is None else {"version": canary, "share": 0.1}
    return Labels.model_validate({"stable": stable, "canary": share})


def gate(hours: float, decision: str, day: str) -> Entry:
    return entry(hours, DATA_GATE, decision, figures={"day": day})


def judged(hours: float, decision: str, canary: str) -> Entry:
    return entry(hours, JUDGE, decision, versions={"stable": "1", "canary": canary})


def test_an_empty_journal_decides_nothing() -> None:
    nothing = Decisions()
    assert nothing.paused is None
    assert nothing.quarantined == {}
    assert nothing.withdrawn == frozenset()
    assert nothing.stable_since(START) == []
    assert nothing.canary_since("1") is None
    assert nothing.unapplied() is None
    assert nothing.labels() is None


def test_a_day_is_what_the_last_entry_about_it_says() -> None:
    decisions = Decisions(
        (
            gate(1, ACCEPT, "2026-11-01"),
            gate(2, QUARANTINE, "2026-11-02"),
            gate(3, QUARANTINE, "2026-11-03"),
            gate(4, RELEASE, "2026-11-02"),
            entry(5, DATA_GATE, QUARANTINE, figures={"day": "no day"}),
        )
    )
    assert list(decisions.quarantined) == [date(2026, 11, 3)]
    assert set(decisions.gates) == {date(2026, 11, day) for day in (1, 2, 3)}


def test_a_pause_lasts_until_it_is_resumed() -> None:
    pause, resume = entry(1, DAILY, PAUSE), entry(3, DAILY, RESUME)
    assert Decisions((pause, entry(2, DAILY, "finish"))).paused == pause
    assert Decisions((pause, resume)).paused is None
    assert Decisions((pause, resume, entry(4, DAILY, PAUSE))).paused is not None


def test_versions_that_were_stable_lately_include_the_one_that_was_then() -> None:
    decisions = Decisions(
        (
            labels_entry(at(0), labels(), labels(1), "daily"),
            labels_entry(at(24), labels(1), labels(2), "daily"),
            labels_entry(at(48), labels(2), labels(2, canary=3), "daily"),
            labels_entry(at(72), labels(2, canary=3), labels(3), "ann"),
            labels_entry(at(96), labels(3), labels(2), "ann"),
        )
    )
    assert decisions.stable_since(at(200)) == ["2"]
    assert decisions.stable_since(at(96)) == ["3", "2"]
    assert decisions.stable_since(at(50)) == ["2", "3"]
    assert decisions.stable_since(at(20)) == ["1", "2", "3"]
    # What stood before the first entry was stable too.
    assert Decisions(decisions.entries[1:]).stable_since(at(20)) == ["1", "2", "3"]


def test_a_canary_is_judged_since_its_label_was_set_last() -> None:
    decisions = Decisions(
        (
            labels_entry(at(1), labels(1), labels(1, canary=2), "daily"),
            labels_entry(at(2), labels(1, canary=2), labels(1), "ann"),
            labels_entry(at(3), labels(1), labels(1, canary=2), "ann"),
            labels_entry(at(4), labels(1, canary=2), labels(3, canary=2), "ann"),
        )
    )
    assert decisions.canary_since("2") == at(3)
    assert decisions.stable_beside("2") == ["1", "3"]
    assert decisions.stable_beside("3") == []
    assert decisions.canary_since("3") is None
    assert Decisions(decisions.entries[:2]).canary_since("2") is None
    assert decisions.labels() == {"stable": "3", "canary": {"version": "2", "share": 0.1}}


def test_a_withdrawn_version_stays_so_until_somebody_makes_it_stable() -> None:
    withdrawn = (judged(1, WITHDRAW, "2"), labels_entry(at(1), labels(1, canary=2), labels(1), "daily"))
    assert Decisions(withdrawn).withdrawn == {"2"}
    again = labels_entry(at(2), labels(1), labels(1, canary=2), "ann")
    assert Decisions((*withdrawn, again)).withdrawn == {"2"}
    assert Decisions((*withdrawn, again, labels_entry(at(3), labels(1), labels(2), "ann"))).withdrawn == frozenset()


def test_a_verdict_is_unapplied_until_labels_follow_it() -> None:
    verdict = judged(1, PROMOTE, "2")
    assert Decisions((verdict,)).unapplied() == verdict
    assert Decisions((verdict, entry(2, DAILY, "fail"))).unapplied() == verdict
    assert Decisions((verdict, labels_entry(at(2), labels(1, canary=2), labels(2), "daily"))).unapplied() is None
    assert Decisions((judged(1, "wait", "2"),)).unapplied() is None


def test_entries_with_versions_of_another_form_decide_nothing() -> None:
    """The journal is a file that others may write into."""
    odd: list[Any] = [None, "1", {"stable": None}, {"canary": "2"}, {"canary": {}}, {"stable": [1]}]
    entries = tuple(entry(1, LABELS, "change", versions={BEFORE: value, AFTER: value}) for value in odd)
    decisions = Decisions((*entries, entry(2, JUDGE, WITHDRAW)))
    assert decisions.canary_since("2") is None
    assert decisions.stable_since(START) == ["[1]"]
    assert decisions.withdrawn == {"None"}
