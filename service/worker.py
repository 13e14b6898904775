"""A worker process. Apart from the parent, which must not pay for torch just to watch its workers."""

import gc
import os
import resource
from pathlib import Path

from starlette.types import ASGIApp

from model.artifact import prehash
from service.base.log import spare_unwritten_fields
from service.http.certificates import Certificates
from service.http.connections import Connections, Limits
from service.http.protocol import GuardedProtocol
from service.metrics.folder import hold_folder
from service.process.cores import bind_to_a_share
from service.settings import Settings

# Files that a worker opens beside its connections. Models are mapped, and are files while they are loaded.
_OTHER_FILES = 256
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def make_app(settings: Settings, certificates: Certificates | None) -> ASGIApp:
    """The application. torch and prometheus_client are imported here, in the worker, and nowhere before."""
    # Threads without a set number, such as those that load models, would otherwise be as many as cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.torch_threads))
    # How many threads there are is a matter of the cores of all workers: it is settled before they are shared out.
    settings = settings.model_copy(update={"threads": settings.scoring_threads})
    shared = os.environ.get(METRICS_FOLDER)
    if shared is not None:
        hold_folder(Path(shared))
        if settings.bind_cores:
            bind_to_a_share(Path(shared), settings.workers)
    prehash.begin_hashing(settings.models)
    from service.app import create_app

    # What was imported stays: a pass over all of it by the garbage collector would stop every thread for a tenth of a
    # second, and again whenever enough has been made since.
    gc.collect()
    gc.freeze()
    spare_unwritten_fields()
    GuardedProtocol.limits = Limits(settings.header_seconds, settings.header_bytes)
    most = min(settings.max_connections, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES))
    GuardedProtocol.shared = Connections(most, settings.max_unfinished_bytes)
    return create_app(settings, certificates)
