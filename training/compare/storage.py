"""Storage of the trials of a search: a file of the output folder, or a database that many machines share.

In: an SQLAlchemy URL. Out: Optuna's storage. A fault names the database without its password.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from sqlalchemy import URL, make_url
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

# How long a writer waits for another one in an SQLite file.
BUSY_SECONDS = 60
# To create the tables.
ATTEMPTS = 8


def own_storage(folder: Path) -> URL:
    """The file that keeps the trials of one machine."""
    return URL.create("sqlite", database=str(folder.resolve() / "search.db"))


def shared_storage(text: str) -> URL:
    """The database of `--storage`. Raises ValueError, without the text, which may contain a password."""
    try:
        url = make_url(text)
    except (SQLAlchemyError, ValueError):
        raise ValueError(
            "--storage: not a database URL; expected for example postgresql+psycopg://user@host/database or "
            "sqlite:////folder/search.db"
        ) from None
    if url.get_backend_name() == "sqlite" and not url.database:
        raise ValueError(
            "--storage: this URL keeps nothing (SQLite in memory); name a file: sqlite:////folder/search.db"
        )
    return url


@contextlib.contextmanager
def opened(url: URL) -> Iterator[RDBStorage]:
    """The storage of a search, its tables created where they are missing, until the block ends. Faults of the
    database, in the block too, are ValueError naming it."""
    with named_faults(url):
        storage = _open(url)
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _open(url: URL) -> RDBStorage:
    # Optuna's own words go where ours go, and only its warnings.
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Trials take hours: a connection that the server or a firewall has closed meanwhile is opened again.
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if url.get_backend_name() == "sqlite":
        settings["connect_args"] = {"timeout": BUSY_SECONDS}
    # Optuna fills a template in the URL, so that braces stand for themselves only when doubled.
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return RDBStorage(text, engine_kwargs=dict(settings))
        except (OperationalError, ProgrammingError, IntegrityError) as error:
            # Machines that begin at once all create the tables, and trip over those that another one made.
            is_race = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not is_race or attempt == ATTEMPTS:
                raise
            time.sleep(0.2 * attempt)
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def named_faults(url: URL) -> Iterator[None]:
    """Faults of the database as ValueError naming it."""
    try:
        yield
    except (SQLAlchemyError, OptunaError, ImportError) as error:
        raise ValueError(f"{described(url)}: cannot be used ({_reason(error, url)})") from None


def described(url: URL) -> str:
    """The database in words, without user, password and options."""
    if url.get_backend_name() == "sqlite":
        return f"--storage {url.database}"
    port = f":{url.port}" if url.port else ""
    return f"--storage {url.drivername}://{url.host or ''}{port}/{url.database or ''}"


def _reason(error: Exception, url: URL) -> str:
    cause = getattr(error, "orig", None) or error.__cause__ or error
    reason = " ".join(str(cause).split()) or type(cause).__name__
    secrets = [url.password, *(value for values in url.normalized_query.values() for value in values)]
    for secret in secrets:
        reason = reason.replace(str(secret), "***") if secret else reason
    return reason
