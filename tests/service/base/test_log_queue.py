"""Log lines whose reader stops, goes away or is slow: nothing waits, lines stay whole, what is lost is counted."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from service.base import log_queue
from service.base.log_queue import LogQueue
from tests.service.running import ROOT

LINES = 5_000


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:  # the test has closed it
            assert end == ends[0]


def read_lines(descriptor: int) -> Iterator[bytes]:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        yield from file


def queue_of(descriptor: int) -> LogQueue:
    return LogQueue(descriptor, lambda dropped: b"dropped %d\n" % dropped)


def test_a_reader_that_stops_costs_lines_beyond_the_bound_alone(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_queue, "MAX_HELD_BYTES", 100_000)
    monkeypatch.setattr(log_queue, "_LOG_SECONDS", -1.0)
    reading, writing = pipe
    queue = queue_of(writing)
    line = b"x" * 92 + b" %06d\n"
    for number in range(LINES):
        queue.put(line % number)
    queue.flush(0.1)  # it does not wait for ever either
    dropped = queue.take_dropped()
    # 100,000 bytes in the queue, and what a pipe holds.
    assert LINES - 1_000 - 700 <= dropped <= LINES - 1_000
    assert queue.take_dropped() == 0
    lines = read_lines(reading)
    kept: list[int] = []
    told = 0
    while len(kept) < LINES - dropped:
        word, last = next(lines).split()
        if word == b"dropped":
            told += int(last)
        else:
            kept.append(int(last))
    assert kept == sorted(set(kept))
    queue.put(line % LINES)
    assert next(part for part in lines if part.startswith(b"x")) == line % LINES
    while told < dropped:
        queue.put(line % LINES)
        told += sum(int(part.split()[1]) for part in [next(lines)] if part.startswith(b"dropped"))
    assert told == dropped


def test_lines_of_several_writers_stay_whole_in_one_pipe(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    queues = [queue_of(writing) for _ in range(2)]
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(read_lines(reading)))
    reader.start()
    for number in range(LINES):
        for name, queue in enumerate(queues):
            queue.put(b"%d %06d %s\n" % (name, number, b"y" * (number % 300)))
    for queue in queues:
        queue.flush(60)
    os.close(writing)
    os.dup2(reading, writing)  # for the fixture
    reader.join()
    assert [int(part.split()[1]) for part in found if part.startswith(b"1")] == list(range(LINES))
    assert all(len(part.split()[2:] or [b""]) == 1 and len(part.strip()) >= 8 for part in found)
    assert sum(queue.take_dropped() for queue in queues) == 0


def test_lines_that_nobody_can_read_any_more_are_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    queue = queue_of(writing)
    os.close(reading)
    queue.put(b"one\n")
    queue.flush(60)
    assert queue.take_dropped() == 1


def test_a_stderr_that_does_not_block_loses_nothing(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    queue = queue_of(writing)
    for number in range(LINES):
        queue.put(b"z" * 92 + b" %06d\n" % number)
    lines = read_lines(reading)
    assert [int(next(lines).split()[1]) for _ in range(LINES)] == list(range(LINES))


FORKS = """
import multiprocessing, os, sys
from service.base.log import log_all, logging_config, stderr_queue
import logging, logging.config, warnings

def work():
    logging.getLogger("feedrank").info("from a child")
    stderr_queue().flush()

logging.config.dictConfig(logging_config("info"))
log_all()
logging.getLogger("feedrank").info("from the parent")
for _ in range(3):
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == 0
print("printed", "text")
warnings.warn("a warning")
import threading
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise LookupError("at the end")
"""


def test_all_that_a_process_says_is_lines_of_json_and_written_at_its_end() -> None:
    ended = subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    messages = [line["message"] for line in lines]
    assert messages.count("from the parent") == 1
    assert messages.count("from a child") == 3
    assert "printed text" in messages
    assert any("UserWarning: a warning" in message for message in messages)
    tracebacks = "".join(line.get("traceback", "") for line in lines)
    assert "ZeroDivisionError" in tracebacks
    assert "LookupError: at the end" in tracebacks
