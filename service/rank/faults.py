"""Faults of a document against a msgspec type, all of them: msgspec itself names the first alone.

In: decoded JSON and the type that it must have (service/rank/wire.py, service/open_inference/wire.py). Out: `Fault`s,
each with its path. There is none where msgspec takes the document. Of what comes by the thousand, a few faults are
named.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from msgspec import inspect

from model.strict_yaml import did_you_mean
from service.base.errors import FAULTS_SHOWN, Fault, kind_of, shown, value_or_kind

_NOTHING = object()


def faults_of_body(body: bytes, document: object, wanted: inspect.Type) -> list[Fault]:
    """Faults of a body that msgspec refuses, and that is decoded as `document`. There is at least one."""
    # A document has the last value of a key alone. msgspec has looked at those before it.
    faults = list(faults_of(document, wanted)) or _repeated_keys(body)
    assert faults, "msgspec finds a fault that the walk does not"
    return faults


def _repeated_keys(body: bytes) -> list[Fault]:
    names: dict[str, None] = {}

    def note(pairs: list[tuple[str, object]]) -> None:
        names.update((name, None) for name, count in Counter(name for name, _ in pairs).items() if count > 1)

    # Numbers are not read: one of many digits costs more than its length.
    try:
        json.loads(body, object_pairs_hook=note, parse_int=len, parse_float=len)
    except RecursionError:  # this reader's limit is another than msgspec's
        return [Fault("$", "nested too deeply")]
    return [Fault(shown(name), "is there more than once; give it once") for name in islice(names, FAULTS_SHOWN)]


def faults_of(given: object, wanted: inspect.Type, path: str = "") -> Iterator[Fault]:
    """The faults of a value."""
    wanted, notes = _plain(wanted)
    if isinstance(wanted, inspect.UnionType):
        fitting = next((one for one in wanted.types if _has_kind(given, _plain(one)[0])), None)
        if fitting is not None:
            yield from faults_of(given, fitting, path)
            return
        if "expected" not in notes:
            wanted, notes = _plain(wanted.types[0])
    if not _has_kind(given, wanted):
        yield _wrong(given, wanted, notes, path)
    elif isinstance(wanted, inspect.StructType):
        assert isinstance(given, dict)
        yield from _faults_of_object(given, wanted, path)
    elif isinstance(wanted, inspect.DictType):
        assert isinstance(given, dict)
        if not isinstance(_plain(wanted.value_type)[0], inspect.AnyType):
            entries = ((value, f"{path}.{shown(name)}") for name, value in given.items())
            yield from _few(faults_of(value, wanted.value_type, place) for value, place in entries)
    elif isinstance(wanted, inspect.ListType):
        assert isinstance(given, list)
        if len(given) < (wanted.min_length or 0):
            yield Fault(path, notes["empty"])
        if not isinstance(_plain(wanted.item_type)[0], inspect.AnyType):
            yield from _few(faults_of(value, wanted.item_type, f"{path}[{n}]") for n, value in enumerate(given))
    elif not isinstance(wanted, inspect.AnyType) and not _fits(given, wanted):
        yield _wrong(given, wanted, notes, path)


def _faults_of_object(given: Mapping[str, object], wanted: inspect.StructType, path: str) -> Iterator[Fault]:
    names = [field.encode_name for field in wanted.fields]
    within = f"{path}." if path else ""
    unknown = (key for key in given if key not in names) if wanted.forbid_unknown_fields else ()
    for key in islice(unknown, FAULTS_SHOWN):
        hint = did_you_mean(key, names, f"valid keys: {', '.join(names)}")
        yield Fault(f"{within}{shown(key)}", f"unknown key; {hint}")
    for field in wanted.fields:
        if field.required or field.encode_name in given:
            yield from faults_of(given.get(field.encode_name, _NOTHING), field.type, f"{within}{field.encode_name}")


def _plain(wanted: inspect.Type) -> tuple[inspect.Type, dict[str, Any]]:
    """A type without its metadata, and its notes."""
    notes: dict[str, Any] = {}
    while isinstance(wanted, inspect.Metadata):
        notes |= wanted.extra or {}
        wanted = wanted.type
    return wanted, notes


def _few(faults: Iterator[Iterator[Fault]]) -> Iterator[Fault]:
    return islice((fault for some in faults for fault in some), FAULTS_SHOWN)


_KINDS: dict[type[inspect.Type], type | tuple[type, ...]] = {
    inspect.StructType: dict,
    inspect.DictType: dict,
    inspect.ListType: list,
    inspect.StrType: str,
    inspect.IntType: int,
    inspect.BoolType: bool,
    inspect.NoneType: type(None),
}


def _has_kind(given: object, wanted: inspect.Type) -> bool:
    """True for a value of the JSON type that is wanted. True and false are no integers."""
    if isinstance(wanted, inspect.UnionType):
        return any(_has_kind(given, _plain(one)[0]) for one in wanted.types)
    kinds = _KINDS.get(type(wanted), object)
    if given is _NOTHING:
        return False
    return isinstance(given, kinds) and (kinds is not int or not isinstance(given, bool))


def _fits(given: object, wanted: inspect.Type) -> bool:
    """True for a scalar that keeps the bounds of its type."""
    if isinstance(given, int) and isinstance(wanted, inspect.IntType):
        return wanted.ge is None or given >= wanted.ge
    if isinstance(given, str) and isinstance(wanted, inspect.StrType):
        is_short = wanted.max_length is None or len(given) <= wanted.max_length
        return is_short and (wanted.pattern is None or re.search(wanted.pattern, given) is not None)
    return True


def _wrong(given: object, wanted: inspect.Type, notes: Mapping[str, Any], path: str) -> Fault:
    expected = notes.get("expected") or _NOUNS[type(wanted)]
    got = "nothing" if given is _NOTHING else value_or_kind(given) if notes.get("is_told") else kind_of(given)
    return Fault(path or "$", f"expected {expected}, got {got}")


_NOUNS: dict[type[inspect.Type], str] = {
    inspect.StructType: "an object",
    inspect.DictType: "an object",
    inspect.ListType: "a list",
    inspect.StrType: "a string",
    inspect.IntType: "an integer",
    inspect.BoolType: "true or false",
}
