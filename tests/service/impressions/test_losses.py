"""Watermarks and losses of the impression log: after any kill each answered request has a line, or is counted."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.impressions.convert import Conversion
from service.impressions.folder import impression_files
from service.log_files import line_counts, log_writer
from service.log_files.line_counts import LineCounts
from service.log_files.watermark import new_writer
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, sample
from tests.service.running import ROOT, RunningService

WAIT_SECONDS = 60.0


def wait_for(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(0.005)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_artifact(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


def watermark_of(folder: Path) -> datetime:
    (file,) = folder.glob("*.watermark")
    return datetime.fromisoformat(json.loads(file.read_text())["watermark"])


def asked(client: Any, name: str) -> int:
    status: int = client.post("/v1/rank", json={**TINY_REQUEST, "request_id": name}).status_code
    return status


def by_request(lines: list[dict[str, Any]]) -> tuple[list[str], int]:
    """The request ids of lines, and how many requests other lines say are lost."""
    return [line["request_id"] for line in lines if "lost" not in line], sum(line.get("lost", 0) for line in lines)


def test_the_watermark_moves_idle_or_not_and_passes_no_line_that_is_open(
    models: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "WATERMARK_SECONDS", 0.05)
    monkeypatch.setattr(Conversion, "start", lambda _: None)
    with client_of(models, impression_log=folder) as client:
        wait_for(lambda: bool(list(folder.glob("*.watermark"))))
        first = watermark_of(folder)
        wait_for(lambda: watermark_of(folder) > first)
        seen: list[tuple[datetime, set[str]]] = []
        while len(seen) < 5:
            watermark = watermark_of(folder)
            # Read after the watermark: what was taken before it is in a closed file by now.
            closed = set(by_request(lines_of(folder))[0])
            assert asked(client, f"r-{len(seen)}") == 200
            if not seen or watermark > seen[-1][0]:
                seen.append((watermark, closed))
    times = {line["request_id"]: datetime.fromisoformat(line["time"]) for line in lines_of(folder)}
    for watermark, closed in seen:
        assert {name for name, taken_at in times.items() if taken_at < watermark} <= closed
    assert list(folder.glob("*.watermark")) == []


def test_what_waited_at_a_kill_is_said_to_be_lost_by_the_next_writer(models: Path, folder: Path) -> None:
    """The disk hangs after some lines, and the process is killed with others in memory."""
    program = (
        "import os, signal, sys, threading\n"
        "from pathlib import Path\n"
        "from service.log_files.rotated_files import RotatedFiles\n"
        "from tests.artifacts import TINY_REQUEST\n"
        "from tests.service.in_process import client_of, sample\n"
        "hangs, append = threading.Event(), RotatedFiles.append\n"
        "RotatedFiles.append = lambda files, blocks: threading.Event().wait() if hangs.is_set() "
        "else append(files, blocks)\n"
        "with client_of(Path(sys.argv[1]), impression_log=Path(sys.argv[2])) as client:\n"
        "    for number in range(30):\n"
        "        body = {**TINY_REQUEST, 'request_id': f'r-{number}'}\n"
        "        assert client.post('/v1/rank', json=body).status_code == 200\n"
        "        while number == 9 and sample(client, 'ranking_impression_log_total', result='written') < 10:\n"
        "            pass\n"
        "        if number == 9:\n"
        "            hangs.set()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(models), str(folder)]
    assert subprocess.run(command, cwd=ROOT, check=False, timeout=WAIT_SECONDS).returncode == -signal.SIGKILL
    (mark,) = folder.glob("*.watermark")
    died_after = json.loads(mark.read_text())["written"]
    counts = line_counts.MEMORY / f"feedrank-log-{json.loads(mark.read_text())['writer']}.counts"
    assert counts.exists()
    with client_of(models, impression_log=folder) as client:
        wait_for(lambda: not counts.exists())
        assert sample(client, "ranking_impression_log_total", result="killed") == 20
        assert not mark.exists()
    *lines, loss = sorted(lines_of(folder), key=lambda line: "lost" in line)
    assert [line["request_id"] for line in lines] == [f"r-{number}" for number in range(10)]
    # At the last sign of life, whose hour the dead writer's watermark held open.
    assert loss == {"format": 2, "time": died_after, "lost": 20, "reason": "their writer was killed"}


class Client(threading.Thread):
    """Asks one request after another and remembers those that were answered."""

    def __init__(self, address: str, name: str) -> None:
        super().__init__(daemon=True)
        self._address, self._name = address, name
        self.answered: list[str] = []
        self.unanswered = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self._address, timeout=30, trust_env=False) as client:
            number = 0
            while not self.is_over.is_set():
                number += 1
                name = f"{self._name}-{number}"
                try:
                    status = asked(client, name)
                except httpx.TransportError:
                    self.unanswered += 1
                    continue
                if status == 200:
                    self.answered.append(name)


@pytest.mark.slow
def test_each_answered_request_has_a_line_or_is_counted_after_kills(models: Path, folder: Path) -> None:
    rng = random.Random(0)
    answered: list[str] = []
    unanswered = kills = 0
    for life in range(2):
        flags = ("--impression-log", str(folder), "--workers", "2", "--threads", "1")
        with RunningService(models, *flags) as service:
            service.wait_workers(2)
            service.wait_ready()
            clients = [Client(str(service.client.base_url), f"{life}-{number}") for number in range(4)]
            for client in clients:
                client.start()
            for kill in range(3):
                reached = [len(client.answered) + 50 for client in clients]
                service.wait_for(
                    lambda: all(len(c.answered) >= most for c, most in zip(clients, reached, strict=True))  # noqa: B023
                )
                workers = service.workers()
                victim = service.process.pid if kill == 2 else rng.choice(sorted(workers))
                os.kill(victim, signal.SIGKILL)
                kills += 1 if kill < 2 else 2  # the parent's workers end with it
            for client in clients:
                client.is_over.set()
            for client in clients:
                client.join()
            answered += [name for client in clients for name in client.answered]
            unanswered += sum(client.unanswered for client in clients)
            service.wait()
            psutil.wait_procs([psutil.Process(one) for one in workers if psutil.pid_exists(one)], WAIT_SECONDS)
    with RunningService(models, "--impression-log", str(folder)) as service:
        service.wait_ready()
        service.wait_for(lambda: len(list(folder.glob("*.watermark"))) == 1)
        assert service.stop(signal.SIGTERM) == 0
    assert list(folder.glob("*.watermark")) == []
    assert impression_files(folder).open_files() == []
    found = lines_of(folder)
    names, lost = by_request(found)
    assert len(names) == len(set(names))
    missing = set(answered) - set(names)
    assert len(missing) <= lost
    # Lines of the write that a kill cut short may be counted too, and those of whose answer no client knows.
    shortest = min(len(json.dumps(line)) for line in found if "lost" not in line)
    assert lost <= len(missing) + unanswered + kills * (2**20 // shortest)


def test_counts_outlive_nobody_who_ended_well(models: Path, folder: Path) -> None:
    before = set(line_counts.MEMORY.glob("feedrank-log-*"))
    with client_of(models, impression_log=folder) as client:
        assert asked(client, "r-1") == 200
        (mine,) = set(line_counts.MEMORY.glob("feedrank-log-*")) - before
        assert mine.stat().st_mode & 0o777 == 0o600
    assert not mine.exists()
    assert by_request(lines_of(folder)) == (["r-1"], 0)


def test_counts_that_are_not_ours_count_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_counts, "MEMORY", tmp_path)
    writer = new_writer()
    file = tmp_path / f"feedrank-log-{writer}.counts"
    assert LineCounts.lost_by(writer) == 0
    file.write_bytes(b"short")
    assert LineCounts.lost_by(writer) == 0
    file.write_bytes((3).to_bytes(8, "little") + (7).to_bytes(8, "little"))
    assert LineCounts.lost_by(writer) == 0
    file.write_bytes((7).to_bytes(8, "little") + (3).to_bytes(8, "little"))
    assert LineCounts.lost_by(writer) == 4
    with pytest.raises(FileExistsError):
        LineCounts(writer, tmp_path / "lock")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert LineCounts.lost_by(writer) == 0
    file.unlink()
    os.mkfifo(file)
    assert LineCounts.lost_by(writer) == 0
    LineCounts.remove_of(writer)
    counts = LineCounts(writer, tmp_path / "lock")
    counts.add_taken(5)
    counts.add_settled(2)
    assert LineCounts.lost_by(writer) == 3
    assert not counts.close()
    counts.add_settled(3)
    assert counts.close()
    assert list(tmp_path.glob("feedrank*")) == []


def test_counts_that_nobody_will_read_are_removed_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_counts, "MEMORY", tmp_path)
    (tmp_path / "lock").touch()
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from service.log_files import line_counts\n"
        "line_counts.MEMORY = Path(sys.argv[1])\n"
        "counts = [line_counts.LineCounts(name, line_counts.MEMORY / name) for name in ('gone', 'lock', 'young')]\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False, timeout=WAIT_SECONDS)
    assert done.returncode == -signal.SIGKILL
    living = LineCounts("living", tmp_path / "not there")
    for name in ("gone", "lock", "living"):
        os.utime(tmp_path / f"feedrank-log-{name}.counts", (1, 1))
    os.mkfifo(tmp_path / "feedrank-log-other.counts")
    LineCounts.remove_orphans()
    left = {file.name.split("-")[2].removesuffix(".counts") for file in tmp_path.glob("*.counts")}
    assert left == {"lock", "young", "living", "other"}
    assert living.close()
