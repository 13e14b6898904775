"""The parent of several workers: keeps the configured number alive, and ends with them.

In: uvicorn's configuration and the listening socket. Out: worker processes, and the exit status. uvicorn's own
supervisor, with what a night needs on top: a worker that had served is replaced at once, one that dies before it serves
is started again after a pause that doubles, one that answers no ping is killed, its event loop has to answer too, and
none can hold up the end. A parent that is killed takes its workers along, after their drain. SIGHUP is passed on to the
workers. It restarts nothing, and no signal adds or takes a worker.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from socket import socket

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from service.base.log import FieldLogger, log_all
from service.process.signals import ENDING, hears_hangup, set_handlers

MOST_PAUSE_SECONDS = 30.0
# Until a worker can answer a ping it imports. On a busy machine with many workers that takes its time.
_START_SECONDS = 60.0

_log = FieldLogger("workers")


class Worker(Process):
    """A worker process. uvicorn's answers pings from a thread of their own. Here that thread pings the event loop
    first, which alone answers requests and may hang by itself. `end_seconds` is what it gets to drain and end."""

    def __init__(self, config: Config, sockets: list[socket], end_seconds: float) -> None:
        super().__init__(config, sockets)
        self._end_seconds = end_seconds

    def target(self, sockets: list[socket] | None = None) -> None:
        """Runs in the worker process."""
        set_handlers()
        log_all()
        threading.Thread(target=self._end_with_parent, name="parent", daemon=True).start()
        super().target(sockets)

    def _end_with_parent(self) -> None:
        # A killed parent terminates no worker, and they would keep the port from the next service. What is joined is a
        # pipe: its other end closes at any end of the parent.
        parent = multiprocessing.parent_process()
        assert parent is not None, "a worker has a parent"
        parent.join()
        _log.error("the parent is gone; this worker drains and ends", pid=os.getpid())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._end_seconds)
        os._exit(1)

    def pong(self) -> None:
        """Answer a ping, once the event loop of a server that has started has."""
        self.child_conn.recv()
        if self.server.started:
            is_awake = threading.Event()
            try:
                self.server.servers[0].get_loop().call_soon_threadsafe(is_awake.set)
                is_awake.wait()
            except RuntimeError:  # the loop is closed: the process is at its end
                pass
        self.child_conn.send(self.server.started)


class Supervisor(Multiprocess):
    """`end_seconds` is what a worker gets between SIGTERM and SIGKILL. `on_replaced` is called at every replacement,
    `on_poll` at every poll of the workers."""

    def __init__(
        self,
        config: Config,
        sockets: list[socket],
        end_seconds: float,
        on_replaced: Callable[[], object] = lambda: None,
        on_poll: Callable[[], object] = lambda: None,
    ) -> None:
        is_hangup_passed_on = hears_hangup()  # the base class takes every signal that it gives a meaning
        super().__init__(config, sockets)
        set_handlers()
        for number in (*ENDING, signal.SIGHUP):
            signal.signal(number, lambda received, _: self.signal_queue.append(received))
        if not is_hangup_passed_on:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.exit_status = 0
        self._end_seconds = end_seconds
        self._on_replaced = on_replaced
        self._on_poll = on_poll
        self._failures = 0  # starts in a row that came to nothing
        self._first_seen: dict[Process, float] = {}
        self._has_served: set[Process] = set()
        self._replace_at: dict[Process, float] = {}

    def init_processes(self) -> None:
        """Start every worker."""
        for _ in range(self.processes_num):
            self.processes.append(self._started())

    def handle_signals(self) -> None:
        """Do what the signals since the last call mean."""
        while self.signal_queue:
            if self.signal_queue.pop(0) in ENDING:
                self.should_exit.set()
            else:
                self._pass_on_hangup()

    def restart_all(self) -> None:
        """Never called: workers that the base class starts would not be supervised."""
        raise AssertionError("no signal restarts workers")

    def keep_subprocess_alive(self) -> None:
        """One poll of every worker."""
        self._on_poll()
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process in self._replace_at:
                if time.monotonic() >= self._replace_at[process]:
                    del self._replace_at[process]
                    self._replace(index)
            elif not self._is_well(process):
                process.kill()
                process.join()
                self._log_death(index, process)

    def join_all(self) -> None:
        """Wait for every worker, by force where one does not end."""
        deadline = time.monotonic() + self._end_seconds
        for process in self.processes:
            process.process.join(max(0.0, deadline - time.monotonic()))
            if process.process.is_alive():
                _log.error("worker does not end; killed", pid=process.pid)
                process.process.kill()
                process.process.join()

    def _is_well(self, process: Process) -> bool:
        if not process.process.is_alive():
            return False
        patience = self.config.timeout_worker_healthcheck
        if process in self._has_served:
            return process.ping(patience)
        first_seen = self._first_seen.setdefault(process, time.monotonic())
        if process.is_ready(patience):
            self._has_served.add(process)
            self._failures = 0
            _log.info("worker serves", pid=process.pid)
            return True
        return time.monotonic() - first_seen < _START_SECONDS or process.ping(patience)

    def _log_death(self, index: int, process: Process) -> None:
        fields = {"pid": process.pid, "exit_status": process.exitcode}
        self._first_seen.pop(process, None)
        if process in self._has_served:
            self._has_served.remove(process)
            _log.error("worker died; another takes its place", **fields)
            self._replace(index)
        elif process.exitcode == STARTUP_FAILURE and not self._has_served:
            _log.error("worker cannot start, nor could another", **fields)
            self.exit_status = 1
            self.should_exit.set()
        else:
            pause = min(MOST_PAUSE_SECONDS, 2.0**self._failures)
            self._failures += 1
            self._replace_at[process] = time.monotonic() + pause
            _log.error(
                "worker died before it served; another starts after a pause",
                **fields,
                failed_starts=self._failures,
                pause_seconds=pause,
            )

    def _replace(self, index: int) -> None:
        self._on_replaced()
        self.processes[index] = self._started()

    def _pass_on_hangup(self) -> None:
        for process in self.processes:
            if process.pid is not None and process.process.is_alive():
                os.kill(process.pid, signal.SIGHUP)

    def _started(self) -> Process:
        process = Worker(self.config, self.sockets, self._end_seconds)
        # A worker inherits what is blocked, and unblocks it once it knows what to do on it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process
