"""What a worker process runs. Apart from the parent, which must not pay for torch just to watch its workers."""

from starlette.types import ASGIApp

from service.http_protocol import GuardedProtocol, Limits
from service.settings import Settings


def make_app(settings: Settings) -> ASGIApp:
    """The application; torch and prometheus_client are imported here, in the worker, and nowhere before."""
    from service.app import create_app

    GuardedProtocol.limits = Limits(settings.header_seconds, settings.header_bytes)
    return create_app(settings)
