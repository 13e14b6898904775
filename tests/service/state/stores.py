"""Users' state written as the service's own store keeps it, for tests of what reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.state.sqlite_store import SqliteStore
from service.state.store import Store, Written
from service.state.user_state import Entry, UserState, store_name

STATE = "key: user_id\nfields: [country, age_days]\nappend: {history: {event: click, value: video_id, keep: 3}}\n"


def sqlite_url(path: Path) -> str:
    """The URL of an absolute path."""
    return f"sqlite:///{path}"


def put_user(
    store: Store,
    key: str,
    fields: Mapping[str, Any],
    lists: Mapping[str, list[tuple[Any, float]]] | None = None,
    model: str = "tiny",
) -> None:
    """Write a user's state."""
    histories = {name: [Entry(value, time) for value, time in given] for name, given in (lists or {}).items()}
    blob = UserState(dict(fields), histories).encoded()
    name = store_name(model, key)
    store.change([name], lambda _: {name: Written(blob, 1000)})


def store_at(path: Path) -> SqliteStore:
    """The store of a file."""
    return SqliteStore(str(path))
