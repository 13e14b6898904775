"""Scripts of training jobs, ended by SIGTERM while their first job runs."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
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


def end_job_as_it_begins(command: Sequence[str], work: Path, given: Mapping[str, str]) -> int:
    """Run a script of `command[2]` whose shell gets SIGTERM between the start of its first job and the line that notes
    its process. Returns its status. Raises TimeoutExpired where the job runs on."""
    program, before = work / "bin" / "python", work / "before"
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\nexec sleep 3600\n")
    program.chmod(0o755)
    before.write_text("""set -T; trap '[ "$BASH_COMMAND" = "child=\\$!" ] && kill -TERM $$' DEBUG\n""")
    environment = {**os.environ, **given, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    script = ["bash", command[1], f'. "{before}"; {command[2]}', *command[3:]]
    with subprocess.Popen(script, cwd=work, env=environment, start_new_session=True) as process:
        try:
            return process.wait(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
