"""Admission: bounded work, honest waits, and a real service that sheds what is too much and answers the rest."""

import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.base.errors import Problem
from service.http.admission import FIRST_BYTES, FIRST_RATE, FIXED_WORK, Admission, Ticket
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of, sample
from tests.service.running import RunningService


def size_of(candidates: int) -> int:
    """The bytes of a body that is guessed to hold so many, before any was seen."""
    return round(candidates * FIRST_BYTES)


def test_an_idle_process_takes_the_largest_request_and_one_more_for_each_thread() -> None:
    admission = Admission(threads=2, seconds=0.001, largest=2000)
    tickets = [admission.admit(size_of(2000)) for _ in range(3)]
    with pytest.raises(Problem) as raised:
        admission.admit(size_of(2000))
    assert raised.value.status == 429
    tickets[0].release()
    admission.admit(size_of(2000))


def test_the_bound_is_what_the_threads_do_in_the_time() -> None:
    admission = Admission(threads=2, seconds=0.5, largest=2000)
    assert admission.limit == 2 * 0.5 * FIRST_RATE
    for _ in range(math.floor(admission.limit / (100 + FIXED_WORK))):
        admission.admit(size_of(100))
    with pytest.raises(Problem) as raised:
        admission.admit(size_of(100))
    wait = admission.in_flight / (2 * FIRST_RATE)
    assert raised.value.headers["Retry-After"] == str(max(1, math.ceil(wait)))
    assert str(admission.wait(size_of(100))) == raised.value.headers["Retry-After"]
    assert admission.wait(None) is not None  # it may be the largest


def test_an_honest_wait_is_longer_when_the_threads_are_slower() -> None:
    admission = Admission(threads=1, seconds=10, largest=2000)
    ticket = admission.admit(size_of(100))
    for _ in range(2000):  # so often that nothing of the first guess is left
        ticket.scored((100 + FIXED_WORK) / 50)
    # Fifty units of work a second now, so ten seconds hold three requests.
    for _ in range(2):
        admission.admit(size_of(100))
    with pytest.raises(Problem) as raised:
        admission.admit(size_of(100))
    assert raised.value.headers["Retry-After"] == "9"


def test_one_slow_request_does_not_close_the_door() -> None:
    """The first of a cold process may take seconds. Those after it must not be shed for that."""
    admission = Admission(threads=1, seconds=0.1, largest=2000)
    before = admission.limit
    ticket = admission.admit(size_of(1))
    ticket.scored(5.0)
    assert admission.limit > 0.8 * before
    for _ in range(200):  # and where it stays so slow, they are
        ticket.scored(5.0)
    assert admission.limit < 0.01 * before


def test_the_guess_follows_the_bodies_that_were_seen() -> None:
    admission = Admission(threads=1, seconds=10, largest=2000)
    size = 30_000
    for _ in range(500):
        ticket = admission.admit(size)
        ticket.set_candidates(100)  # 300 bytes a candidate
        ticket.release()
    ticket = admission.admit(size)
    assert admission.in_flight == pytest.approx(100 + FIXED_WORK, rel=1e-6)


def test_a_compressed_body_is_the_largest_and_is_learned_as_it_was() -> None:
    admission = Admission(threads=1, seconds=0.1, largest=2000)
    ticket = admission.admit(None)
    assert admission.in_flight == 2000 + FIXED_WORK
    ticket.set_candidates(100)  # of a body that nobody has unpacked nothing is learned
    ticket.release()
    assert admission.admit(size_of(100)).size == size_of(100)
    assert admission.in_flight == 100 + FIXED_WORK
    for _ in range(500):
        ticket = admission.admit(None)
        ticket.size = 30_000
        ticket.set_candidates(100)
        ticket.release()
    admission.admit(30_000)
    assert admission.in_flight == pytest.approx(2 * (100 + FIXED_WORK), rel=1e-6)


Operations = st.lists(st.tuples(st.sampled_from(["admit", "correct", "score", "release"]), st.integers(0, 3000)))


@given(Operations, st.integers(1, 4), st.floats(1e-3, 1.0))
def test_work_in_flight_is_the_work_of_the_open_tickets(
    operations: list[tuple[str, int]], threads: int, seconds: float
) -> None:
    admission = Admission(threads, seconds, largest=2000)
    open_tickets: list[tuple[Ticket, int]] = []
    for operation, number in operations:
        if operation == "admit":
            before = admission.in_flight
            try:
                ticket = admission.admit(number)
            except Problem:
                assert open_tickets, "an idle process refuses nothing"
                assert admission.in_flight == before
            else:
                open_tickets.append((ticket, admission.in_flight - before))
        elif open_tickets:
            position = number % len(open_tickets)
            ticket, _ = open_tickets[position]
            if operation == "correct":
                ticket.set_candidates(number)
                open_tickets[position] = (ticket, FIXED_WORK + number)
            elif operation == "score":
                ticket.scored(number / 1e5)
            else:
                ticket.release()
                del open_tickets[position]
                # Its deadline has passed, and its thread works on.
                ticket.set_candidates(number)
                ticket.scored(1e-3)
                ticket.release()
        expected = sum(work for _, work in open_tickets)
        assert admission.in_flight == expected


def test_every_end_of_a_request_gives_its_room_back(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        answered = [
            client.post("/v1/rank", json=TINY_REQUEST).status_code,
            client.post("/v1/rank", content=b"{").status_code,
            client.post("/v1/rank", json={**TINY_REQUEST, "model": "absent"}).status_code,
            client.post("/v1/rank", json={**TINY_REQUEST, "user": {"no_such": 1}}).status_code,
        ]
        assert answered == [200, 400, 404, 422]
        assert sample(client, "ranking_work_in_flight") == 0


def test_too_much_is_shed_and_what_is_let_in_is_answered(tmp_path: Path) -> None:
    """Forty clients at once against one thread that may keep requests waiting for two milliseconds."""
    publish_artifact(tmp_path)
    candidates = TINY_REQUEST["candidates"]
    large = {
        **TINY_REQUEST,
        "candidates": {
            "id": [str(row) for row in range(1000)],
            "features": {name: (column * 1000)[:1000] for name, column in candidates["features"].items()},
        },
    }
    content = json.dumps(large).encode()
    with RunningService(tmp_path, "--threads", "1", "--queue-seconds", "0.002") as service:
        service.wait_ready()
        expected = service.client.post("/v1/rank", content=content).json()["candidates"]
        together = threading.Barrier(40)

        def ask(_: int) -> list[httpx.Response]:
            with httpx.Client(base_url=service.client.base_url, timeout=60, trust_env=False) as client:
                together.wait()
                return [client.post("/v1/rank", content=content) for _ in range(5)]

        with ThreadPoolExecutor(40) as pool:
            answers = [answer for given in pool.map(ask, range(40)) for answer in given]
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 429}
        for answer in answers:
            if answer.status_code == 200:
                assert answer.json()["candidates"] == expected
            else:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["type"] == "urn:feedrank:problem:busy"
        shed = sum(answer.status_code == 429 for answer in answers)
        metrics = service.client.get("/metrics").text
        assert f'ranking_requests_rejected_total{{reason="shed"}} {float(shed)}' in metrics
        assert "ranking_work_in_flight 0.0" in metrics
        give_up = time.monotonic() + 10
        while service.client.post("/v1/rank", content=content).status_code != 200:
            assert time.monotonic() < give_up
