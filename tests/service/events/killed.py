"""A service that is killed while clients send events, and what is in its log after the next start.

In: a folder of models, one for the event log, how often to kill. Out: identities of the events that clients know to be
accepted, and of those that the log has.
"""

import json
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from service.events.event_log import event_files
from tests.service.running import RunningService

CLICK: dict[str, Any] = {"request_id": "r-1", "type": "click", "id": "v2"}
_BATCH, _SENDERS, _WORKERS, _BETWEEN_KILLS = 20, 3, 2, 200


class Seen(NamedTuple):
    """Identities of accepted events, and of those in the log, once a line."""

    accepted: list[str]
    found: list[str]


def lines_of(files: list[Path]) -> list[dict[str, Any]]:
    """The lines of files."""
    return [json.loads(line) for file in files for line in file.read_text().split("\n")[:-1]]


class Sender(threading.Thread):
    """Sends events one batch after another and remembers those that were accepted, until it is told to stop."""

    def __init__(self, address: str, name: str) -> None:
        super().__init__(daemon=True)
        self._address, self._name = address, name
        self.accepted: list[str] = []
        self.sent = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        """Sends."""
        with httpx.Client(base_url=self._address, timeout=10, trust_env=False) as client:
            while not self.is_over.is_set():
                batch = [f"{self._name}-{self.sent + number}" for number in range(_BATCH)]
                self.sent += len(batch)
                events = [{**CLICK, "event_id": identity} for identity in batch]
                try:
                    answer = client.post("/v1/events", json={"events": events})
                except httpx.TransportError:
                    continue  # killed in the middle: not accepted, and it may be in the log all the same
                if answer.status_code == 202:
                    self.accepted += batch


def kill_under_load(models: Path, log: Path, *, lives: int, kills: int, seed: int) -> Seen:
    """Start a service so many times and kill one of its workers, the last time of each life the parent."""
    draw = random.Random(seed)
    accepted: list[str] = []
    for life in range(lives):
        flags = ("--event-log", str(log), "--workers", str(_WORKERS), "--threads", "1")
        with RunningService(models, *flags) as service:
            service.wait_ready()
            senders = [Sender(str(service.client.base_url), f"{life}-{number}") for number in range(_SENDERS)]
            for sender in senders:
                sender.start()
            for kill in range(kills):
                reached = [len(sender.accepted) + _BETWEEN_KILLS for sender in senders]
                # Each sender gets on again after the worker that it talked to was killed.
                service.wait_for(
                    lambda: all(len(s.accepted) >= most for s, most in zip(senders, reached, strict=True))  # noqa: B023
                )
                workers = [worker for worker in psutil.Process(service.process.pid).children() if worker.is_running()]
                victim = service.process.pid if kill == kills - 1 else draw.choice(workers).pid
                os.kill(victim, signal.SIGKILL)
            for sender in senders:
                sender.is_over.set()
            for sender in senders:
                sender.join()
            accepted += [identity for sender in senders for identity in sender.accepted]
    with RunningService(models, "--event-log", str(log)) as service:
        service.wait_ready()
        service.wait_for(lambda: len(list(log.glob("*.watermark"))) == 1)
        assert service.stop(signal.SIGTERM) == 0
    return Seen(accepted, [line["event_id"] for line in lines_of(event_files(log).whole_files())])
