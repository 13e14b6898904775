"""Users of scoring requests: their keys, their look-ups, and the values that a store gives in place of the request.

In: a request's user features as they came. Out: the same with what the store has of the rest, and a `Hydrated` that
says what that was. What the request says comes first, null included. Without a store, or where it fails, the rest takes
its defaults.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from service.base.errors import Fault, Problem
from service.base.log import FieldLogger
from service.metrics.state_metrics import StateMetrics
from service.models.store import ModelStore
from service.models.version import StatefulModel
from service.state.lookups import UNREADABLE, Lookup, Lookups
from service.state.user_state import Hydrated, UserState, canonical_key, store_name

NOBODY = "none"
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]*)"')

_log = FieldLogger("state")


class Users:
    """Users of one worker. `lookups` is None where the service has no store."""

    def __init__(self, store: ModelStore, lookups: Lookups | None, metrics: StateMetrics) -> None:
        self._store = store
        self._lookups = lookups
        self._metrics = metrics
        self._named: set[tuple[str, str]] = set()  # features of wrong values that the log has named

    @property
    def lookups(self) -> Lookups:
        """The look-ups, of a service with a store."""
        assert self._lookups is not None
        return self._lookups

    def guess_lookup(self, body: bytes, deadline: float | None) -> Lookup | None:
        """The look-up of a body's user before it is parsed, by the first place that looks like the key. Where that is
        not the user's, `look_up` makes another."""
        if self._lookups is None:
            return None
        model = self._store.stateful_model(None)
        if model is None:
            if not self._store.has_state:
                return None
            found = _MODEL.search(body)
            model = None if found is None else self._store.stateful_model(found[1].decode("utf-8", "replace"))
            if model is None:
                return None
        key = _guessed_key(body, model.file.key)
        return None if key is None else self.begin(model, key, deadline)

    def begin(self, model: StatefulModel, key: str, deadline: float | None) -> Lookup | None:
        """Begin the look-up of a canonical key. None without a store."""
        if self._lookups is None:
            return None
        return self._lookups.begin(model.name, key, store_name(model.name, key), deadline)

    def find(
        self, model: StatefulModel, user: Mapping[str, Any], guessed: object, deadline: float | None
    ) -> "FoundUser":
        """The user of a request's user features, with the look-up, which is the guessed one where that is of this user.
        Raises Problem 422 for a key that is none."""
        try:
            key = canonical_key(user.get(model.file.key))
        except ValueError as error:
            raise Problem.wrong_content([Fault(f"user.{model.file.key}", str(error))]) from None
        if key is None:
            return FoundUser(self, model, None, None)
        if isinstance(guessed, Lookup) and guessed.key == key and guessed.model == model.name:
            return FoundUser(self, model, key, guessed)
        return FoundUser(self, model, key, self.begin(model, key, deadline))

    def count_refused(self, model: str, hydrated: Hydrated | None) -> None:
        """Count the values of the store that do not fit their features. Each feature is named in the log once."""
        for feature in () if hydrated is None else hydrated.refused:
            self._metrics.wrong_values.labels(model, feature).inc()
            self.name_fault(model, feature, "its values in the state store do not fit the feature; it takes defaults")

    def name_fault(self, model: str, feature: str, reason: str) -> None:
        """Name a fault of a model's state in the log, once for each feature."""
        if (model, feature) not in self._named:
            self._named.add((model, feature))
            _log.error("a value of the state store is wrong", model=model, feature=feature, reason=reason)


@dataclass(frozen=True, slots=True)
class FoundUser:
    """The user of a request to a model with state, by its canonical key. `lookup` is None where there is no key or no
    store."""

    users: Users
    model: StatefulModel
    key: str | None
    lookup: Lookup | None

    @property
    def has_ended(self) -> bool:
        """True where nothing is to be waited for."""
        return self.lookup is None or self.users.lookups.has_ended(self.lookup)

    def hydrated(self, user: Mapping[str, Any]) -> tuple[dict[str, Any], Hydrated]:
        """A request's user features with those of the store, and what the store gave. A key that is no feature is not
        among them. The look-up has ended."""
        file, features, lookup = self.model.file, self.model.features, self.lookup
        state, result = UserState({}, {}), NOBODY
        if lookup is not None:
            assert lookup.result is not None, "it has ended"
            state, result = lookup.state or state, lookup.result
            if result == UNREADABLE:
                self.users.name_fault(self.model.name, "", "what the store has is no state of a user; PUT replaces it")
        values = {name: state.fields[name] for name in file.fields if name in state.fields and name not in user}
        entries = {name: state.lists.get(name, [])[-append.keep :] for name, append in file.append.items()}
        for name, listed in entries.items():
            if listed and name in features and name not in user:
                values[name] = [entry.value for entry in listed]
        merged = {**values, **user}
        if file.key not in features:
            merged.pop(file.key, None)
        covers: frozenset[str] = frozenset() if self.key is None else file.names
        return merged, Hydrated(values, entries, self.key, result, covers, [])


@lru_cache(maxsize=64)
def _key_pattern(key: str) -> tuple[bytes, "re.Pattern[bytes]"]:
    written = f'"{key}"'.encode()
    return written, re.compile(re.escape(written) + rb'\s*:\s*(?:"([^"\\]+)"|(-?[0-9]{1,19})\b)')


def _guessed_key(body: bytes, key: str) -> str | None:
    written, pattern = _key_pattern(key)
    place = body.find(written)
    found = None if place < 0 else pattern.match(body, place)
    if found is None:
        return None
    try:
        return canonical_key((found[1] or found[2]).decode())
    except ValueError:  # the parser says what is wrong with it
        return None
