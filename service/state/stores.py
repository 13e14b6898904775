"""The kinds of stores of users' state, by URL."""

from urllib.parse import urlsplit

from service.state.sqlite_store import SqliteStore
from service.state.store import SQLITE, Store, check_url


def open_store(url: str, timeout_seconds: float) -> Store:
    """The store of a URL. A read waits for it no longer than `timeout_seconds`. Raises ValueError for a store that can
    never be one of ours. One that is away now may come back: that is found by its first use."""
    if check_url(url) == SQLITE:
        return SqliteStore(urlsplit(url).path.removeprefix("/"))
    from service.state.redis_store import RedisStore  # its client is seldom needed

    return RedisStore(url, timeout_seconds)
