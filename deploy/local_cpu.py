"""CPU time of processes of this machine: CPU seconds of a service, all its threads and children included.

In: a process, or the URL at which processes of this machine listen. Out: CPU seconds between two readings, from
/proc/PID/task/TID/schedstat.
"""

import ipaddress
import socket
from collections.abc import Iterable, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil


@dataclass(frozen=True)
class Cpu:
    """CPU nanoseconds of each thread, user and system: the scheduler's own count, finer than that of a process."""

    nanoseconds: dict[int, int]

    def seconds_since(self, before: "Cpu") -> float:
        """CPU seconds between. A thread that has ended meanwhile counts nothing: it was idle, or it would be there."""
        spent = (after - before.nanoseconds.get(thread, 0) for thread, after in self.nanoseconds.items())
        return sum(spent) / 1e9


def spent_by(processes: Iterable[int]) -> Cpu:
    """CPU seconds of the threads of processes, and of those of all their children, so far. Raises RuntimeError if
    a process has ended."""
    nanoseconds: dict[int, int] = {}
    waiting = list(processes)
    shown = ", ".join(map(str, waiting))
    while waiting:
        with suppress(FileNotFoundError, ProcessLookupError):  # a process, or a thread, that has just ended
            for thread in Path(f"/proc/{waiting.pop()}/task").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):
                    waiting += map(int, (thread / "children").read_text(encoding="ascii").split())
                    nanoseconds[int(thread.name)] = int((thread / "schedstat").read_text(encoding="ascii").split()[0])
    if not nanoseconds:
        raise RuntimeError(f"process {shown} has ended, or this kernel keeps no /proc/PID/task/TID/schedstat")
    return Cpu(nanoseconds)


def listening_at(url: str) -> Set[int]:
    """The processes that listen at a URL of this machine. None where it is another's, or may not be read."""
    address = urlsplit(url)
    try:
        if not ipaddress.ip_address(socket.gethostbyname(address.hostname or "")).is_loopback:
            return frozenset()
    except OSError:
        return frozenset()
    port = address.port or (443 if address.scheme == "https" else 80)
    listening = set()
    # Process by process: workers share one socket, which a list of sockets would name a single process for.
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            sockets = process.net_connections("tcp")
            if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets):
                listening.add(process.pid)
    return listening
