"""The demo as its user runs it: a real terminal's signals, real child processes, a small simulated feed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.deploy.programs import program, wait_for

ROOT = Path(__file__).parents[2]
ROWS = "4000"
DEADLINE_SECONDS = 150.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Demo:
    """A running demo in a folder of its own, in a process group of its own as a terminal would give it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        shutil.copytree(ROOT / "configs", folder / "configs")
        self.folder = folder
        self.port = _free_port()
        self.output = folder / "output.txt"
        command = [sys.executable, "-m", "deploy.demo", "--rows", ROWS, "--port", str(self.port), *flags]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while text not in self.output.read_text():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)

    def interrupt(self) -> int:
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=DEADLINE_SECONDS)

    def left_over(self) -> list[str]:
        """Processes of the demo's session that are still there."""
        return left_over(self.process.pid)


def left_over(session: int) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has just ended
            if process.status() != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == session:
                found.append(" ".join(process.cmdline()))
    return found


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    if demo.process.poll() is None:
        os.killpg(demo.process.pid, signal.SIGKILL)
        demo.process.wait()


@pytest.mark.slow
def test_demo_serves_a_ranking_until_ctrl_c(demo: Demo) -> None:
    demo.wait_for("Serving until Ctrl-C")
    shown = demo.output.read_text()
    assert f"curl -s http://127.0.0.1:{demo.port}/v1/rank" in shown
    body = (demo.folder / "runs/demo/simulated/request.json").read_bytes()
    answer = httpx.post(f"http://127.0.0.1:{demo.port}/v1/rank", content=body).json()
    scores = answer["candidates"]["score"]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    # The printed table shows the same ranking as the service repeats.
    rows = [line.split("│")[1:3] for line in shown.splitlines() if line.startswith("│")]
    ranked = [name.strip() for rank, name in rows if rank.strip().isdecimal()]
    assert ranked == answer["candidates"]["id"]
    assert demo.interrupt() == 0
    assert demo.left_over() == []
    assert [path.name for path in (demo.folder / "models/demo").iterdir() if path.is_dir()] == ["1"]


@pytest.mark.slow
def test_sigterm_to_the_demo_alone_takes_its_children_along(demo: Demo) -> None:
    demo.wait_for("epoch 1:")
    os.kill(demo.process.pid, signal.SIGTERM)
    assert demo.process.wait(timeout=DEADLINE_SECONDS) == 130
    assert demo.left_over() == []


@pytest.mark.slow
def test_ctrl_c_in_training_leaves_no_process_and_no_version(demo: Demo) -> None:
    demo.wait_for("epoch 1:")
    assert demo.interrupt() == 130
    assert demo.left_over() == []
    assert not (demo.folder / "models").exists() or list((demo.folder / "models").rglob("manifest.json")) == []


def test_a_terminal_that_closes_ends_the_demo_and_its_children(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    ours, its = os.openpty()
    command = [program("setsid", "util-linux"), "--ctty", sys.executable, "-m", "deploy.demo", "--port"]
    process = subprocess.Popen(
        [*command, str(_free_port())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    shown = b""
    while b"simulate --rows" not in shown:
        shown += os.read(ours, 65_536)
    os.close(ours)
    assert process.wait(timeout=DEADLINE_SECONDS) == 130
    # A child that was being started meanwhile gets the kernel's own signal, and a moment to end by it.
    wait_for(lambda: left_over(process.pid) == [], lambda: left_over(process.pid))


def test_demo_refuses_a_taken_port_before_any_work(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "deploy.demo", "--once", "--port", str(port)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"port {port}" in ended.stdout
    assert "PORT=" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_value_models_of_the_demo_name_tasks_of_their_schemas() -> None:
    import yaml

    from deploy.demo import kuairand, simulated

    for feed in (simulated(1), kuairand(Path("anywhere"))):
        config = yaml.safe_load((ROOT / feed.config).read_text())
        tasks = {task["name"] for task in yaml.safe_load((ROOT / config["schema"]).read_text())["tasks"]}
        assert set(feed.weights) <= tasks, json.dumps(feed.weights)
