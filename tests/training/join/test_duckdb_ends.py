"""Signals that come while DuckDB works: its call raises the end of the job, not an error of DuckDB's own."""

import signal
import subprocess
import sys

import pytest

from tests.deploy.programs import ROOT

SECONDS = 60
# The first statement, the rows and the counts of an hour, each of which would take hours.
PROGRAM = """
import os, signal, sys, tempfile, threading
from pathlib import Path

import ibis

from training.join.engines.duckdb_engine import DuckDB
from training.stopping import take_signals


class Endless:
    def resolved(self):
        return self.rows() if CALL == "begin" else ibis.range(3).unnest().name("x").as_table()

    def rows(self):
        one = ibis.range(10**6).unnest().name("x").as_table()
        return one.cross_join(one.view()).filter(lambda t: (t.x * t.x_right) % 999983 == 1)

    counts = rows


CALL, SECONDS = sys.argv[1], float(sys.argv[3])
take_signals()
with tempfile.TemporaryDirectory() as spill:
    engine = DuckDB(Endless(), Path(spill), threads=1, memory="200MB")
    if CALL != "begin":
        engine.begin({})
    threading.Timer(SECONDS, os.kill, (os.getpid(), int(sys.argv[2]))).start()
    try:
        {"begin": lambda: engine.begin({}), "rows": lambda: list(engine.rows()), "counts": engine.counts}[CALL]()
    except BaseException as error:
        print(type(error).__name__, *error.args)
"""


# Early, when the statement has hardly begun, and within a task of it, which alone would take minutes.
@pytest.mark.parametrize("seconds", [0.1, 1.0])
@pytest.mark.parametrize(
    ("call", "number", "end"),
    [
        ("begin", signal.SIGTERM, f"Terminated {int(signal.SIGTERM)}"),
        ("begin", signal.SIGINT, "KeyboardInterrupt"),
        ("rows", signal.SIGTERM, f"Terminated {int(signal.SIGTERM)}"),
        ("counts", signal.SIGTERM, f"Terminated {int(signal.SIGTERM)}"),
    ],
)
def test_a_signal_within_a_statement_is_the_end_of_the_job(
    call: str, number: signal.Signals, end: str, seconds: float
) -> None:
    command = [sys.executable, "-c", PROGRAM, call, str(int(number)), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout.strip() == end, done.stderr
