"""Common ground of all tests: one torch thread, one Hypothesis profile, and access to the public data sets.

Input: the environment variable FEEDRANK_DATA, a folder with one subfolder per data set. Tests that need it take the
`feedrank_data` fixture. Without the folder they skip, and the summary says how many did, so that a green run never
hides that no real data was read.
"""

import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.progress import pytest_timeout_set_timer

__all__ = ["pytest_timeout_set_timer"]  # a hook: pytest finds it here

# torch's compiler imports setuptools, whose distutils has to come before that of Python, which torchmetrics imports.
importlib.import_module("setuptools")

# nohup has SIGHUP ignored, and what is started inherits that. Tests send it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

DATA_VARIABLE = "FEEDRANK_DATA"
REAL_DATA_MARK = "real data:"  # how a skip of this kind begins, so that the summary can count it

# Small tensors all over the suite: a second thread costs more in waking up than it brings, and results
# then do not depend on how many cores the machine has.
torch.set_num_threads(1)

# The same examples in every run, and no verdict from the clock: a busy machine must not turn a test red.
settings.register_profile(
    "feedrank", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("feedrank")


def _data_folder(name: str) -> Path:
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        pytest.skip(f"{REAL_DATA_MARK} {DATA_VARIABLE} is not set, {name} was not read")
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"{REAL_DATA_MARK} {DATA_VARIABLE} has no folder {name}")
    return folder.resolve()


@pytest.fixture(scope="session")
def feedrank_data() -> Callable[[str], Path]:
    """A function from a data set's name (`kuairand_pure`) to its folder. Skips where it is absent."""
    return _data_folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped for want of real data."""
    skipped = [
        report
        for report in terminalreporter.getreports("skipped")
        if isinstance(report.longrepr, tuple) and REAL_DATA_MARK in report.longrepr[2]
    ]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests on real data were skipped: set {DATA_VARIABLE} to its folder",
            yellow=True,
        )
    else:
        terminalreporter.write_line("no test was skipped for want of real data")
