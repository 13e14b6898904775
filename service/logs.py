"""Parts that settings switch on: the logs of impressions and events, their shipping, the store of users' state.

In: the settings of a service. Out: each of them, or None.
"""

from pathlib import Path

from model.user import read_user_hash_key
from service.base.clock import Clock
from service.events.event_log import EventLog, event_files
from service.impressions.line import LineSettings
from service.impressions.writer import ImpressionLog
from service.metrics.metrics import Metrics
from service.models.store import ModelStore
from service.settings import Settings
from service.ship.shipper import Log, Shipper
from service.state.appender import Appender
from service.state.store import Store
from service.state.stores import open_store


def impression_log(settings: Settings, metrics: Metrics, clock: Clock) -> ImpressionLog | None:
    """The impression log. Raises ValueError where there is no key in the file of user hashes' key."""
    if settings.impression_log is None:
        return None
    return ImpressionLog(
        settings.impression_log,
        metrics,
        clock,
        LineSettings(
            share=settings.impression_log_sample,
            is_hashed=settings.impression_log_features == "hash",
            user_hash_key=None if settings.user_hash_key is None else read_user_hash_key(settings.user_hash_key),
        ),
        max_bytes=settings.impression_log_max_bytes,
        workers=settings.workers,
        is_shipped=settings.ship is not None,
    )


def event_log(settings: Settings, metrics: Metrics, clock: Clock) -> EventLog | None:
    """The event log."""
    if settings.event_log is None:
        return None
    return EventLog(
        settings.event_log,
        metrics,
        clock,
        max_bytes=settings.event_log_max_bytes,
        workers=settings.workers,
        sync_seconds=settings.event_log_sync_seconds,
        is_shipped=settings.ship is not None,
    )


def state_store(settings: Settings) -> Store | None:
    """The store of users' state. Raises ValueError where it can never be one."""
    url = settings.state_url
    return None if url is None else open_store(url, settings.state_timeout_ms / 1000)


def appender(settings: Settings, store: Store | None, models: ModelStore, metrics: Metrics) -> Appender | None:
    """Maker of histories from events, where there are both."""
    if store is None or settings.event_log is None:
        return None
    return Appender(store, models, event_files(settings.event_log), metrics.state)


def shipper(settings: Settings, metrics: Metrics) -> Shipper | None:
    """The shipping of both."""
    given: dict[Log, Path | None] = {"impressions": settings.impression_log, "events": settings.event_log}
    folders = {name: folder for name, folder in given.items() if folder is not None}
    return None if settings.ship is None else Shipper(settings.ship, folders, metrics.ship)
