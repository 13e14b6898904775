"""What a service on this machine spends: CPU seconds of the processes that listen on a port, children included.

In: a URL. Out: `ServiceCpu`, None where the URL is another machine's or nobody's.
"""

import ipaddress
import socket
from collections.abc import Set
from contextlib import suppress
from urllib.parse import urlsplit

import psutil


class ServiceCpu:
    """The processes of a service, `roots` and all that they started."""

    def __init__(self, roots: Set[int]) -> None:
        self._roots = roots
        self._before = self._spent()

    @classmethod
    def of(cls, url: str) -> "ServiceCpu | None":
        """The service that listens at a URL of this machine and may be looked at by this user."""
        address = urlsplit(url)
        try:
            found = ipaddress.ip_address(socket.gethostbyname(address.hostname or ""))
            listening = psutil.net_connections("tcp") if found.is_loopback else []
        except (OSError, psutil.Error):
            return None
        port = address.port or (443 if address.scheme == "https" else 80)
        pids = {
            one.pid
            for one in listening
            if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid is not None
        }
        return cls(pids) if pids else None

    def seconds(self) -> float:
        """CPU seconds, user and system, since the last call, or since this was made. A process that has ended meanwhile
        counts nothing."""
        spent = self._spent()
        since = sum(seconds - self._before.get(process, 0.0) for process, seconds in spent.items())
        self._before = spent
        return since

    def _spent(self) -> dict[tuple[int, float], float]:
        spent = {}
        for root in self._roots:
            with suppress(psutil.Error):
                family = psutil.Process(root)
                for process in (family, *family.children(recursive=True)):
                    with suppress(psutil.Error):
                        times = process.cpu_times()
                        spent[process.pid, process.create_time()] = float(times.user + times.system)
        return spent
