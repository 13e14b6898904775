"""Serving of published models until SIGTERM or Ctrl-C, which ends with exit status 0.

In: flags and FEEDRANK_* variables (`--help` lists them). One worker runs in this process. Several run under a
supervisor, which replaces one that dies, and share the listening socket and one folder of metrics.
"""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from service.base.log import FieldLogger, log_all, logging_config, stderr_queue
from service.http.scoring_protocol import ScoringProtocol
from service.metrics.folder import metrics_folder
from service.process import signals
from service.process.listener import bound_socket, url_of
from service.process.supervisor import Supervisor
from service.settings import Settings, read_settings
from service.worker import METRICS_FOLDER, make_app

# What a worker may take to end once its requests have: it closes logs and waits for a model that is being loaded.
END_SECONDS = 15.0

_log = FieldLogger()


def main(arguments: Sequence[str]) -> int:
    """Serve. Returns the exit status."""
    settings = read_settings(arguments, os.environ)
    signals.set_handlers()
    certificates = settings.certificates()
    config = uvicorn.Config(
        partial(make_app, settings, certificates),
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http=ScoringProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the origin of a request is not used, and finding it costs every one
        log_config=logging_config(settings.log_level),
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        ssl_context_factory=None if certificates is None else certificates.server_context,
    )
    log_all()
    # Left over from a parent, it would mix this service's metrics with another's.
    os.environ.pop(METRICS_FOLDER, None)
    # Said before models are read, which may take its time.
    _log.info("starting", models=str(settings.models), workers=settings.workers)
    try:
        listener = bound_socket(settings.host, settings.port)
    except OSError as error:
        _log.error("cannot listen on --host and --port", host=settings.host, port=settings.port, reason=str(error))
        return STARTUP_FAILURE
    with listener:
        return (_serve_here if settings.workers == 1 else _serve_with_workers)(config, settings, listener)


class _Server(uvicorn.Server):
    """A server that logs its address once it answers."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start it on `sockets`."""
        await super().startup(sockets)
        if self.started and sockets:
            _say_address(self.config, sockets[0])


def _say_address(config: uvicorn.Config, listener: socket.socket) -> None:
    url = url_of(listener, config.host, is_tls=config.is_ssl)
    _log.info(f"Uvicorn running on {url} (Press CTRL+C to quit)")


def _serve_here(config: uvicorn.Config, _: Settings, listener: socket.socket) -> int:
    # uvicorn raises the signal that ended it once more when all is finished: a good end is exit status 0. Before it
    # has put its own handlers in place there is nothing to finish, and the end is as good.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    server = _Server(config)
    server.run([listener])
    return 0 if server.started else 1


def _serve_with_workers(config: uvicorn.Config, settings: Settings, listener: socket.socket) -> int:
    # prometheus_client decides at import whether it writes to files, so the folder exists before any worker starts.
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(metrics_folder())
        except OSError as error:
            _log.error("cannot start", reason=str(error))
            return STARTUP_FAILURE
        os.environ[METRICS_FOLDER] = folder
        _say_address(config, listener)
        from prometheus_client import CollectorRegistry

        from service.metrics.process_counters import LOG_LINES_DROPPED, WORKER_RESTARTS

        registry = CollectorRegistry()
        dropped = LOG_LINES_DROPPED.new_metric(registry)
        end_seconds = settings.drain_seconds + settings.shutdown_seconds + END_SECONDS
        supervisor = Supervisor(
            config,
            [listener],
            end_seconds,
            on_replaced=WORKER_RESTARTS.new_metric(registry).inc,
            on_poll=lambda: dropped.inc(stderr_queue().take_dropped()),
        )
        supervisor.run()
    return supervisor.exit_status
