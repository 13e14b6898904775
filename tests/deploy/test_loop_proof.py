"""What the proof reads out of a journal, what it draws, and what it refuses."""

import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from deploy.loop import __main__ as command
from deploy.loop.asking import Backend, RefusedError
from deploy.loop.picture import draw
from deploy.loop.proof import Plan, calls, cold_start_after_shift, values_where_both
from deploy.loop.questions import BETTER, EQUAL, calls_of_experiments, covers
from deploy.loop.town import Town

PLAN = Plan(Town(1, 40, 80, 60, 15, shift_day=4), days=6, poisoned_day=2, bad_model_day=3, log_rows=1000)
# The town's day 0 is the day after the simulated log.
DATES = [f"2024-01-{15 + day}" for day in range(6)]
BAD = "7"


def gate(day: int, decision: str) -> dict[str, Any]:
    return {"step": "data_gate", "decision": decision, "figures": {"day": DATES[day]}, "versions": {}}


def by_hand(canary: str) -> dict[str, Any]:
    labels = {"stable": "1", "canary": {"version": canary, "share": 0.5}}
    return {"step": "labels", "decision": "change", "who": "key town", "versions": {"before": {}, "after": labels}}


def verdict(canary: str, decision: str) -> dict[str, Any]:
    return {"step": "judge", "decision": decision, "figures": {}, "versions": {"stable": "1", "canary": canary}}


RIGHT = [
    gate(0, "accept"), gate(1, "accept"), gate(2, "quarantine"), by_hand(BAD), verdict(BAD, "withdraw"),
    gate(3, "accept"), gate(4, "accept"), verdict("8", "promote"), gate(5, "accept"),
]  # fmt: skip


def test_a_journal_that_called_everything_rightly() -> None:
    assert set(calls(PLAN, RIGHT, {}).values()) == {True}


@pytest.mark.parametrize(
    ("wrong", "instead", "call"),
    [
        (2, gate(2, "accept"), "poisoned day quarantined"),
        (6, gate(4, "quarantine"), "shift accepted"),
        (8, gate(5, "quarantine"), "no other day quarantined"),
        (4, verdict(BAD, "wait"), "bad model withdrawn"),
        (7, verdict("8", "withdraw"), "no good canary withdrawn"),
    ],
)
def test_each_wrong_call_is_seen(wrong: int, instead: dict[str, Any], call: str) -> None:
    journal = [instead if place == wrong else entry for place, entry in enumerate(RIGHT)]
    found = calls(PLAN, journal, {})
    assert not found[call]
    # A day of the shift that is quarantined is one more day than should be.
    assert [name for name, is_so in found.items() if not is_so and name != "no other day quarantined"] in ([call], [])


@pytest.mark.parametrize(("own", "stable", "is_right"), [(6.69, 7.31, True), (7.31, 7.31, False), (7.4, 7.31, False)])
def test_a_canary_that_was_truly_worse_is_withdrawn_rightly(own: float, stable: float, is_right: bool) -> None:
    journal = [*RIGHT[:7], verdict("8", "withdraw"), *RIGHT[8:]]
    found = calls(PLAN, journal, {BAD: (3.0, 7.0), "8": (own, stable)})
    assert found.pop("no good canary withdrawn") is is_right
    assert set(found.values()) == {True}


def test_a_canary_is_valued_on_its_days_alone() -> None:
    days = [{"1": [9.0]}, {"1": [1.0, 2.0], "8": [4.0]}, {"1": [3.0], "8": [1.0, 4.0]}, {"8": [50.0]}]
    assert values_where_both(days, {"8": "1", "9": "1"}) == {"8": (3.0, 2.0)}


def published(day: int, start: str) -> dict[str, Any]:
    figures = {"day": DATES[day], "start": start}
    return {"step": "export", "decision": "publish", "figures": figures, "versions": {"parent": str(day)}}


@pytest.mark.parametrize(
    ("nights", "found"),
    [
        (((1, "cold"), (3, "warm"), (4, "warm"), (5, "cold")), 5),
        (((4, "cold"), (5, "cold")), 4),
        (((3, "cold"), (5, "warm")), None),
    ],
)
def test_a_cold_start_counts_from_the_shift_on(nights: tuple[tuple[int, str], ...], found: int | None) -> None:
    cold_start = cold_start_after_shift(PLAN, [*RIGHT, *(published(*night) for night in nights)])
    assert cold_start == (None if found is None else (found, str(found)))


def experiment(true: float, status: int = 0, **called: str) -> dict[str, Any]:
    value = {"value": true + 0.01, "low": true - 0.05, "high": true + 0.07}
    return {"true": true, "status": status, "users": 400, "value": value, "called": called}


RIGHTLY = {BETTER: experiment(0.2, value="better", click="better"), EQUAL: experiment(0.0)}


@pytest.mark.parametrize(
    ("found", "better", "equal"),
    [
        (RIGHTLY, True, True),
        ({**RIGHTLY, BETTER: experiment(0.2, click="better")}, False, True),
        ({**RIGHTLY, BETTER: experiment(0.2, value="worse")}, False, True),
        ({**RIGHTLY, BETTER: experiment(-0.1, value="better")}, False, True),
        ({**RIGHTLY, EQUAL: experiment(0.0, hide="worse")}, True, False),
        ({**RIGHTLY, EQUAL: experiment(0.0, status=4)}, True, False),
    ],
)
def test_calls_of_experiments(found: dict[str, Any], better: bool, equal: bool) -> None:
    assert list(calls_of_experiments(found).values()) == [better, equal]


def test_an_estimate_covers_the_truth_or_not() -> None:
    estimate = {"doubly_robust": {"value": 1.0, "low": 0.9, "high": 1.1}}
    assert covers({"true": 1.1, "estimate": estimate})
    assert not covers({"true": 1.2, "estimate": estimate})
    assert not covers({"true": 1.0, "estimate": {"doubly_robust": None}})


@pytest.mark.parametrize("refused", [False, True])
def test_the_picture_is_one(refused: bool) -> None:
    day = {"mean": 7.0, "low": 6.5, "high": 7.5}
    estimate = None if refused else {"value": 1.0, "low": 0.9, "high": 1.1}
    png = draw({
        "curves": {arm: [day] * 3 for arm in ("static", "cold", "loop")},
        "happened": {"tastes shift": 1},
        "experiments": RIGHTLY,
        "exploration": {"price": day, "places": 2, "true": 1.0, "estimate": {"doubly_robust": estimate}},
    })  # fmt: skip
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width > 2 * height > 800


def test_a_connection_that_the_service_closed_is_opened_again() -> None:
    """Each connection is closed after its first answer, without a word in its head."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for number in range(3):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with Backend(listener.getsockname()[1], "feed") as backend:
            assert [backend.send("GET", "/") for _ in range(3)] == [0, 1, 2]
        thread.join(60)
        assert not thread.is_alive()


def test_what_a_busy_service_sheds_is_sent_again() -> None:
    """Two answers that shed, then one. What is refused for another reason is not sent again."""
    statuses = [b"429 Too Many Requests", b"503 Service Unavailable", b"200 OK", b"422 Unprocessable Entity"]
    bodies = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for status in statuses:
                connection, _ = listener.accept()
                with connection:
                    received = b""
                    while not received.endswith(b"}"):
                        received += connection.recv(65536)
                    bodies.append(received.rpartition(b"\r\n")[2])
                    connection.sendall(b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1" % status)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with Backend(listener.getsockname()[1], "feed") as backend:
            assert backend.send("POST", "/v1/rank", {"request_id": "r-1"}) == 1
            with pytest.raises(RefusedError, match="422"):
                backend.send("POST", "/v1/rank", {"request_id": "r-2"})
        thread.join(60)
    assert bodies == [b'{"request_id": "r-1"}'] * 3 + [b'{"request_id": "r-2"}']


def test_a_folder_that_is_there_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["loop", "--out", str(tmp_path), "--fast"])
    assert command.main() == 2
    assert "is there already" in " ".join(capsys.readouterr().out.split())
    assert list(tmp_path.iterdir()) == []
