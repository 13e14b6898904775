"""The journal: entries of many writers stay whole, whatever a killed one or a hostile hand leaves among them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.rollout.journal import FILE_NAME, MAX_LINE_BYTES, Entry, Journal
from tests.deploy.programs import ROOT

TIME = datetime(2026, 11, 30, 2, 30, tzinfo=UTC)
# Writes entries without end, each with its number.
WRITER = """
import itertools, sys
from datetime import UTC, datetime
from pathlib import Path
from model.rollout.journal import Entry, Journal
journal, name = Journal(Path(sys.argv[1])), sys.argv[2]
for number in itertools.count():
    journal.append(Entry(time=datetime.now(UTC), step="test", decision="written", who=name,
                         figures={"number": number, "padding": "x" * 2000}))
    print(number, flush=True)
"""


def entry_of(**given: object) -> Entry:
    return Entry.model_validate({"time": TIME, "step": "judge", "decision": "promote", "who": "daily", **given})


def test_what_is_written_is_what_is_read_and_each_line_is_its_own_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.read().entries == ()
    entries = [
        entry_of(),
        entry_of(
            time=TIME.astimezone(timezone(timedelta(hours=2))),
            decision="withdraw",
            reasons=("clicks fell", 'a "quoted"\nreason, ü'),
            figures={"users": 2000, "lower": -0.25, "told": True, "by_task": {"click": [0.5, None]}},
            versions={"stable": "3", "canary": None},
            inputs={"date=20261129/20261129T00.parquet": "ab" * 32},
        ),
    ]
    for entry in entries:
        journal.append(entry)
    content = journal.read()
    assert list(content.entries) == entries
    assert content.faults == ()
    lines = (tmp_path / FILE_NAME).read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["time"] for line in lines[:-1]] == ["2026-11-30T02:30:00.000Z"] * 2
    assert list(json.loads(lines[1])) == [
        "time", "step", "decision", "reasons", "figures", "versions", "inputs", "who",
    ]  # fmt: skip
    assert lines[-1] == ""
    assert journal.tail(1).entries == (entries[1],)


@given(st.binary(min_size=1, max_size=200).filter(lambda part: b"\n" not in part))
def test_a_torn_line_hides_no_entry_before_or_after_it(torn: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        journal.append(entry_of(who="before"))
        with journal.path.open("ab") as file:
            file.write(torn)
        assert [entry.who for entry in journal.read().entries] == ["before"]
        assert not torn.strip() or "line 2: ends early" in journal.read().faults[0]
        journal.append(entry_of(who="after"))
        assert [entry.who for entry in journal.read().entries] == ["before", "after"]
        assert len(journal.read().faults) == bool(torn.strip())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"time": "2026-11-30T02:30:00", "step": "a", "decision": "b", "who": "c"}', "has no time zone"),
        (b'{"time": "2026-11-30T02:30:00Z", "step": "a", "decision": "b"}', "who"),
        (b'{"time": "2026-11-30T02:30:00Z", "step": "a", "decision": "b", "who": "c", "figures": {"x": NaN}}', "NaN"),
        (b'{"time": "2026-11-30T02:30:00Z", "step": "a", "decision": "b", "who": "c", "wo": 1}', "did you mean 'who'"),
        (b"x" * (MAX_LINE_BYTES + 1), "over"),
    ],
)
def test_a_line_that_is_no_entry_is_passed_over_and_named(tmp_path: Path, line: bytes, said: str) -> None:
    journal = Journal(tmp_path)
    journal.append(entry_of(who="before"))
    with journal.path.open("ab") as file:
        file.write(line + b"\n")
    journal.append(entry_of(who="after"))
    content = journal.read()
    assert [entry.who for entry in content.entries] == ["before", "after"]
    (fault,) = content.faults
    assert fault.startswith(f"{journal.path}: line 2: ")
    assert said in fault


def test_the_last_entries_come_from_the_end_of_a_long_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(40):
        journal.append(entry_of(figures={"number": number, "padding": "y" * 20_000}))
    assert [entry.figures["number"] for entry in journal.tail(5).entries] == [35, 36, 37, 38, 39]
    assert journal.tail(5).faults == ()
    assert len(journal.read().entries) == 40


def test_figures_that_are_not_finite_and_entries_that_are_data_are_not_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for figures in ({"x": float("nan")}, {"x": "y" * MAX_LINE_BYTES}):
        with pytest.raises(ValueError, match=r"JSON compliant|at most"):
            journal.append(entry_of(figures=figures))
    assert not journal.path.exists()


def test_a_fifo_in_its_place_is_an_error_and_holds_nobody_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    os.mkfifo(journal.path)
    with pytest.raises(OSError, match="not a regular file"):
        journal.append(entry_of())
    with pytest.raises(ValueError, match="cannot be read"):
        journal.read()


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.append(entry_of())
    before = journal.path.read_bytes()
    write = os.write

    def write_half(descriptor: int, content: bytes) -> int:
        if len(content) < 100:
            raise OSError(28, "No space left on device")
        return write(descriptor, content[: len(content) // 2])

    monkeypatch.setattr("os.write", write_half)
    with pytest.raises(OSError, match="No space"):
        journal.append(entry_of(who="lost"))
    assert journal.path.read_bytes() == before


def test_writers_that_are_killed_lose_no_entry_that_was_accepted(tmp_path: Path) -> None:
    """Each writer prints a number after its entry is on the disk: every printed number is read back, in order."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = {
        name: subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True, cwd=ROOT) for name in ("a", "b")
    }
    printed: dict[str, list[int]] = {}
    for name, writer in writers.items():
        assert writer.stdout is not None
        numbers = [int(writer.stdout.readline()) for _ in range(15)]
        writer.send_signal(signal.SIGKILL)
        printed[name] = [*numbers, *map(int, writer.stdout.read().split())]
        writer.wait()
        writer.stdout.close()
    content = Journal(tmp_path).read()
    for name, numbers in printed.items():
        written = [entry.figures["number"] for entry in content.entries if entry.who == name]
        # The last entry may be there without its number having been printed.
        assert written[: len(numbers)] == numbers == list(range(len(numbers)))
        assert len(written) <= len(numbers) + 1
    assert len(content.faults) <= len(writers)
