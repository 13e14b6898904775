"""Labels of a model's versions: `stable` is served, `canary` has a share of the users, `shadow` scores beside it.

In: `<models>/<name>/labels.yaml`, `{stable: 3, canary: {version: 4, share: 0.05}, shadow: 5}`, written by hand, by the
admin API or by the daily job. Every key may be left out. Out: `Labels`. A file that is not valid, or goes away, leaves
the labels before it in force.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from model.buckets import BUCKETS, buckets_within
from model.rollout.locks import lock
from model.rollout.replaced_file import replace_file
from model.strict_yaml import StrictModel
from model.untrusted_files import PolledFile

FILE_NAME = "labels.yaml"
STABLE, CANARY, SHADOW = "stable", "canary", "shadow"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def _version(given: object) -> int:
    if (type(given) is int or isinstance(given, str)) and _VERSION.fullmatch(str(given)):
        return int(str(given))
    raise ValueError("expected a model version, a whole number of at least 1")


Version = Annotated[int, BeforeValidator(_version)]


def _in_buckets(share: float) -> float:
    if not math.isclose(share * BUCKETS, buckets_within(share), rel_tol=1e-9):
        raise ValueError(f"a share is a whole number of ten-thousandths, got {share}")
    return share


Share = Annotated[float, Field(ge=0, le=1, strict=True), AfterValidator(_in_buckets)]


class Canary(StrictModel):
    """The version that a share of the users goes to, in [0, 1] by steps of one ten-thousandth."""

    version: Version
    share: Share


class Labels(StrictModel):
    """The labels of one model. Without `stable` its newest version that verifies is served."""

    stable: Version | None = None
    canary: Canary | None = None
    shadow: Version | None = None

    @model_validator(mode="after")
    def _canary_beside_stable(self) -> "Labels":
        if self.canary is not None and self.stable is None:
            raise ValueError("canary needs stable: without it the newest version is served to all")
        return self

    def versions(self) -> dict[str, int]:
        """The labels that are set, `stable` first, and the version of each."""
        canary = None if self.canary is None else self.canary.version
        given = {STABLE: self.stable, CANARY: canary, SHADOW: self.shadow}
        return {label: version for label, version in given.items() if version is not None}

    def merged(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """These labels with changes (RFC 7396): null removes a label, and what is left out of one stays."""
        return _merged(self.document(), changes)

    def document(self) -> dict[str, Any]:
        """Document of the labels, as /v1/models shows them, versions as strings."""
        shown: dict[str, Any] = {label: str(version) for label, version in self.versions().items()}
        if self.canary is not None:
            shown[CANARY] = {"version": shown[CANARY], "share": self.canary.share}
        return shown


def _merged(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(before)
    for key, given in changes.items():
        inner = before.get(key)
        merged[key] = _merged(inner, given) if isinstance(inner, Mapping) and isinstance(given, Mapping) else given
    return {key: given for key, given in merged.items() if given is not None}


class LabelsFile:
    """The file of one model. `last_valid` stays when the file goes away: a file with `{}` removes labels. `error` says
    why the file is not in force as it is now."""

    def __init__(self, path: Path) -> None:
        self.last_valid = Labels()
        self._path = path
        self._file = PolledFile(path)
        self._content_error: str | None = None

    @property
    def error(self) -> str | None:
        """A reason that names the file. None where it is in force, or where there never was one."""
        return self._file.error or self._content_error

    def poll(self) -> bool:
        """Read the file and return whether what is to be said of it has changed."""
        before = self._file.content
        if not self._file.poll():
            return False
        content = self._file.content
        if content is not None and content != before:
            try:
                self.last_valid, self._content_error = Labels.from_bytes(content, str(self._path)), None
            except ValueError as error:
                self._content_error = str(error)
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others who change labels, in any process, from writing meanwhile. Raises OSError, also where another
        process keeps the lock for longer than writing takes."""
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock(folder)
            yield
        finally:
            os.close(folder)

    def write(self, labels: Labels) -> None:
        """Replace the file by one rename: a reader sees the labels before or these. Raises OSError."""
        text = yaml.safe_dump(labels.model_dump(exclude_none=True), sort_keys=False, default_flow_style=None)
        replace_file(self._path, text.encode("utf-8"))
