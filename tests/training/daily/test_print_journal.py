"""`python -m training journal`: decisions as lines for people."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from model.rollout.journal import Entry, Journal
from training.__main__ import main


def test_decisions_are_printed_in_order_with_what_they_rest_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "feed"
    folder.mkdir()
    assert main(["journal", str(tmp_path), "feed"]) == 0
    assert capsys.readouterr().out == f"{folder}: no decision yet\n"
    journal = Journal(folder)
    journal.append(Entry(time=datetime(2026, 11, 29, 2, tzinfo=UTC), step="daily", decision="pause", who="ann"))
    journal.append(
        Entry(
            time=datetime(2026, 11, 30, 2, 30, tzinfo=UTC),
            step="judge",
            decision="withdraw",
            reasons=("value fell by 10.1 %", "steered \x1b[2J"),
            figures={"users": 2031, "relative": {"low": -0.12345, "high": -0.0511}},
            versions={"stable": "7", "canary": {"version": "8", "share": 0.1}},
            inputs={"date=20261129": "0123456789abcdef" * 4},
            who="daily",
        )
    )
    with journal.path.open("ab") as file:
        file.write(b"torn")
    assert main(["journal", str(tmp_path), "feed"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2026-11-29T02:00:00Z  daily: pause  by ann",
        "2026-11-30T02:30:00Z  judge: withdraw  stable 7  canary version 8, share 0.1  by daily",
        "    value fell by 10.1 %",
        "    steered ?[2J",
        "    users: 2031",
        "    relative: low -0.1235, high -0.0511",
        "    read date=20261129 (0123456789ab)",
        "lines that are no entry: 1",
        f"  {journal.path}: line 3: ends early, its writer was killed or still writes",
    ]
    assert main(["journal", str(tmp_path), "feed", "--last", "1"]) == 0
    assert "pause" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"), [(["feed"], "there is no model of this name"), (["feed", "--last", "0"], "at least 1")]
)
def test_a_wrong_call_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["journal", str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err
