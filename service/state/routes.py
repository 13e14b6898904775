"""Users of a model by HTTP: what a backend puts of them, reads and deletes.

In: `{"fields": {"country": "de"}, "append": {"history": [{"value": 3, "time": "2026-11-29T20:15:03Z"}]}}` to PUT
/v1/models/{name}/users/{key}. It replaces all fields, and the histories that it names. Out: what was cut. GET answers
what PUT takes. DELETE forgets the user. Keys with the scope `state` alone come this far. The work is done by few
threads, and what waits for them is bounded: a store that hangs is answered 503.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Request
from starlette.types import Receive, Scope

from model.features.encoder import ColumnErrors
from model.strict_yaml import did_you_mean
from service.base.clock import rfc3339
from service.base.errors import FAULTS_SHOWN, Fault, Problem, kind_of, shown
from service.base.json_object import json_object
from service.models.store import ModelStore
from service.models.version import ServedModel
from service.state.store import Store, StoreError, StoreFullError, Written
from service.state.user_state import Entry, UserState, canonical_key, merged, store_name

PATH = "/v1/models/{name}/users/{key:path}"
MAX_BODY_BYTES = 256 * 1024
ANSWER_SECONDS = 5.0
_THREADS = 2
_MOST_WAITING = 64

# Reads a body of at most so many bytes. Raises Problem.
ReadBody = Callable[[Scope, Receive, int], Awaitable[bytes]]
T = TypeVar("T")

_ENTRY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["value"],
    "properties": {
        "value": {"type": ["integer", "string", "number"]},
        "time": {"type": "string", "format": "date-time", "description": "now where it is left out"},
    },
}
_USER: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "fields": {"type": "object", "description": "values of the fields of state.yaml; all are replaced"},
        "append": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": _ENTRY},
            "description": "histories of state.yaml; each that is named is replaced, the newest `keep` entries stay",
        },
    },
}
_EXAMPLE = {"fields": {"age_bucket": 3}, "append": {"history": [{"value": 3, "time": "2026-11-29T20:15:03.120Z"}]}}
_BODY = {"required": True, "content": {"application/json": {"schema": _USER, "example": _EXAMPLE}}}


class _Given(msgspec.Struct):
    """An entry as it comes."""

    value: int | str | float
    time: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class UserRoutes:
    """The routes of one process. `store` is None where the service has none."""

    def __init__(self, models: ModelStore, store: Store | None, read_body: ReadBody) -> None:
        self._models = models
        self._store = store
        self._read_body = read_body
        self._executor = ThreadPoolExecutor(_THREADS, "state-users")
        self._waiting = 0
        self._lock = threading.Lock()

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter()

        @router.put(PATH, summary="Replaces the fields of a user, and the histories that are named",
                    openapi_extra={"requestBody": _BODY})  # fmt: skip
        async def put(name: str, key: str, request: Request) -> dict[str, Any]:
            body = await self._read_body(request.scope, request.receive, MAX_BODY_BYTES)
            model, user = self._found(name, key)
            fields, lists = _read(json_object(body), model)
            return await self._run(lambda store: _put(store, model, user, fields, lists))

        @router.get(PATH, summary="A user as the store has it")
        async def get(name: str, key: str) -> dict[str, Any]:
            model, user = self._found(name, key)
            return await self._run(lambda store: _get(store, model, user))

        @router.delete(PATH, summary="Forgets a user")
        async def delete(name: str, key: str) -> dict[str, Any]:
            model, user = self._found(name, key)
            return await self._run(lambda store: _delete(store, model, user))

        return router

    def stop(self) -> None:
        """End the threads. A store that hangs is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _found(self, name: str, key: str) -> tuple[ServedModel, str]:
        """The model of a name, which has state, and a canonical key. Raises Problem 404, 422."""
        if self._store is None:
            raise Problem(404, "state of users is off: start the service with --state URL")
        model = self._models.find(name, None)
        if model.state is None:
            raise Problem(404, f"model '{model.name}' has no state of users: state.yaml beside its versions says what")
        try:
            user = canonical_key(key)
        except ValueError as error:
            raise Problem.wrong_content([Fault("path.key", str(error))]) from None
        assert user is not None, "a path is no null"
        return model, user

    async def _run(self, job: Callable[[Store], T]) -> T:
        """The answer of a job in one of the threads. Raises Problem 503, and what the job raises."""
        assert self._store is not None, "checked"
        if self._waiting >= _MOST_WAITING:
            raise _unavailable("too many changes of users wait for the state store")
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, job, self._store)
        future.add_done_callback(self._count_done)
        try:
            return await asyncio.wait_for(asyncio.shield(future), ANSWER_SECONDS)
        except TimeoutError:
            raise _unavailable(f"the state store took more than {ANSWER_SECONDS:g} s") from None
        except StoreFullError as error:
            raise _unavailable(str(error)) from None
        except StoreError as error:
            raise _unavailable(str(error)) from None

    def _count_done(self, future: "asyncio.Future[Any]") -> None:
        self._waiting -= 1
        if not future.cancelled():
            future.exception()  # one that nobody waited for has been seen


def _put(
    store: Store, model: ServedModel, user: str, fields: Mapping[str, Any], lists: Mapping[str, list[Entry]]
) -> dict[str, Any]:
    assert model.state is not None, "checked"
    file, name = model.state, store_name(model.name, user)
    kept = {history: merged([], entries, file.append[history].keep) for history, entries in lists.items()}

    def change(blobs: Mapping[bytes, bytes | None]) -> Mapping[bytes, Written | None]:
        try:
            before = UserState.decoded(blobs[name]).lists
        except ValueError:  # what is no state gives way
            before = {}
        state = UserState(dict(fields), {**before, **kept})
        return {name: Written(state.encoded(), file.ttl.total_seconds())}

    store.change([name], change)
    cut = {history: len(entries) - len(kept[history]) for history, entries in lists.items()}
    return {"key": user, "cut": {history: count for history, count in cut.items() if count}}


def _get(store: Store, model: ServedModel, user: str) -> dict[str, Any]:
    (blob,) = store.read([store_name(model.name, user)])
    if blob is None:
        raise Problem(404, "the state store has nothing of this user")
    try:
        state = UserState.decoded(blob)
    except ValueError as error:
        raise Problem(500, f"{error}; PUT replaces it") from None
    histories = {
        name: [{"value": entry.value, "time": rfc3339(datetime.fromtimestamp(entry.time, UTC))} for entry in entries]
        for name, entries in state.lists.items()
    }
    return {"key": user, "fields": state.fields, "append": histories}


def _delete(store: Store, model: ServedModel, user: str) -> dict[str, Any]:
    name = store_name(model.name, user)
    was_there = [False]

    def change(blobs: Mapping[bytes, bytes | None]) -> Mapping[bytes, Written | None]:
        was_there[0] = blobs[name] is not None
        return {name: None}

    store.change([name], change)
    return {"key": user, "deleted": was_there[0]}


def _read(document: Mapping[str, Any], model: ServedModel) -> tuple[dict[str, Any], dict[str, list[Entry]]]:
    """Fields and histories of a body. Raises Problem 422 with every fault."""
    assert model.state is not None, "checked"
    faults: list[Fault] = []
    parts: dict[str, dict[str, Any]] = {}
    unknown = islice((key for key in document if key not in ("fields", "append")), FAULTS_SHOWN)
    faults += [Fault(shown(key), "unknown key; the keys are fields and append") for key in unknown]
    for part, known in (("fields", model.state.fields), ("append", tuple(model.state.append))):
        given = document.get(part, {})
        if not isinstance(given, dict):
            faults.append(Fault(part, f"expected an object, got {kind_of(given)}"))
            given = {}
        for name in islice((name for name in given if name not in known), FAULTS_SHOWN):
            hint = did_you_mean(name, known, f"state.yaml has: {', '.join(known) or 'none'}")
            faults.append(Fault(f"{part}.{shown(name)}", f"not in state.yaml; {hint}"))
        parts[part] = {name: value for name, value in given.items() if name in known}
    lists, now = {}, time.time()
    for name, entries in parts["append"].items():
        try:
            given_entries = msgspec.convert(entries, list[_Given])
        except msgspec.ValidationError as error:
            faults.append(Fault(f"append.{name}", f"expected a list of {{value, time}}: {error}"))
            continue
        lists[name] = [Entry(one.value, now if one.time is None else one.time.timestamp()) for one in given_entries]
    faults += _value_faults(model, parts["fields"], lists)
    if faults:
        raise Problem.wrong_content(faults)
    return {name: value for name, value in parts["fields"].items() if value is not None}, lists


def _value_faults(model: ServedModel, fields: Mapping[str, Any], lists: Mapping[str, list[Entry]]) -> list[Fault]:
    """Values that do not fit their features."""
    features = {feature.name for feature in model.scorer.schema.requested("request")}
    values = {name: [entry.value for entry in entries] for name, entries in lists.items() if name in features}
    try:
        model.scorer.encoder.request_columns({**fields, **values})
    except ColumnErrors as errors:
        return [
            Fault(f"{'fields' if error.feature in fields else 'append'}.{error.feature}", fault.message)
            for error in errors.errors
            for fault in error.faults
        ]
    return []


def _unavailable(detail: str) -> Problem:
    return Problem(503, detail, reason="state_store", retry_after=1)
