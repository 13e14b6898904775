"""Users' state in Redis: a store for the services of several hosts.

In: a URL. Out: a store (service/state/store.py). A user is one string, `feedrank:user:` and 32 hexadecimal digits, that
Redis forgets by itself. A change watches its keys (WATCH, MULTI, EXEC), and is made again where another process was
faster. Reads wait no longer than a look-up does, and are tried once more on a connection that was closed meanwhile.
Messages say neither URL nor password. One Redis server or what speaks as one: not Cluster.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from service.state.store import Change, Note, StoreError, StoreFullError, StoreTimeoutError, Written

WRITE_SECONDS = 2.0
_CONNECT_SECONDS = 0.25
_MOST_RACES = 20
_USER, _NOTE = b"feedrank:user:", b"feedrank:note:"
# What the client raises for a server that is none, besides errors of its own.
_FAULTS = (exceptions.RedisError, OSError, ValueError, TypeError, LookupError)


class RedisStore:
    """A store in Redis. It may be away, now or later."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._reads = _client(url, timeout_seconds, max(timeout_seconds, _CONNECT_SECONDS))
        self._writes = _client(url, WRITE_SECONDS, WRITE_SECONDS)
        self._local = threading.local()

    def read(self, names: Sequence[bytes]) -> list[bytes | None]:
        """The blobs of these names."""
        with self._faults(self._timeout_seconds):
            return _blobs(self._read_on_own_connection(list(map(_key, names))), len(names))

    def _read_on_own_connection(self, keys: Sequence[bytes]) -> Any:
        """The answer to MGET on the thread's own connection: to borrow one from a pool for each look-up costs as much
        as the look-up. One that was closed meanwhile is opened again, once."""
        connection = self._local.__dict__.get("connection")
        if connection is None:
            connection = self._local.connection = self._reads.connection_pool.get_connection()
        for is_last in (False, True):
            try:
                connection.send_command("MGET", *keys)
                return connection.read_response()
            except exceptions.ResponseError:
                raise
            except BaseException as error:  # an answer may still come, which would be taken for the next one
                connection.disconnect()
                if is_last or not isinstance(error, exceptions.ConnectionError):
                    raise
        raise AssertionError("the second one returns or raises")

    def change(self, names: Sequence[bytes], change: Change, note: Note | None = None) -> None:
        """Change blobs in one transaction."""
        keys = list(map(_key, names))
        for _ in range(_MOST_RACES):
            with self._faults(WRITE_SECONDS), self._writes.pipeline(transaction=True) as pipe:
                if keys:
                    pipe.watch(*keys)  # type: ignore[no-untyped-call]
                before = _blobs(pipe.mget(keys), len(keys)) if keys else []
                changed = _changed(change, dict(zip(names, before, strict=True)))
                pipe.multi()
                for name, written in changed.items():
                    if written is None:
                        pipe.delete(_key(name))
                    else:
                        pipe.set(_key(name), written.blob, px=max(1, round(written.ttl_seconds * 1000)))
                if note is not None:
                    pipe.set(_NOTE + note.name.encode(), note.text)
                try:
                    pipe.execute()
                except exceptions.WatchError:
                    continue
                return
        raise StoreError("the state store: others change the same user all the time")

    def read_note(self, name: str) -> bytes | None:
        """The text of a note."""
        with self._faults(WRITE_SECONDS):
            return _blobs([self._writes.get(_NOTE + name.encode())], 1)[0]

    def close(self) -> None:
        """Nothing: connections are every thread's, and close with the clients."""

    @contextmanager
    def _faults(self, seconds: float) -> Iterator[None]:
        try:
            yield
        except _ChangeError as error:
            raise error.cause from None
        except _FAULTS as error:
            raise _kind(error)(f"the state store {_reason(error, seconds)}") from None


class _ChangeError(Exception):
    """The error of a caller's change, which is no fault of the store."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


def _changed(change: Change, before: dict[bytes, bytes | None]) -> dict[bytes, Written | None]:
    try:
        return dict(change(before))
    except Exception as error:
        raise _ChangeError(error) from None


def _client(url: str, seconds: float, connect_seconds: float) -> Redis:
    return Redis.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=connect_seconds,
        retry=Retry(NoBackoff(), 0),
        # Notices of a moving server would come between the answers, on a connection that reads answers alone.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )


def _key(name: bytes) -> bytes:
    return _USER + name.hex().encode()


def _blobs(answer: Any, most: int) -> list[bytes | None]:
    if not isinstance(answer, list) or len(answer) != most:
        raise ValueError("not what was asked for")
    if not all(blob is None or isinstance(blob, bytes) for blob in answer):
        raise ValueError("not blobs")
    return answer


def _kind(error: BaseException) -> type[StoreError]:
    if isinstance(error, exceptions.TimeoutError):
        return StoreTimeoutError
    return StoreFullError if isinstance(error, exceptions.OutOfMemoryError) else StoreError


def _reason(error: BaseException, seconds: float) -> str:
    """The fault, in words that have no secret. The client's own are not passed on."""
    match error:
        case exceptions.OutOfMemoryError():
            return "is full (maxmemory is reached)"
        case exceptions.AuthenticationError() | exceptions.NoPermissionError():
            return "refuses the user name or the password"
        case exceptions.TimeoutError():
            return f"did not answer within {1000 * seconds:g} ms"
        case exceptions.BusyLoadingError():
            return "is loading its data"
        case exceptions.ReadOnlyError():
            return "is a replica, which takes no writes"
        case exceptions.ConnectionError() | OSError():
            return "cannot be reached"
        case exceptions.ResponseError():
            return "refuses the command"
    return f"answers what is not of its protocol ({type(error).__name__})"
