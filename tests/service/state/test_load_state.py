"""Bulk loads of users: what a warehouse exports and what a join made, resumed after a kill, faults by file and row."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.state import load_state
from service.state.sqlite_store import SqliteStore
from service.state.store import StoreError
from service.state.user_state import UserState, store_name
from tests.service.state.stores import STATE, sqlite_url, store_at

START = datetime(2026, 11, 29, tzinfo=UTC)
JOIN = "schema: s\nimpressions: i\nevents: e\nout: o\nlabels:\n  is_click: {event: click}\n  is_like: {event: like}\n"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "state.yaml").write_text(STATE)
    (folder / "join.yaml").write_text(JOIN)
    return tmp_path / "models"


def load(models: Path, tmp_path: Path, *what: str) -> int:
    flags = ["--models", str(models), "--model", "tiny", "--state", sqlite_url(tmp_path / "state.db")]
    return load_state.main([*what, *flags])


def state_of(tmp_path: Path, key: str) -> tuple[dict[str, Any], list[Any]]:
    store = store_at(tmp_path / "state.db")
    (blob,) = store.read([store_name("tiny", key)])
    store.close()
    state = UserState.decoded(blob)
    return state.fields, [(entry.value, entry.time) for entry in state.lists.get("history", [])]


def test_rows_of_users_are_in_the_store(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = [START + timedelta(hours=hour) for hour in range(4)]
    table = {
        "user_id": [17, 18],
        "country": ["fr", None],
        "history": [[5, 6, 7, 8], None],
        "history_time": [[times[3], times[0], times[1], times[2]], None],
    }
    pq.write_table(pa.table(table), tmp_path / "users.parquet")
    assert load(models, tmp_path, str(tmp_path / "users.parquet")) == 0
    assert "2 rows of users" in capsys.readouterr().out
    newest = [(7, times[1].timestamp()), (8, times[2].timestamp()), (5, times[3].timestamp())]  # keep: 3
    assert state_of(tmp_path, "17") == ({"country": "fr"}, newest)
    assert state_of(tmp_path, "18") == ({}, [])


def test_a_load_that_was_killed_goes_on(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store is away after some batches. Each batch is written once in all."""
    count = 2_300
    pq.write_table(pa.table({"user_id": list(range(count)), "age_days": [1.5] * count}), tmp_path / "users.parquet")
    change = SqliteStore.change
    calls: list[int] = []

    def failing(self: SqliteStore, names: Any, *more: Any) -> None:
        if len(calls) == 2:
            raise StoreError("it went away")
        change(self, names, *more)
        calls.append(len(names))

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "change", failing)
        assert load(models, tmp_path, str(tmp_path / "users.parquet")) == 1
    assert "it went away" in capsys.readouterr().err
    assert load(models, tmp_path, str(tmp_path / "users.parquet")) == 0
    said = capsys.readouterr()
    assert f"going on after {sum(calls):,} of {count:,} rows" in said.err
    assert f"{count - sum(calls):,} rows of users" in said.out
    assert [state_of(tmp_path, str(key)) for key in (0, 1_499, count - 1)] == [({"age_days": 1.5}, [])] * 3


def test_histories_are_made_of_joined_rows(models: Path, tmp_path: Path) -> None:
    """By hand: entries are the clicked videos, at the time of their impression. Loading again changes nothing."""
    rows = [(17, "a", 3, 1, 0, "de"), (17, "b", 4, 0, 1, "de"), (18, "c", 9, 1, 0, "fr"), (17, "d", 5, 1, 0, "fr")]
    names = ("user_id", "_candidate_id", "video_id", "is_click", "is_like", "country")
    columns: dict[str, list[Any]] = {name: [row[n] for row in rows] for n, name in enumerate(names)}
    columns |= {"_request_id": ["r"] * 4, "_time": [START + timedelta(minutes=n) for n in range(4)]}
    (tmp_path / "joined" / "date=20261129").mkdir(parents=True)
    (tmp_path / "joined" / "_join").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "joined" / "date=20261129" / "20261129T00.parquet")
    for _ in range(2):
        assert load(models, tmp_path, "--from-joined", str(tmp_path / "joined")) == 0
        expected = [(3, START.timestamp()), (5, START.timestamp() + 180)]
        assert state_of(tmp_path, "17") == ({"country": "fr"}, expected)
        assert state_of(tmp_path, "18") == ({"country": "fr"}, [(9, START.timestamp() + 120)])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"country": ["de"]}, "no column user_id"),
        ({"user_id": [1], "contry": ["de"]}, "column contry is not in state.yaml"),
        ({"user_id": [1, None]}, "row 1: user_id: null"),
        ({"user_id": ["x" * 300]}, "row 0: user_id: the key of a user has 1 to 256 bytes"),
        ({"user_id": [1], "history": [[3, 4]], "history_time": [[START]]}, "row 0: history: expected a list"),
    ],
)
def test_faults_name_file_and_row(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, list[Any]], said: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "users.parquet")
    assert load(models, tmp_path, str(tmp_path / "users.parquet")) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "users.parquet" in error
    assert error.count("\n") == 1
    assert load(models, tmp_path, str(models / "nothing")) == 1
    (tmp_path / "users.parquet").write_bytes(b"PAR1 no more")
    assert load(models, tmp_path, str(tmp_path / "users.parquet")) == 1
