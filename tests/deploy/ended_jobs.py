"""Scripts of training jobs, ended by SIGTERM while their first job runs."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.deploy.programs import wait_for

_PYTHON = """#!/bin/sh
trap 'echo ended >> "$CALLS"; exit 143' TERM
echo "$3" >> "$CALLS"
while :; do sleep 0.05; done
"""


def end_job(command: Sequence[str], work: Path, given: Mapping[str, str]) -> str:
    """Run a script with a program called python that ends at SIGTERM. Sends the shell one once the first job is at
    work, checks its status, and returns which jobs began and ended, a line each."""
    program, calls = work / "bin" / "python", work / "calls"
    program.parent.mkdir(exist_ok=True)
    program.write_text(_PYTHON)
    program.chmod(0o755)
    environment = {**os.environ, **given, "CALLS": str(calls), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    with subprocess.Popen(command, cwd=work, env=environment) as process:
        wait_for(lambda: calls.exists() and calls.read_text().endswith("\n"))
        process.terminate()
        assert process.wait(timeout=60) == 143
    return calls.read_text()
