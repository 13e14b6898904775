"""Time limits of tests: one that works goes on, one that waits or loops for ever is ended."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITE = """
import subprocess, sys, time
import pytest

BURN = "import time\\nwhile time.process_time() < 1.5: pass"

@pytest.fixture
def compiled():
    subprocess.run([sys.executable, "-c", BURN], check=True)

def test_that_works_in_a_child_of_its_fixture(compiled): pass
def test_that_waits_for_ever(): time.sleep(3600)
def test_that_loops_for_ever():
    while True: pass
"""


def test_a_test_is_ended_where_it_makes_no_progress_and_no_sooner(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.progress import pytest_timeout_set_timer\n")
    (tmp_path / "test_suite.py").write_text(SUITE)
    # One second: the child's CPU time is over it, and loops end at four.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-o", "timeout=1", "--rootdir", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("PASSED", "FAILED"))]
    outcomes = {words[1].rpartition("::")[2]: words[0] for words in lines}
    assert outcomes == {
        "test_that_works_in_a_child_of_its_fixture": "PASSED",
        "test_that_waits_for_ever": "FAILED",
        "test_that_loops_for_ever": "FAILED",
    }
    assert done.stdout.count("Timeout (>1") == 4  # each in its place and in the summary
