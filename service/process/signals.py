"""Meaning of signals to the service: the same in a single process, in the parent of workers and in every worker.

SIGTERM, SIGINT and SIGQUIT end it. SIGHUP has keys, certificates and the models folder read again, and does nothing
else. Where it was ignored at the start (nohup) it stays ignored. SIGUSR1, SIGUSR2, SIGTTIN and SIGTTOU, which would end
or stop a process, do nothing.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_WITHOUT_MEANING = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)


def set_handlers() -> None:
    """Set what every process of the service does on signals, before it serves."""
    for number in _WITHOUT_MEANING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, lambda *_: signal.raise_signal(signal.SIGTERM))
    if hears_hangup():
        _do_nothing_on_hangup()  # files are read at the start anyway
    # The parent has it blocked while it starts a worker: until here SIGHUP would have ended that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])


def hears_hangup() -> bool:
    """True where SIGHUP has a meaning: the starter of the service did not have it ignored."""
    return signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


@contextmanager
def reload_on_hangup(reload: Callable[[], object]) -> Iterator[None]:
    """Call `reload` in the running event loop at SIGHUP. In a thread of a process that is not the service's (an
    in-process client), and where SIGHUP is ignored, nothing is changed."""
    if threading.current_thread() is not threading.main_thread() or not hears_hangup():
        yield
        return
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(reload))
    try:
        yield
    finally:
        _do_nothing_on_hangup()


def _do_nothing_on_hangup() -> None:
    signal.signal(signal.SIGHUP, lambda *_: None)
